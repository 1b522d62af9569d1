"""The contract's TokenRefresher service: translates between messages and the keeper. Decisions are in domain/."""

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from signalbox.core import logs
from signalbox.core.errors import Unavailable
from signalbox.token_refresher.api.authorizations import Authorizations
from signalbox.token_refresher.api.keeper import Keeper
from signalbox.token_refresher.domain.authorization import AuthorizationRefused
from signalbox.token_refresher.domain.credentials import Credential, Standing, credential_to_probe
from signalbox.token_refresher.domain.grants import Grant, GrantRejected, Reason, Seed
from signalbox.token_refresher.domain.schedule import Ahead, due_at_ms
from signalbox.v1 import token_refresher_pb2 as pb
from signalbox.v1.token_refresher_pb2_grpc import TokenRefresherServicer

if TYPE_CHECKING:
    from signalbox.token_refresher.adapters.prober import Verdict

log = logs.logger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
Code = grpc.StatusCode
UNAUTHORISED = 401
_PASSING = frozenset((Reason.REFRESH_FAILING, Reason.REFRESH_PENDING))


class TokenRefresherService(TokenRefresherServicer):
    """Serves credentials and their state."""

    def __init__(self, keeper: Keeper, authorizations: Authorizations, ahead: Ahead, probe_limit_s: float) -> None:
        self._keeper = keeper
        self._authorizations = authorizations
        self._ahead = ahead
        self._probe_limit_s = probe_limit_s
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """End all watches."""
        self._stopping.set()

    async def GetCredential(self, request: pb.GetCredentialRequest, context: Context) -> pb.Credential:  # noqa: N802
        account_id = request.account_id
        try:
            found = await self._keeper.fresh_credential(account_id, request.rejected_version)
        except Unavailable as e:
            await context.abort(Code.UNAVAILABLE, str(e))
            raise AssertionError("abort raises") from e
        if found is None:
            standing = self._keeper.standing(account_id)
            if standing is None:
                await context.abort(Code.NOT_FOUND, "there is no grant of this account")
                raise AssertionError("abort raises")
            # Callers branch on the reason, so it is the whole detail; Status has the message.
            passing = standing.reason in _PASSING
            await context.abort(Code.UNAVAILABLE if passing else Code.FAILED_PRECONDITION, str(standing.reason))
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
        account_id = request.account_id
        grant = self._keeper.grant(account_id)
        if grant is None:
            await context.abort(Code.NOT_FOUND, "there is no grant of this account")
            raise AssertionError("abort raises")
        base_url = request.base_url or grant.seed.config.get("baseURL", "")
        try:
            verdict = await self._probe(grant, base_url, request.model)
        except Unavailable as e:
            await context.abort(Code.UNAVAILABLE, str(e))
            raise AssertionError("abort raises") from e
        if verdict is None:
            standing = _known(self._keeper.standing(account_id))
            passing = standing.reason in _PASSING
            message = f"{standing.reason}: {standing.message}" if grant.renewable else str(standing.reason)
            await context.abort(Code.UNAVAILABLE if passing else Code.FAILED_PRECONDITION, message)
            raise AssertionError("abort raises")
        log.info("account_probed", account=account_id, status=verdict.status, error_type=verdict.error_type)
        return pb.ProbeResponse(
            ok=verdict.ok, status=verdict.status, error_type=verdict.error_type, message=verdict.message,
            duration_ms=verdict.duration_ms, input_tokens=verdict.input_tokens,
        )

    async def _probe(self, grant: Grant, base_url: str, model: str) -> "Verdict | None":
        """Make the call, with another token where the first one is refused; None: there is nothing to make it with."""
        # Imported where it is used: the HTTP client is an eighth of what a start costs, and few ever need it.
        from signalbox.token_refresher.adapters.prober import probe  # noqa: PLC0415

        account_id = grant.account_id
        credential = credential_to_probe(grant, 0) if not grant.renewable else None
        credential = credential or await self._keeper.tested_credential(account_id)
        if credential is None:
            return None
        verdict = await probe(credential, base_url, model, self._probe_limit_s)
        if verdict.status == UNAUTHORISED:
            fresh = await self._keeper.fresh_credential(account_id, credential.version)
            if fresh is not None and fresh.version != credential.version:
                credential = fresh
                verdict = await probe(credential, base_url, model, self._probe_limit_s)
        if verdict.ok:
            await self._keeper.prove(account_id, credential.version)
        return verdict

    async def BeginAuthorization(  # noqa: N802
        self, request: pb.BeginAuthorizationRequest, context: Context,
    ) -> pb.BeginAuthorizationResponse:
        try:
            url, state = self._authorizations.begin(request.account_id, request.redirect_uri)
        except AuthorizationRefused as e:
            await context.abort(Code.FAILED_PRECONDITION, str(e))
            raise AssertionError("abort raises") from e
        return pb.BeginAuthorizationResponse(authorization_url=url, state=state)

    async def CompleteAuthorization(  # noqa: N802
        self, request: pb.CompleteAuthorizationRequest, context: Context,
    ) -> pb.GrantStatus:
        try:
            account_id = await self._authorizations.complete(request.state, request.code)
        except AuthorizationRefused as e:
            await context.abort(Code.FAILED_PRECONDITION, str(e))
            raise AssertionError("abort raises") from e
        except Unavailable as e:
            await context.abort(Code.UNAVAILABLE, str(e))
            raise AssertionError("abort raises") from e
        return self._status(account_id)

    def _event(self, account_id: str) -> pb.CredentialEvent:
        found = self._keeper.credential(account_id)
        if found is None:
            return pb.CredentialEvent(type=pb.CredentialEvent.REMOVED, account_id=account_id)
        return _put(found)

    def _status(self, account_id: str) -> pb.GrantStatus:
        standing = _known(self._keeper.standing(account_id))
        status = pb.GrantStatus(
            account_id=account_id, valid=standing.valid, reason=standing.reason, message=standing.message,
            last_transition_ms=self._keeper.since_ms(account_id),
        )
        grant = self._keeper.grant(account_id)
        if grant is not None:
            status.kind, status.seed_version, status.version = grant.seed.kind, grant.seed.version, grant.version
            status.refreshed_at_ms = grant.issued_at_ms or grant.seeded_at_ms
            status.expires_at_ms = grant.expires_at_ms
            status.next_refresh_at_ms = due_at_ms(grant, self._ahead) or 0
            status.healings = grant.healings
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
