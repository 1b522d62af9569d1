"""What goes to the Redis functions and what comes back. The functions themselves are in lua/.

Field names are those that the functions read; times are Unix milliseconds, money nano-dollars.
"""

from functools import cached_property
from typing import Any, Final

import msgspec

_pack: Final = msgspec.msgpack.Encoder().encode
NEVER_MS: Final = 9_000_000_000_000
NOTHING: Final = (0, 0)
"""Neither tokens nor cost."""


NO_EFFECT: Final = ("", "", 0, "", 0.0)
COUNT_TOKENS: Final = "count_tokens"
"""The route that counts against nothing."""


def lease_id(request_id: str, attempt: int) -> str:
    """Name a lease so that repeating the call that created it finds it again."""
    return f"{request_id}.{attempt}"


class Limit(msgspec.Struct, array_like=True, frozen=True):
    """One limit of a key; -1 where a dimension is not limited."""

    name: str
    per: str
    requests: int
    tokens: int
    cost: int
    strict: int


class Cap(msgspec.Struct, array_like=True, frozen=True):
    """One known cap of an account; -1 where a dimension is not limited."""

    per: str
    requests: int
    input_tokens: int
    output_tokens: int


class Candidate(msgspec.Struct, array_like=True, frozen=True, dict=True):
    """One account that may be granted. `pool` counts from 1; `draining` accounts serve their pins only."""

    account: str
    group: str
    max_concurrency: int
    pool: int
    model: str
    model_class: str
    limits: tuple[Limit, ...]
    caps: tuple[Cap, ...]
    draining: int

    @cached_property
    def packed(self) -> msgspec.Raw:
        """The candidate as a text of its own; made once, as the same ones are offered again and again."""
        return _text(_pack(self))


class Take(msgspec.Struct, kw_only=True):
    """Admit a request to the first candidate that has room.

    `version` is the registry's as the caller knows it; where `names` are given, their `versions` decide instead.
    `counts`: 1 where the request counts against request limits. `usual` and `worst` are (tokens, cost) to reserve,
    `sizes` (input, output tokens) for accounts' caps. `pools` are (id, pin's time to live, 1 where a pin whose account
    cannot serve refuses). `session` is the pin's name; `hint` the pinned account as far as known. Where that is no
    candidate, `hint_state` says why (elsewhere: serve elsewhere and leave the pin; anything else moves or refuses it)
    and `refuse` what its pool says. `turn`: 1 for a request that has waited, which need not stand behind others;
    `hurry`: 1 where it will not wait for a full pinned account.
    """

    id: str
    key: str
    owner: str
    attempt: int
    tried: tuple[str, ...] = ()
    version: str
    names: list[str] = []
    versions: list[str] = []
    life: int = 0
    most: int = 0
    counts: int = 0
    limits: tuple[Limit, ...] = ()
    usual: tuple[int, int] = NOTHING
    worst: tuple[int, int] = NOTHING
    sizes: tuple[int, int] = NOTHING
    cands: list[Candidate] = []
    pools: list[tuple[str, int, int]] = []
    session: str = ""
    pin_ttl: int = 0
    hint: str = ""
    hint_state: str = ""
    refuse: int = 0
    bound: int = 0
    turn: int = 0
    hurry: int = 0


class Settle(msgspec.Struct, kw_only=True):
    """End a lease. `effect` is (kind, reason, until, model class, jitter 0..1); `windows` are names and values."""

    id: str
    tokens: int = 0
    cost: int = 0
    input: int = 0
    output: int = 0
    effect: tuple[str, str, int, str, float] = NO_EFFECT
    ok: int = 0
    ended: int = 0
    gateway: str = ""
    unused: int = 0
    windows: tuple[str, ...] = ()


class Retake(Take, kw_only=True):
    """Settle `failed` and admit again; `last` 1 where this decides: nothing more is offered and nobody waits."""

    failed: Settle
    last: int


class Enqueue(msgspec.Struct, tag_field="op", tag="enqueue"):
    """Have a request wait, or renew its place: `queue` holds at most `most`; it waits until `till` (Unix ms)."""

    id: str
    key: str
    queue: str
    lanes: tuple[str, ...]
    most: int
    till: int


class Leave(msgspec.Struct, tag_field="op", tag="leave"):
    """Have a request wait no longer; `held` is the failed lease whose slot was kept for it, "" for none."""

    id: str
    key: str
    queue: str
    lanes: tuple[str, ...]
    held: str


class Reap(Settle, kw_only=True):
    """Settle a lease that expired."""


def encode(operation: msgspec.Struct | dict[str, Any]) -> bytes:
    """Return an operation as the functions read it (lua/3_common.lua).

    The frequent ones are plain values one after another, in an agreed order: what they repeat from request to request
    is packed by itself, so that the functions know it again instead of reading it.
    """
    if isinstance(operation, Take):
        return _encode_take(operation)
    if isinstance(operation, Settle):
        return _encode_settle(operation)
    return _pack(operation)


_LONG_TEXT: Final = b"\xdb"
_LONG_ARRAY, _SHORT_ARRAY = 3, 1
"""Bytes before the values of an array of more than 15, and of one of fewer."""


def _encode_take(t: Take) -> bytes:
    op, failed, last = ("retry", _text(encode(t.failed)), t.last) if isinstance(t, Retake) else ("admit", None, 0)
    return _pack((
        op, t.id, t.key, t.owner, t.attempt, t.version, t.life, t.most, t.counts, *t.usual, *t.worst, *t.sizes,
        _text(_pack(t.limits)), [c.packed for c in t.cands] or None, _text(_pack(t.pools)),
        t.session, t.pin_ttl, t.hint, t.hint_state, t.refuse, t.bound, t.turn, t.hurry,
        t.tried or None, t.names or None, t.versions or None, failed, last,
    ))[_LONG_ARRAY:]


def _encode_settle(s: Settle) -> bytes:
    return _pack((
        "reap" if isinstance(s, Reap) else "settle", s.id, s.tokens, s.cost, s.input, s.output,
        s.effect if s.effect[0] else None, s.ok, s.ended, s.gateway, s.unused, s.windows or None,
    ))[_SHORT_ARRAY:]


def _text(packed: bytes) -> msgspec.Raw:
    """Return what is packed already as a text: the functions' msgpack knows no bytes."""
    return msgspec.Raw(_LONG_TEXT + len(packed).to_bytes(4, "big") + packed)


class Head(msgspec.Struct, rename={
    "epoch": "e", "admitted_ms": "t", "key_id": "key", "account_id": "account", "pool_id": "pool",
}):
    """What a lease token says before the request itself."""

    epoch: str
    admitted_ms: int
    key_id: str
    account_id: str
    group: str
    pool_id: str
    model: str
    model_class: str = msgspec.field(name="class")
    attempt: int = 0
    tried: tuple[str, ...] = ()
    owner: str = ""
    probe: bool = False
    charges: tuple[tuple[Any, ...], ...] = ()


class HealthRecord(msgspec.Struct, rename={
    "kind": "k", "reason": "w", "until_ms": "u", "set_ms": "a", "failures": "f", "probe": "p",
}):
    """Why an account or limit group is kept out; see lua/2_health.lua."""

    kind: str
    reason: str
    until_ms: float
    set_ms: float
    failures: float
    probe: str


_decode_head = msgspec.msgpack.Decoder(Head).decode
decode_health: Final = msgspec.msgpack.Decoder(HealthRecord).decode


def measures_amounts(head: Head) -> bool:
    """Whether any counter that the lease is charged to counts tokens or cost."""
    return any(c[4] >= 0 or c[5] >= 0 for c in head.charges)


_decode_numbers = msgspec.msgpack.Decoder(list[int]).decode
_REPORT: Final = 7


def read_reports(packed: bytes) -> list[list[int]]:
    """Return a report for each limit: used and reserved for each dimension, then when the period ends (0: never)."""
    numbers = _decode_numbers(packed) if packed else []
    return [numbers[i : i + _REPORT] for i in range(0, len(numbers), _REPORT)]


def read_token(token: bytes) -> tuple[Head, bytes]:
    """Return a lease token's head and the serialised AdmitRequest. Raises ValueError for what is no token."""
    length = int.from_bytes(token[:2], "big")
    if len(token) < 2 + length or length == 0:
        raise ValueError("not a lease token")
    try:
        return _decode_head(token[2 : 2 + length]), token[2 + length :]
    except msgspec.MsgspecError as e:
        raise ValueError("not a lease token") from e
