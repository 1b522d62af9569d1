"""Which gateways are told what, when a scheduler stops."""

from signalbox.scheduler.adapters.sessions import Sessions
from signalbox.v1.scheduler_pb2 import SchedulerBatch


class Heard:
    def __init__(self, gateway_id: str) -> None:
        self.gateway_id = gateway_id
        self.batches: list[SchedulerBatch] = []

    def push(self, batch: SchedulerBatch) -> None:
        self.batches.append(batch)


def test_a_gateway_that_comes_to_a_draining_scheduler_is_sent_on() -> None:
    sessions = Sessions()
    early, late = Heard("early"), Heard("late")
    sessions.enter(early)
    assert not early.batches
    sessions.drain()
    sessions.enter(late)
    assert [b.draining for b in early.batches] == [True]
    assert [b.draining for b in late.batches] == [True]
