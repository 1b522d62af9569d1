"""What the token-refresher is given to speak for an account: secret values by role, and what is not secret."""

from signalbox.resources.compiled import canonical_json, digest
from signalbox.resources.models import ClaudeAccount
from signalbox.resources.models.account import FederationCredential, OAuthCredential
from signalbox.resources.secrets import Secrets, header_text, proxy_url
from signalbox.resources.state import Grant

# Where the provider's own token endpoint lies, below the address of its API.
PROVIDER_TOKEN_PATH = "/v1/oauth/token"  # noqa: S105 - a path, not a token

Parts = tuple[dict[str, str], dict[str, str]]


def grant_of(account: ClaudeAccount, secrets: Secrets) -> Grant:
    """Collect an account's grant from its document and its Secrets. It outlives the account's expiry, which may move.

    Raises Unusable where a Secret is missing or holds what can't be used. Only kinds that are served are asked for.
    """
    spec, namespace = account.spec, account.metadata.namespace
    credential = spec.credential
    if credential.oauth is not None:
        material, config = _oauth(credential.oauth, namespace, secrets)
    elif credential.federation is not None:
        material, config = {}, _federation(credential.federation, spec.upstream_url)
    else:
        assert credential.api_key is not None, "the only other kind that is served so far"
        material, config = {"apiKey": header_text(secrets, namespace, credential.api_key.secret_ref)}, {}
    if spec.proxy is not None:
        material["proxyURL"] = proxy_url(secrets, namespace, spec.proxy.url_ref)
    config["baseURL"] = spec.upstream_url
    return Grant(account.id, credential.kind, material, config, digest([credential.kind, material, config]))


def _oauth(oauth: OAuthCredential, namespace: str, secrets: Secrets) -> Parts:
    material = {}
    if oauth.refresh_token_ref is not None:
        material["refreshToken"] = header_text(secrets, namespace, oauth.refresh_token_ref)
    if oauth.client_secret_ref is not None:
        material["clientSecret"] = header_text(secrets, namespace, oauth.client_secret_ref)
    config = {"tokenURL": oauth.token_url, "clientID": oauth.client_id}
    if oauth.authorization_url is not None:
        config["authorizationURL"] = oauth.authorization_url
    if oauth.scopes:
        config["scopes"] = " ".join(oauth.scopes)
    if oauth.headers:
        config["headers"] = canonical_json(oauth.headers)
    return material, config


def _federation(federation: FederationCredential, upstream_url: str) -> dict[str, str]:
    config = {
        "tokenURL": federation.token_url or upstream_url + PROVIDER_TOKEN_PATH,
        "organizationID": federation.organization_id,
        "federationRuleID": federation.federation_rule_id,
        "identityTokenFile": federation.identity_token_file,
    }
    if federation.service_account_id is not None:
        config["serviceAccountID"] = federation.service_account_id
    if federation.workspace_id is not None:
        config["workspaceID"] = federation.workspace_id
    return config
