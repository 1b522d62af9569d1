"""The gateways that hold a session with this scheduler, and what is asked of them when Redis lost its state."""

import asyncio
from typing import Protocol

from signalbox.v1.scheduler_pb2 import DeliverJournal, SchedulerBatch


class Session(Protocol):
    """One gateway's open stream."""

    gateway_id: str

    def push(self, batch: SchedulerBatch) -> None:
        """Send something that the gateway did not ask for."""
        ...


class Sessions:
    """All open sessions of this scheduler."""

    def __init__(self) -> None:
        self._open: set[Session] = set()
        self._asking = ""
        self._draining = False
        self.delivered: set[str] = set()
        """Gateways that delivered their journals for the epoch that is asked for."""
        self.changed = asyncio.Event()

    @property
    def gateways(self) -> set[str]:
        """Ids of the connected gateways."""
        return {s.gateway_id for s in self._open}

    def enter(self, session: Session) -> None:
        """A gateway connected; while a recovery runs it is asked at once."""
        self._open.add(session)
        self.changed.set()
        if self._draining:
            session.push(SchedulerBatch(draining=True))
        if self._asking:
            session.push(SchedulerBatch(deliver_journal=DeliverJournal(epoch=self._asking)))

    def leave(self, session: Session) -> None:
        """A gateway's stream ended."""
        self._open.discard(session)
        self.changed.set()

    def ask(self, epoch: str) -> None:
        """Ask every gateway to deliver its journal and to renew its leases, now and while it connects."""
        if self._asking == epoch:
            return
        self._asking, self.delivered = epoch, set()
        for session in self._open:
            session.push(SchedulerBatch(deliver_journal=DeliverJournal(epoch=epoch)))

    def stop_asking(self) -> None:
        """The recovery is over."""
        self._asking = ""

    def note_delivered(self, session: Session, epoch: str) -> None:
        """A gateway delivered."""
        if epoch == self._asking:
            self.delivered.add(session.gateway_id)
            self.changed.set()

    def drain(self) -> bool:
        """Tell every gateway to open a session elsewhere, those too that come back to this scheduler meanwhile.

        Return whether there was any.
        """
        self._draining = True
        for session in self._open:
            session.push(SchedulerBatch(draining=True))
        return bool(self._open)
