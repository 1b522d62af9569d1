"""Interactive authorisation of an account with the operator's own OAuth client: begin, and complete with a code."""

import base64
import binascii

from signalbox.core.clock import Clock
from signalbox.token_refresher.adapters.sealing import Keyring, Unopened
from signalbox.token_refresher.api.keeper import Keeper
from signalbox.token_refresher.domain import authorization, oauth
from signalbox.token_refresher.domain.authorization import AuthorizationRefused
from signalbox.token_refresher.domain.grants import OAUTH, Seed
from signalbox.token_refresher.domain.ports import Endpoints


class Authorizations:
    """Begins and completes authorisations; keeps nothing in between."""

    def __init__(self, keeper: Keeper, endpoint: Endpoints, keyring: Keyring, clock: Clock) -> None:
        self._keeper = keeper
        self._endpoint = endpoint
        self._keyring = keyring
        self._clock = clock

    def begin(self, account_id: str, redirect_uri: str) -> tuple[str, str]:
        """Return the address for the operator's browser, and the state. Raises AuthorizationRefused."""
        seed = self._seed(account_id)
        begun = authorization.begin(account_id, seed.version, redirect_uri, self._clock.now_ms())
        sealed = self._keyring.seal(account_id, begun.write())
        state = base64.urlsafe_b64encode(sealed).rstrip(b"=").decode()
        return oauth.authorization_url(seed, redirect_uri, state, begun.verifier), state

    async def complete(self, state: str, code: str) -> str:
        """Exchange the code and keep what it brings; return the account. Raises AuthorizationRefused, Unavailable."""
        try:
            sealed = base64.urlsafe_b64decode(state + "=" * (-len(state) % 4))
            account_id, written = self._keyring.open(sealed)
        except (Unopened, binascii.Error, ValueError) as e:
            raise AuthorizationRefused("the state is not one that was given out here") from e
        begun = authorization.read(account_id, written, self._clock.now_ms())
        seed = self._seed(account_id)
        if seed.version != begun.seed_version:
            raise AuthorizationRefused("the account's document was changed meanwhile; begin again")
        request = oauth.code_request(seed, code, begun.redirect_uri, begun.verifier)
        answer = await self._endpoint.ask(request)
        if not isinstance(answer, oauth.Issued):
            raise AuthorizationRefused(answer.message)
        if not answer.tokens.access_token or not answer.tokens.refresh_token:
            raise AuthorizationRefused("the provider gave no refresh token: ask for the scope that grants one")
        if not await self._keeper.authorised(account_id, seed.version, answer.tokens):
            raise AuthorizationRefused("the account's document was changed meanwhile; begin again")
        return account_id

    def _seed(self, account_id: str) -> Seed:
        grant = self._keeper.grant(account_id)
        if grant is None:
            raise AuthorizationRefused(f"there is no grant of {account_id}: is its document in force?")
        if grant.seed.kind != OAUTH:
            raise AuthorizationRefused(f"{account_id} is of kind {grant.seed.kind}; only oauth is authorised by people")
        if not grant.seed.config.get("authorizationURL"):
            raise AuthorizationRefused(f"{account_id} has no credential.oauth.authorizationURL in its document")
        return grant.seed
