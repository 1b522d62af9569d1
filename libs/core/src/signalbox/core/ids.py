"""Ids of requests, leases and instances: sortable by time, unguessable, made without coordination."""

import os
import socket
import time


def new_id(prefix: str) -> str:
    """Return `prefix` + 12 hex digits of Unix milliseconds + 16 random hex digits."""
    return f"{prefix}{time.time_ns() // 1_000_000:012x}{os.urandom(8).hex()}"


def instance_id() -> str:
    """Name this process among the replicas of its room: host, pid and a random part."""
    return f"{socket.gethostname()}-{os.getpid()}-{os.urandom(3).hex()}"
