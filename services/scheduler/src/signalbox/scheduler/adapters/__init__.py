"""Redis, the usage room, and the loops that keep the scheduler in step with them."""

from signalbox.core.absent import absent

with absent("opentelemetry"):    # the client would load its metrics: a seventh of a scheduler's start, and unused here
    import redis.asyncio  # noqa: F401
