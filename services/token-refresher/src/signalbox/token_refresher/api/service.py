"""The contract's TokenRefresher service: translates between messages and the keeper. Decisions are in domain/."""

import asyncio
from typing import Any

import grpc
import grpc.aio

from signalbox.core import logs
from signalbox.core.errors import Unavailable
from signalbox.token_refresher.adapters.prober import probe
from signalbox.token_refresher.api.keeper import Keeper
from signalbox.token_refresher.domain.grants import Credential, GrantRejected, Seed, Standing, credential_to_probe
from signalbox.v1 import token_refresher_pb2 as pb
from signalbox.v1.token_refresher_pb2_grpc import TokenRefresherServicer

log = logs.logger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
Code = grpc.StatusCode
NO_INTERACTIVE_LOGIN = "interactive OAuth authorisation is not implemented yet; seed the grant with a refresh token"


class TokenRefresherService(TokenRefresherServicer):
    """Serves credentials and their state."""

    def __init__(self, keeper: Keeper, probe_limit_s: float) -> None:
        self._keeper = keeper
        self._probe_limit_s = probe_limit_s
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """End all watches."""
        self._stopping.set()

    async def GetCredential(self, request: pb.GetCredentialRequest, context: Context) -> pb.Credential:  # noqa: N802
        account_id = request.account_id
        if request.rejected_version:
            try:
                await self._keeper.reject(account_id, request.rejected_version)
            except Unavailable as e:
                await context.abort(Code.UNAVAILABLE, str(e))
        found = self._keeper.credential(account_id)
        if found is None:
            standing = self._keeper.standing(account_id)
            if standing is None:
                await context.abort(Code.NOT_FOUND, "there is no grant of this account")
            # Callers branch on the reason, so it is the whole detail; Status has the message.
            await context.abort(Code.FAILED_PRECONDITION, str(standing.reason) if standing else "")
            raise AssertionError("abort raises")
        return _credential(found)

    async def Watch(self, request: pb.WatchCredentialsRequest, context: Context) -> Any:  # noqa: N802
        stopping = asyncio.ensure_future(self._stopping.wait())
        with self._keeper.watch() as changes:
            try:
                for account_id in self._keeper.accounts():
                    if (found := self._keeper.credential(account_id)) is not None:
                        yield _put(found)
                yield pb.CredentialEvent(type=pb.CredentialEvent.SYNCED)
                while not stopping.done():
                    taking = asyncio.ensure_future(changes.take())
                    try:
                        await asyncio.wait((taking, stopping), return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        taking.cancel()
                    for account_id in taking.result() if taking.done() and not taking.cancelled() else ():
                        yield self._event(account_id)
            finally:
                stopping.cancel()

    async def PutGrant(self, request: pb.PutGrantRequest, context: Context) -> pb.GrantStatus:  # noqa: N802
        seed = Seed(
            request.account_id, request.kind, dict(request.material), dict(request.config), request.seed_version,
        )
        try:
            await self._keeper.put(seed)
        except GrantRejected as e:
            await context.abort(Code.INVALID_ARGUMENT, str(e))
        except Unavailable as e:
            await context.abort(Code.UNAVAILABLE, str(e))
        return self._status(request.account_id)

    async def DeleteGrant(  # noqa: N802
        self, request: pb.DeleteGrantRequest, context: Context,
    ) -> pb.DeleteGrantResponse:
        try:
            await self._keeper.delete(request.account_id)
        except Unavailable as e:
            await context.abort(Code.UNAVAILABLE, str(e))
        return pb.DeleteGrantResponse()

    async def Status(self, request: pb.GrantStatusRequest, context: Context) -> pb.GrantStatusResponse:  # noqa: N802
        known = self._keeper.accounts()
        wanted = [account for account in request.account_ids if account in known] if request.account_ids else known
        return pb.GrantStatusResponse(grants=[self._status(account_id) for account_id in wanted])

    async def Probe(self, request: pb.ProbeRequest, context: Context) -> pb.ProbeResponse:  # noqa: N802
        grant = self._keeper.grant(request.account_id)
        if grant is None:
            await context.abort(Code.NOT_FOUND, "there is no grant of this account")
            raise AssertionError("abort raises")
        credential = credential_to_probe(grant)
        if credential is None:
            await context.abort(Code.FAILED_PRECONDITION, str(_known(self._keeper.standing(request.account_id)).reason))
            raise AssertionError("abort raises")
        base_url = request.base_url or grant.seed.config.get("baseURL", "")
        verdict = await probe(credential, base_url, request.model, self._probe_limit_s)
        log.info("account_probed", account=grant.account_id, status=verdict.status, error_type=verdict.error_type)
        try:
            if verdict.ok:
                await self._keeper.prove(grant.account_id, credential.version)
            elif verdict.status == 401:
                await self._keeper.reject(grant.account_id, credential.version)
        except Unavailable as e:
            await context.abort(Code.UNAVAILABLE, str(e))
        return pb.ProbeResponse(
            ok=verdict.ok, status=verdict.status, error_type=verdict.error_type, message=verdict.message,
            duration_ms=verdict.duration_ms, input_tokens=verdict.input_tokens,
        )

    async def BeginAuthorization(  # noqa: N802
        self, request: pb.BeginAuthorizationRequest, context: Context,
    ) -> pb.BeginAuthorizationResponse:
        await context.abort(Code.UNIMPLEMENTED, NO_INTERACTIVE_LOGIN)
        raise AssertionError("abort raises")

    async def CompleteAuthorization(  # noqa: N802
        self, request: pb.CompleteAuthorizationRequest, context: Context,
    ) -> pb.GrantStatus:
        await context.abort(Code.UNIMPLEMENTED, NO_INTERACTIVE_LOGIN)
        raise AssertionError("abort raises")

    def _event(self, account_id: str) -> pb.CredentialEvent:
        found = self._keeper.credential(account_id)
        if found is None:
            return pb.CredentialEvent(type=pb.CredentialEvent.REMOVED, account_id=account_id)
        return _put(found)

    def _status(self, account_id: str) -> pb.GrantStatus:
        standing = _known(self._keeper.standing(account_id))
        status = pb.GrantStatus(
            account_id=account_id, valid=standing.valid, reason=standing.reason, message=standing.message,
        )
        grant = self._keeper.grant(account_id)
        if grant is not None:
            status.kind, status.seed_version, status.version = grant.seed.kind, grant.seed.version, grant.version
            status.refreshed_at_ms = grant.seeded_at_ms
        return status


def _known(standing: Standing | None) -> Standing:
    assert standing is not None, "asked of accounts that exist"
    return standing


def _put(credential: Credential) -> pb.CredentialEvent:
    return pb.CredentialEvent(
        type=pb.CredentialEvent.PUT, account_id=credential.account_id, credential=_credential(credential),
    )


def _credential(credential: Credential) -> pb.Credential:
    return pb.Credential(
        account_id=credential.account_id, version=credential.version, expires_at_ms=credential.expires_at_ms,
        headers=[pb.Header(name=name, value=value) for name, value in credential.headers],
        proxy_url=credential.proxy_url,
    )
