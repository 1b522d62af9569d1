"""The contracts between the rooms, and their generated stubs."""
