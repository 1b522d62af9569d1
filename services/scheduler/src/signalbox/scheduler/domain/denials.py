"""Refusals: one function for each way to be refused, with the contract's code and a message that says what to do."""

from signalbox.scheduler.domain.policies import KeyPolicy
from signalbox.v1.scheduler_pb2 import Denial

LIMITED = ("requests", "tokens", "cost")


def _denial(
    code: str, message: str, key: KeyPolicy | None = None, retry_after_ms: int = 0, *, never_fits: bool = False,
) -> Denial:
    return Denial(
        error_code=code, message=message, retry_after_ms=retry_after_ms, never_fits=never_fits,
        key_id=key.id if key else "", owner=key.owner if key else "",
    )


def unavailable(why: str = "The scheduler cannot decide right now") -> Denial:
    """Refuse because the scheduler itself cannot decide."""
    return _denial("scheduler_unavailable", f"{why}; please try again in a moment.", retry_after_ms=1000)


def key_invalid() -> Denial:
    """Refuse a key that nobody knows."""
    return _denial("key_invalid", "This relay key is not known here. Check it, or ask its administrator for another.")


def key_expired(key: KeyPolicy) -> Denial:
    """Refuse a key whose time is over."""
    return _denial("key_expired", "This relay key has expired. Ask whoever gave it to you for another.", key)


def key_paused(key: KeyPolicy) -> Denial:
    """Refuse a key that was paused."""
    return _denial("key_paused", "This relay key is paused. Ask its administrator to resume it.", key)


def pool_not_allowed(key: KeyPolicy) -> Denial:
    """Refuse a key that names a pool it may not use."""
    return _denial(
        "pool_not_allowed", "This relay key names a pool that its namespace may not use. Ask its administrator.", key,
    )


def client_not_allowed(key: KeyPolicy) -> Denial:
    """Refuse a client program that the key is not for."""
    allowed = ", ".join(sorted(key.clients))
    return _denial("client_not_allowed", f"This relay key may be used with {allowed} only.", key)


def source_not_allowed(key: KeyPolicy) -> Denial:
    """Refuse a caller's address."""
    return _denial("source_not_allowed", "This relay key may not be used from your network address.", key)


def model_not_allowed(key: KeyPolicy, model: str) -> Denial:
    """Refuse a model that the key may not ask for."""
    return _denial("model_not_allowed", f"This relay key may not use the model {model!r}; choose another model.", key)


def key_limit(key: KeyPolicy, dimension: int, name: str, retry_after_ms: int, *, never_fits: bool) -> Denial:
    """Refuse because a limit of the key has no room. `dimension`: 1 requests, 2 tokens, 3 cost.

    `retry_after_ms` 0: time alone makes no room, so that asking again is no use.
    """
    what = LIMITED[dimension - 1]
    if never_fits:
        message = f"This request is larger than the limit {name!r} of this relay key ever allows ({what})."
    elif retry_after_ms:
        message = f"The limit {name!r} of this relay key is used up ({what}); try again later."
    else:
        message = f"The limit {name!r} of this relay key is used up ({what}); ask its administrator for more."
    return _denial(f"key_limit_{what}", message, key, retry_after_ms, never_fits=never_fits or not retry_after_ms)


def key_limit_concurrency(key: KeyPolicy) -> Denial:
    """Refuse because too many requests of the key run."""
    return _denial(
        "key_limit_concurrency", f"This relay key may run {key.concurrency} requests at once; wait for one to end.",
        key, 1000,
    )


def pool_empty(key: KeyPolicy) -> Denial:
    """Refuse because there is no account at all."""
    return _denial("pool_empty", "No account belongs to the pools of this relay key. Tell its administrator.", key)


def no_account_for_model(key: KeyPolicy, model: str) -> Denial:
    """Refuse because no member serves the model."""
    return _denial(
        "no_account_for_model", f"No account of this relay key's pools serves the model {model!r}.", key,
    )


def pool_limited(key: KeyPolicy, retry_after_ms: int) -> Denial:
    """Refuse because all accounts that could serve rest or are full."""
    message = "All accounts that could serve this request rest or are full; try again later."
    return _denial("pool_limited", message, key, max(retry_after_ms, 1000))


def larger_than_accounts(key: KeyPolicy) -> Denial:
    """Refuse what is larger than the own limits of every account that could serve ever allow."""
    message = "This request is larger than the limits of the accounts that could serve it ever allow; send less."
    return _denial("pool_limited", message, key, never_fits=True)


def pool_unavailable(key: KeyPolicy) -> Denial:
    """Refuse because all accounts that serve the model have a fault."""
    return _denial(
        "pool_unavailable", "No account of this relay key's pools is in working order. Tell its administrator.", key,
        0,
    )


def pin_refused(key: KeyPolicy, retry_after_ms: int, *, heals: bool) -> Denial:
    """Refuse to move a conversation to another account."""
    if heals:
        message = "The account that holds this conversation rests, and the conversation may not move; try again later."
        return _denial("pool_limited", message, key, max(retry_after_ms, 1000))
    message = "The account that holds this conversation cannot serve, and the conversation may not move; begin anew."
    return _denial("pool_unavailable", message, key)
