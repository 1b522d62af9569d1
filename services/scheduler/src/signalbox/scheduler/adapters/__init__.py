"""Redis, the usage room, and the loops that keep the scheduler in step with them."""
