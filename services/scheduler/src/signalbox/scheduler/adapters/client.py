"""Which Redis: a client for one server, or for the primary that Sentinels name, by the URL in the settings."""

from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff

from signalbox.core.errors import StartupError
from signalbox.scheduler.settings import SchedulerSettings

_SENTINEL_PORT = 26379


class Sentinels(NamedTuple):
    """A `redis+sentinel://USER:PASSWORD@HOST:PORT,HOST:PORT/SERVICE/DB` URL taken apart."""

    hosts: list[tuple[str, int]]
    service: str
    username: str | None
    password: str | None
    db: int


def read_sentinels(url: str) -> Sentinels:
    """Take the URL apart. Raises ValueError where a part is missing or wrong."""
    parts = urlsplit(url)
    credentials, _, hosts = parts.netloc.rpartition("@")
    username, _, password = credentials.partition(":")
    service, _, db = parts.path.strip("/").partition("/")
    if not hosts or not service:
        raise ValueError("must name HOST:PORT,... and /SERVICE")
    return Sentinels(
        [_address(host) for host in hosts.split(",")], service, unquote(username) or None, unquote(password) or None,
        int(db or 0),
    )


def _address(text: str) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise ValueError("has an empty host")
    return parts.hostname, parts.port or _SENTINEL_PORT


def client(settings: SchedulerSettings) -> tuple[Any, str]:
    """Return a client that asks once and reports what fails, and where it leads, without a password.

    Raises StartupError where the URL can't be taken apart.
    """
    try:
        return _client(settings)
    except (ValueError, TypeError):
        # What was wrong is not quoted: a "/" in a password makes the half of it a port.
        raise StartupError(
            "SIGNALBOX_REDIS_URL", "can't be taken apart: it is SCHEME://USER:PASSWORD@HOST:PORT/DB, with a port up to "
            "65535; other characters than letters and digits in a password are written as %2F and the like",
        ) from None


def _client(settings: SchedulerSettings) -> tuple[Any, str]:
    url = settings.redis_url.get_secret_value()
    options: dict[str, Any] = {
        "socket_timeout": settings.redis_timeout_s, "socket_connect_timeout": settings.redis_timeout_s,
        "retry": Retry(NoBackoff(), 0), **_tls(url, settings),
    }
    scheme = url.partition("://")[0]
    if not scheme.endswith("+sentinel"):
        return Redis.from_url(url, **options), _without_password(url)
    if scheme.startswith("rediss"):
        options["ssl"] = True
    wanted = read_sentinels(url)
    sentinel_options = dict(options)
    if password := settings.redis_sentinel_password.get_secret_value():
        sentinel_options["password"] = password
    sentinel: Any = Sentinel(wanted.hosts, sentinel_kwargs=sentinel_options, **options)  # type: ignore[no-untyped-call]
    primary = sentinel.master_for(
        wanted.service, db=wanted.db, username=wanted.username, password=wanted.password, **options,
    )
    hosts = ",".join(f"{host}:{port}" for host, port in wanted.hosts)
    return primary, f"{scheme}://{hosts}/{wanted.service}"


def _tls(url: str, settings: SchedulerSettings) -> dict[str, str]:
    if not url.startswith("rediss"):
        return {}
    files = (
        ("ssl_ca_certs", settings.redis_ca_file), ("ssl_certfile", settings.redis_cert_file),
        ("ssl_keyfile", settings.redis_key_file),
    )
    return {name: str(path) for name, path in files if path is not None}


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    where = parts.path if parts.scheme == "unix" else f"{parts.hostname}:{parts.port or 6379}"
    return f"{parts.scheme}://{where}"
