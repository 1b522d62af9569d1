"""Carries renewals out: one at a time per grant here and everywhere, on time or on demand.

What a renewal does is decided in domain/renewal.py, when it is due in domain/schedule.py. A thousand callers that want
the same grant renewed wait for one renewal; other processes are kept out by the lease in the store.
"""

import asyncio
from collections.abc import Callable

from signalbox.core import logs
from signalbox.core.clock import Clock
from signalbox.token_refresher.adapters.identity import IdentityFiles
from signalbox.token_refresher.domain.oauth import Answer
from signalbox.token_refresher.domain.ports import (
    Conflict,
    Endpoints,
    Found,
    GrantStore,
    LeaseBusy,
    Stored,
    StoreUnavailable,
    Traces,
)
from signalbox.token_refresher.domain.renewal import (
    Demand,
    Exchange,
    IdentityUnusable,
    Machine,
    Outcome,
    Pause,
    Read,
    ReadIdentity,
    Renewal,
    Step,
    Write,
    renew,
)
from signalbox.token_refresher.domain.schedule import Ahead, due_at_ms
from signalbox.token_refresher.metrics import Metrics

log = logs.logger(__name__)

AT_ONCE = 64
LONGEST_NAP_S = 60.0     # the wall clock may jump, and a suspended machine's timers stand still
STORE_RETRY_S = 1.0
_WARN = frozenset((Outcome.NEEDS_AUTHORIZATION, Outcome.CREDENTIAL_INVALID))
_QUIET = frozenset((Outcome.NOT_DUE, Outcome.GONE))


class Renewals:
    """Renews the grants that `arm` names when they are due, and any grant on demand."""

    def __init__(
        self, *, store: GrantStore, endpoint: Endpoints, identities: IdentityFiles, clock: Clock, metrics: Metrics,
        ahead: Ahead, lease_patience_s: float, learned: Callable[[str, Found], None], traces: Traces | None = None,
    ) -> None:
        """`learned` is told what the store holds of an account, whenever that is read or written here."""
        self._store = store
        self._endpoint = endpoint
        self._identities = identities
        self._clock = clock
        self._metrics = metrics
        self._ahead = ahead
        self._lease_patience_s = lease_patience_s
        self._learned = learned
        self._traces = traces
        self._running: dict[str, asyncio.Task[Renewal]] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._closed = False

    def arm(self, account_id: str, stored: Stored | None) -> None:
        """Wake up when the grant is due; forget the account where there is none."""
        if (timer := self._timers.pop(account_id, None)) is not None:
            timer.cancel()
        due_ms = due_at_ms(stored.grant, self._ahead) if stored is not None else None
        if due_ms is not None:
            self._sleep(account_id, (due_ms - self._clock.now_ms()) / 1000, due_ms)

    async def demand(self, account_id: str, demand: Demand) -> Renewal:
        """Renew now unless that turns out to be needless, and return how it ended. Many callers share one renewal."""
        while True:
            running = self._running.get(account_id)
            if running is None:
                return await asyncio.shield(self._begin(account_id, demand))
            ended = await asyncio.shield(running)
            # It may have begun before this caller's reason existed; then it is looked into once more.
            if demand == Demand() or ended.outcome is not Outcome.NOT_DUE:
                return ended
            # Awaiting what is done already takes no turn of the loop; its end is only noted in the next one.
            await asyncio.sleep(0)

    async def close(self, grace_s: float) -> None:
        """Begin nothing more; let what runs come to its end, so that no successor that was read is dropped."""
        self._closed = True
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        if self._running:
            await asyncio.wait(self._running.values(), timeout=grace_s)
        for account_id in self._running:
            log.error("renewal_cut_off", account=account_id)

    # ------------------------------------------------------------------ inside

    def _sleep(self, account_id: str, wait_s: float, due_ms: int) -> None:
        if self._closed:
            return
        if (timer := self._timers.get(account_id)) is not None:
            timer.cancel()
        wait_s = min(LONGEST_NAP_S, max(0.0, wait_s))
        self._timers[account_id] = asyncio.get_running_loop().call_later(wait_s, self._wake, account_id, due_ms)

    def _wake(self, account_id: str, due_ms: int) -> None:
        self._timers.pop(account_id, None)
        if account_id in self._running:
            return    # it arms again at its end
        if due_ms > self._clock.now_ms():
            self._sleep(account_id, (due_ms - self._clock.now_ms()) / 1000, due_ms)
        elif not self._closed:
            self._begin(account_id, Demand())

    def _begin(self, account_id: str, demand: Demand) -> asyncio.Task[Renewal]:
        task = asyncio.create_task(self._renew(account_id, demand))
        self._running[account_id] = task
        began_s = self._clock.monotonic_s()
        task.add_done_callback(lambda _: self._ended(account_id, task, began_s))
        return task

    async def _renew(self, account_id: str, demand: Demand) -> Renewal:
        try:
            async with self._slots, self._store.lease(account_id, self._lease_patience_s) as lasts:
                return await self._drive(renew(account_id, demand, self._clock, self._ahead), lasts)
        except LeaseBusy as e:
            return Renewal(Outcome.BUSY, None, str(e))
        except StoreUnavailable as e:
            return Renewal(Outcome.STORE_AWAY, None, str(e))

    def _ended(self, account_id: str, task: asyncio.Task[Renewal], began_s: float) -> None:
        """Take note of the outcome before anybody who waits does."""
        del self._running[account_id]
        if task.cancelled():
            return
        if (defect := task.exception()) is not None:
            log.error("renewal_defect", account=account_id, exc_info=defect)
            renewal = Renewal(Outcome.STORE_AWAY, None)
        else:
            renewal = task.result()
            self._tell(account_id, renewal, self._clock.monotonic_s() - began_s)
        if renewal.stored is not None and renewal.outcome is not Outcome.STORE_AWAY:
            self._learned(account_id, renewal.stored)
            self.arm(account_id, renewal.stored)    # a timer that went off meanwhile found this one running
        elif renewal.outcome is Outcome.GONE:
            self._learned(account_id, None)
        else:
            self._sleep(account_id, STORE_RETRY_S, 0)

    async def _drive(self, machine: Machine, lasts: Callable[[], bool]) -> Renewal:
        """Carry the machine's steps out until it returns."""
        result: Found | Answer | str | IdentityUnusable = None
        error: Conflict | StoreUnavailable | None = None
        while True:
            try:
                step = machine.throw(error) if error is not None else machine.send(result)
            except StopIteration as end:
                renewal: Renewal = end.value
                return renewal
            result, error = None, None
            try:
                if isinstance(step, Exchange) and not lasts():
                    raise Conflict("the lease ran out")
                result = await self._carry_out(step)
            except (Conflict, StoreUnavailable) as e:
                error = e

    async def _carry_out(self, step: Step) -> Found | Answer | str | IdentityUnusable:
        match step:
            case Read(account_id):
                return await self._store.read(account_id)
            case Write(grant, expected):
                stored = await self._store.write(grant, expected)
                self._learned(grant.account_id, stored)
                return stored
            case ReadIdentity(path):
                return await self._identities.read(path)
            case Exchange(request):
                return await self._endpoint.ask(request)
            case Pause(seconds):
                log.error("grant_not_kept_yet", retry_s=seconds)
                await asyncio.sleep(seconds)
                return None

    def _tell(self, account_id: str, renewal: Renewal, took_s: float) -> None:
        if renewal.outcome in _QUIET:
            return
        self._metrics.refreshes.labels(account_id, renewal.outcome.value).inc()
        if self._traces is not None:
            self._traces.renewed(account_id, renewal.outcome.value, took_s)
        if renewal.outcome is Outcome.RENEWED:
            assert renewal.stored is not None
            grant = renewal.stored.grant
            log.info("credential_renewed", account=account_id, version=grant.version, expires_at_ms=grant.expires_at_ms)
        elif renewal.outcome in _WARN:
            log.warning("credential_lost", account=account_id, reason=renewal.outcome.value, why=renewal.message)
        else:
            outcome = renewal.outcome.value
            log.warning("credential_not_renewed", account=account_id, outcome=outcome, why=renewal.message)
