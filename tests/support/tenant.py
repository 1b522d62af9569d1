"""One tenant's documents in a cluster, applied as its people would. Imports nothing of the product."""

import hashlib

from tests.support.instance import account, relay_key, secret
from tests.support.kube import SOON_S, Api, placed, within
from tests.support.release import Release

ACCOUNT_KEY = "sk-ant-k8s-account-key-nobody-may-see-"


def account_key(namespace: str, name: str = "acme") -> str:
    """Return the provider's key of a tenant's account."""
    return f"{ACCOUNT_KEY}{namespace}-{name}"


def at_provider(key: str) -> str:
    """Return what the simulated provider, which takes any key, calls the account that a key opens."""
    return "open-" + hashlib.sha256(key.encode()).hexdigest()[:8]


def relay_key_text(namespace: str, name: str = "ada") -> str:
    """Return the text of a tenant's relay key."""
    return f"sbx_k8s_relay_key_of_{namespace}_{name}_nobody_may_see"


def apply_account(api: Api, namespace: str, url: str, name: str = "acme", **spec: object) -> None:
    """Apply an account and its Secret."""
    api.apply(placed(secret(name, **{"api-key": account_key(namespace, name)}), namespace), force=True)
    api.apply(placed(account(name, url, **spec), namespace), force=True)


def apply_key(api: Api, namespace: str, name: str = "ada", **spec: object) -> str:
    """Apply a key and its Secret; return the key's text."""
    text = relay_key_text(namespace, name)
    api.apply(placed(secret(name, **{"relay-key": text}), namespace), force=True)
    api.apply(placed(relay_key(name, **spec), namespace), force=True)
    return text


def served(release: Release, key: str, limit_s: float = SOON_S) -> None:
    """Wait until a key is served."""
    try:
        within(limit_s, lambda: release.call(key)[0] == 200)
    except AssertionError as e:
        said = "".join(line for room in ("operator", "scheduler", "token_refresher") for line in release.log[room][-15:])
        raise AssertionError(f"not served: {release.call(key)}\n{said}") from e


def tenant(api: Api, release: Release, namespace: str, url: str) -> str:
    """Apply one account and one key, wait until they serve, and return the key's text."""
    apply_account(api, namespace, url)
    key = apply_key(api, namespace)
    served(release, key)
    return key
