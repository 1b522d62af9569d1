"""Who calls, and whether the key may be used at all, before a large body is read or where no account is wanted.

Only unknown keys are remembered, and for two seconds; that a key may be used is asked every time.
"""

from collections.abc import Sequence

from signalbox.core.clock import Clock
from signalbox.gateway.domain.caller import MISTYPED, Caller, Network, is_mistyped
from signalbox.gateway.domain.order import Order
from signalbox.gateway.domain.ports import Scheduler, SchedulerUnavailable
from signalbox.gateway.domain.refusal import Refusal, from_denial, scheduler_unavailable
from signalbox.v1.scheduler_pb2 import Denial, InspectResponse

UNKNOWN_KEPT_S = 2.0
MAX_UNKNOWN = 10_000


class KeyCheck:
    """Shared by the relay and the application."""

    def __init__(self, scheduler: Scheduler, trusted_proxies: Sequence[Network], clock: Clock) -> None:
        self._scheduler = scheduler
        self._trusted = trusted_proxies
        self._clock = clock
        self._unknown: dict[bytes, tuple[float, Denial]] = {}

    def identify(self, caller: Caller) -> None:
        """Find out who calls. Raises Refusal where no usable key is presented or the key is known unknown."""
        caller.identify(self._trusted)
        known = self._unknown.get(caller.key_hash)
        if known is not None and self._clock.monotonic_s() < known[0]:
            raise from_denial(known[1])

    async def inspect(
        self, order: Order, *, with_limits: bool = False, with_accounts: bool = False,
        allowed: frozenset[str] = frozenset(),
    ) -> InspectResponse:
        """Ask the scheduler about the key and note whose it is.

        Raises Refusal for a denial, unless its code is in `allowed`, and when no scheduler answers.
        """
        try:
            answer = await self._scheduler.inspect(
                order.inspection(with_limits=with_limits, with_accounts=with_accounts),
            )
        except SchedulerUnavailable as e:
            raise scheduler_unavailable() from e
        order.key_id, order.owner = answer.key_id, answer.owner
        if answer.HasField("denial") and answer.denial.error_code not in allowed:
            self.remember(order, answer.denial)
            refusal: Refusal = from_denial(answer.denial)
            refusal.key_id, refusal.owner = answer.key_id, answer.owner
            raise refusal
        return answer

    def remember(self, order: Order, denial: Denial) -> None:
        """Keep in mind, briefly, that no document has this key; of a mistyped one, let `denial` say so."""
        if denial.error_code != "key_invalid" or denial.key_id:
            return
        if is_mistyped(order.caller.headers):
            denial.message = MISTYPED
        if len(self._unknown) >= MAX_UNKNOWN:
            self._unknown.clear()
        self._unknown[order.caller.key_hash] = (self._clock.monotonic_s() + UNKNOWN_KEPT_S, denial)
