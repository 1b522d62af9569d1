"""A connection to one API server: read, list, apply, patch, create and delete plain objects.

In a pod its service account is used, whose token is read anew when it has been rotated; elsewhere the kubeconfig that
KUBECONFIG names, or ~/.kube/config. Every call raises Unavailable where the API server cannot be reached or is
overloaded, Refused with the API's own reason (`NotFound`, `Conflict`, `Forbidden`, `Invalid`, ...) where it says no.
"""

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx2
from lightkube import AsyncClient
from lightkube.config.client_adapter import verify_cluster
from lightkube.config.kubeconfig import KubeConfig, SingleConfig
from lightkube.core.exceptions import ApiError, ConfigError
from lightkube.types import PatchType

from signalbox.core.errors import Refused, StartupError, Unavailable
from signalbox.core.tls import not_by_form
from signalbox.kube.kinds import KINDS

API = "the Kubernetes API"
_PAGE = 500
_TRY_AGAIN = frozenset({429, 500, 502, 503, 504})

Object = dict[str, Any]


class Cluster:
    """One API server, as one identity. Use it with `async with`."""

    def __init__(self, config: SingleConfig, field_manager: str, timeout_s: float) -> None:
        self.namespace = config.namespace
        """The namespace of the kubeconfig's context, or of the pod."""
        self.where = config.cluster.server
        self._manager = field_manager
        # The calls are overloaded by class, which is chosen here at run time.
        self._client: Any = AsyncClient(
            config, field_manager=field_manager, timeout=httpx2.Timeout(timeout_s), transport=_transport(config),
        )

    async def __aenter__(self) -> Self:
        """Return the connection; it opens at the first call."""
        return self

    async def __aexit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None,
    ) -> None:
        """Close it."""
        await self._client.aclose()

    async def get(self, kind: str, name: str, namespace: str | None = None) -> Object | None:
        """Return one object, None where it does not exist."""
        try:
            with _own_errors():
                return dict(await self._client.get(KINDS[kind], name, **_in(namespace)))
        except Refused as e:
            if e.code == "NotFound":
                return None
            raise

    async def list(
        self, kind: str, namespace: str | None, take: Callable[[Object], None], *,
        labels: Mapping[str, str] | None = None,
    ) -> int:
        """Hand all objects of a kind (with these labels), in one namespace or in all, to `take`; return the version.

        Page by page, so that never all of them are kept. What is not in the list and older than it is gone.
        """
        where: dict[str, Any] = {} if kind == "Namespace" else {"namespace": namespace or "*"}
        if labels:
            where["labels"] = dict(labels)
        with _own_errors():
            found = self._client.list(KINDS[kind], chunk_size=_PAGE, **where)
            async for item in found:
                take(item)
            return int(found.resourceVersion)

    async def watch(self, kind: str, name: str) -> AsyncIterator[Object]:
        """Yield one cluster-wide object as it is, then after each of its changes, without end.

        A connection that has died silently is not noticed: stop after a while and begin anew.
        """
        with _own_errors():
            async for _, item in self._client.watch(KINDS[kind], fields={"metadata.name": name}):
                yield dict(item)

    async def create(self, body: Mapping[str, Any]) -> Object:
        """Create an object."""
        with _own_errors():
            return dict(await self._client.create(_typed(body)))

    async def replace(self, body: Mapping[str, Any]) -> Object:
        """Replace an object; its resourceVersion, where given, must be the present one."""
        with _own_errors():
            return dict(await self._client.replace(_typed(body)))

    async def apply(self, body: Mapping[str, Any], *, status: bool = False) -> Object:
        """Apply the fields of `body` as ours alone, server-side; `status` applies that subresource.

        Fields that we applied before and that are not in `body` go away; those of others stay.
        """
        kind = KINDS[str(body["kind"])]
        metadata = body["metadata"]
        with _own_errors():
            return dict(await self._client.patch(
                kind.Status if status else kind, metadata["name"], dict(body), **_in(metadata.get("namespace")),
                patch_type=PatchType.APPLY, field_manager=self._manager, force=True,
            ))

    async def edit(self, kind: str, name: str, namespace: str, operations: Sequence[Object]) -> Object:
        """Carry out the operations of a JSON Patch (RFC 6902), all of them or, where a `test` fails, none."""
        with _own_errors():
            return dict(await self._client.patch(
                KINDS[kind], name, list(operations), namespace=namespace, patch_type=PatchType.JSON,
                field_manager=self._manager,
            ))

    async def delete(self, kind: str, name: str, namespace: str) -> None:
        """Delete an object."""
        with _own_errors():
            await self._client.delete(KINDS[kind], name, namespace=namespace)


def connect(
    field_manager: str, *, kubeconfig: Path | None = None, context: str | None = None, timeout_s: float = 10.0,
) -> Cluster:
    """Return a connection to the cluster that kubectl would use. Raises StartupError where none is configured."""
    try:
        config = KubeConfig.from_file(kubeconfig) if kubeconfig else KubeConfig.from_env()
        chosen = config.get(context)
        assert chosen is not None, "no default was offered"
        return Cluster(chosen, field_manager, timeout_s)
    except (ConfigError, KeyError, OSError, ValueError) as e:
        raise StartupError(str(kubeconfig or "kubeconfig"), str(e) or type(e).__name__) from e


def _transport(config: SingleConfig) -> httpx2.AsyncHTTPTransport:
    """Return the client's own, but for how it verifies; one that is given does not read the environment's proxies."""
    assert config.user is not None, "a context names one"
    server = urlsplit(config.cluster.server)
    proxies = {} if proxy_bypass(server.netloc) else getproxies()
    return httpx2.AsyncHTTPTransport(
        verify=not_by_form(verify_cluster(config.cluster, config.user, config.abs_file)),
        proxy=proxies.get(server.scheme) or proxies.get("all"),
    )


def _in(namespace: str | None) -> dict[str, str]:
    return {} if namespace is None else {"namespace": namespace}


def _typed(body: Mapping[str, Any]) -> Any:
    return KINDS[str(body["kind"])](dict(body))


@contextmanager
def _own_errors() -> Iterator[None]:
    """Say what went wrong in the words of our own tree. Answers are never quoted: they can hold what was sent."""
    try:
        yield
    except ApiError as e:
        status = e.status
        if status.code in _TRY_AGAIN:
            raise Unavailable(API, f"{status.code} {status.reason}") from e
        raise Refused(str(status.reason or status.code), str(status.message or "")) from e
    except httpx2.HTTPStatusError as e:
        code = e.response.status_code
        if code in _TRY_AGAIN:
            raise Unavailable(API, str(code)) from e
        raise Refused("Forbidden" if code in (401, 403) else str(code), "the API server said no") from e
    except (httpx2.HTTPError, ConfigError) as e:
        raise Unavailable(API, f"{type(e).__name__} {e}".strip()) from e
