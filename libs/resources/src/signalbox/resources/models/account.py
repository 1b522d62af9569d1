"""ClaudeAccount: one entitlement at a provider, with its credential and how much of it may be used."""

import re
from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from signalbox.core import globs
from signalbox.resources.models.base import Model, Resource, SecretKeyRef
from signalbox.resources.rules import Rule, Transition, exactly_one
from signalbox.resources.values import (
    MAX_LIMITS,
    MAX_LIST,
    PLAIN_HTTP_HOSTS,
    URL,
    Concurrency,
    Count,
    FilePath,
    Glob,
    HeaderName,
    Region,
    ShortText,
    Time,
)


class Provider(StrEnum):
    """Where an account lives."""

    ANTHROPIC = "Anthropic"
    BEDROCK = "Bedrock"
    VERTEX = "Vertex"
    FOUNDRY = "Foundry"


class AccountState(StrEnum):
    """What the operator wants of an account. Draining: finish what runs, serve its pins, start nothing new."""

    ACTIVE = "Active"
    PAUSED = "Paused"
    DRAINING = "Draining"


class AccountPeriod(StrEnum):
    """The period that a known cap of an account counts in."""

    MINUTE = "Minute"
    HOUR = "Hour"
    DAY = "Day"
    WEEK = "Week"
    MONTH = "Month"


class ApiKeyCredential(Model):
    """A provider's API key."""

    secret_ref: SecretKeyRef = Field(description="The Secret that holds the key.")


class OAuthCredential(Model):
    """OAuth 2.0 refresh with the operator's own client."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="has(self.refreshTokenRef) || has(self.authorizationURL)",
            message="is required, unless authorizationURL says where `signalbox accounts authorize` gets the grant",
            holds=lambda m: m.refresh_token_ref is not None or m.authorization_url is not None,
            field="refreshTokenRef",
        ),
    )

    token_url: URL = Field(description="Token endpoint.")
    authorization_url: URL | None = Field(
        default=None, description="Authorisation endpoint, for `signalbox accounts authorize` (code with PKCE)."
    )
    client_id: ShortText = Field(description="The operator's own OAuth client.")
    client_secret_ref: SecretKeyRef | None = Field(
        default=None, description="The client's secret, for confidential clients."
    )
    scopes: Annotated[tuple[ShortText, ...], Field(max_length=MAX_LIST)] = Field(
        default=(), description="Scopes to ask for; none are sent when empty."
    )
    refresh_token_ref: SecretKeyRef | None = Field(
        default=None, description="Seeds the grant; the Secret is never written, and a changed seed replaces the grant."
    )
    headers: Annotated[dict[HeaderName, ShortText], Field(max_length=MAX_LIST)] = Field(
        default={},
        description="Headers for the token endpoint; they reach nothing else. With `content-type: application/json`"
        " the request is JSON instead of a form.",
    )


class FederationCredential(Model):
    """Workload identity federation (RFC 7523) with a projected token."""

    token_url: URL | None = Field(
        default=None, description="Token endpoint. Default: the provider's, /v1/oauth/token below baseURL."
    )
    organization_id: ShortText = Field(description="Organisation at the provider.")
    federation_rule_id: ShortText = Field(description="The provider's federation rule.")
    service_account_id: ShortText | None = Field(default=None, description="Service account to act as.")
    workspace_id: ShortText | None = Field(default=None, description="Workspace to act in.")
    identity_token_file: FilePath = Field(
        description="Projected token, read anew each time. In a cluster under /var/run/secrets/signalbox/tokens/."
    )


class BedrockCredential(Model):
    """Amazon Bedrock: a bearer token, a pair of access keys, or a role."""

    rules: ClassVar[tuple[Rule, ...]] = (
        exactly_one(
            "bearerTokenRef",
            "accessKeyRef",
            "roleARN",
            attributes=("bearer_token_ref", "access_key_ref", "role_arn"),
            what="way to sign in",
        ),
        Rule(
            cel="has(self.accessKeyRef) == has(self.secretKeyRef)",
            message="accessKeyRef and secretKeyRef go together: write both or neither",
            holds=lambda m: (m.access_key_ref is None) == (m.secret_key_ref is None),
        ),
        Rule(
            cel="has(self.roleARN) == has(self.webIdentityTokenFile)",
            message="roleARN and webIdentityTokenFile go together: write both or neither",
            holds=lambda m: (m.role_arn is None) == (m.web_identity_token_file is None),
        ),
    )

    region: Region = Field(description="AWS region.")
    bearer_token_ref: SecretKeyRef | None = Field(default=None, description="A Bedrock API key.")
    access_key_ref: SecretKeyRef | None = Field(default=None, description="Access key ID; goes with secretKeyRef.")
    secret_key_ref: SecretKeyRef | None = Field(default=None, description="Secret access key; goes with accessKeyRef.")
    role_arn: ShortText | None = Field(default=None, description="Role to assume; goes with webIdentityTokenFile.")
    web_identity_token_file: FilePath | None = Field(default=None, description="Projected token; goes with roleARN.")


class VertexCredential(Model):
    """Google Vertex AI."""

    project_id: ShortText = Field(description="Google Cloud project.")
    region: Region = Field(description="Region, or `global`.")
    service_account_ref: SecretKeyRef | None = Field(
        default=None, description="A service account's JSON key. Default: the environment's own identity."
    )


class FoundryCredential(Model):
    """Microsoft Foundry."""

    resource: Region = Field(description="Name of the Foundry resource.")
    api_key_ref: SecretKeyRef = Field(description="The Secret that holds the key.")


class Credential(Model):
    """How an account proves itself: exactly one kind."""

    rules: ClassVar[tuple[Rule, ...]] = (
        exactly_one(
            *("apiKey", "oauth", "federation", "bedrock", "vertex", "foundry"),
            attributes=("api_key", "oauth", "federation", "bedrock", "vertex", "foundry"),
            what="kind of credential",
        ),
    )

    api_key: ApiKeyCredential | None = Field(default=None, description="A provider's API key.")
    oauth: OAuthCredential | None = Field(default=None, description="OAuth 2.0 refresh with the operator's own client.")
    federation: FederationCredential | None = Field(
        default=None, description="Workload identity federation (RFC 7523)."
    )
    bedrock: BedrockCredential | None = Field(default=None, description="Amazon Bedrock.")
    vertex: VertexCredential | None = Field(default=None, description="Google Vertex AI.")
    foundry: FoundryCredential | None = Field(default=None, description="Microsoft Foundry.")

    @property
    def kind(self) -> str:
        """The one kind that is set, as documents spell it."""
        kinds = {
            "apiKey": self.api_key,
            "oauth": self.oauth,
            "federation": self.federation,
            "bedrock": self.bedrock,
            "vertex": self.vertex,
            "foundry": self.foundry,
        }
        return next(kind for kind, value in kinds.items() if value is not None)


class AccountLimit(Model):
    """A cap that is known beforehand, beside what the provider's headers teach."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="has(self.requests) || has(self.inputTokens) || has(self.outputTokens)",
            message="a limit holds at least one number: requests, inputTokens or outputTokens",
            holds=lambda m: not m.requests is m.input_tokens is m.output_tokens is None,
        ),
    )

    per: AccountPeriod = Field(description="Period that the numbers count in.")
    requests: Count | None = Field(default=None, description="Requests.")
    input_tokens: Count | None = Field(default=None, description="Input tokens, cache writes included.")
    output_tokens: Count | None = Field(default=None, description="Output tokens.")


class ModelRules(Model):
    """Which models may be used. `deny` wins; an empty `allow` allows all."""

    allow: Annotated[tuple[Glob, ...], Field(max_length=MAX_LIST)] = Field(
        default=(), description="Globs of allowed models; all when empty."
    )
    deny: Annotated[tuple[Glob, ...], Field(max_length=MAX_LIST)] = Field(
        default=(), description="Globs of denied models; deny wins."
    )

    def permits(self, model: str) -> bool:
        """Whether the rules let `model` through."""
        return globs.allowed(model, self.allow, self.deny)


class AccountModels(ModelRules):
    """Model rules of an account, matched against the name that is sent, and renames on the way out."""

    map: Annotated[dict[Glob, Glob], Field(max_length=MAX_LIST)] = Field(
        default={}, description="Renames on the way out: name asked for to name sent. Names, not globs."
    )


class Proxy(Model):
    """The proxy that the account's requests take."""

    url_ref: SecretKeyRef = Field(
        description="The Secret that holds the URL: http, https, socks5 or socks5h, with credentials if need be."
    )


_PROVIDER_OF = {"bedrock": Provider.BEDROCK, "vertex": Provider.VERTEX, "foundry": Provider.FOUNDRY}


def _carries_safely(url: str | None, *, allow_insecure: bool) -> bool:
    if url is None or allow_insecure or url.startswith("https://"):
        return True
    return re.fullmatch(PLAIN_HTTP_HOSTS, url) is not None


def _plain_http_rule(field: str, cel_has: str, url_of: str) -> Rule:
    def holds(spec: "ClaudeAccountSpec") -> bool:
        return _carries_safely(getattr(spec, url_of), allow_insecure=spec.allow_insecure)

    pattern = PLAIN_HTTP_HOSTS.replace("\\", "\\\\")
    return Rule(
        cel=(
            f"!({cel_has}) || !self.{field}.startsWith('http://') || (has(self.allowInsecure) && self.allowInsecure)"
            f" || self.{field}.matches('{pattern}')"
        ),
        message="must be https: plain http is for loopback and Services of this cluster, or with allowInsecure: true",
        holds=holds,
        field=field,
    )


class ClaudeAccountSpec(Model):
    """What an account is and how much of it may be used."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel=(
                "self.provider == (has(self.credential.bedrock) ? 'Bedrock' : has(self.credential.vertex) ? 'Vertex'"
                " : has(self.credential.foundry) ? 'Foundry' : 'Anthropic')"
            ),
            message="must match the credential: apiKey, oauth and federation belong to Anthropic, bedrock to Bedrock,"
            " vertex to Vertex, foundry to Foundry",
            holds=lambda m: m.provider == _PROVIDER_OF.get(m.credential.kind, Provider.ANTHROPIC),
            field="provider",
        ),
        _plain_http_rule("baseURL", "has(self.baseURL)", "base_url"),
        _plain_http_rule("credential.oauth.tokenURL", "has(self.credential.oauth)", "oauth_token_url"),
        _plain_http_rule(
            "credential.oauth.authorizationURL",
            "has(self.credential.oauth) && has(self.credential.oauth.authorizationURL)",
            "oauth_authorization_url",
        ),
        _plain_http_rule(
            "credential.federation.tokenURL",
            "has(self.credential.federation) && has(self.credential.federation.tokenURL)",
            "federation_token_url",
        ),
        Rule(
            cel="!has(self.limits) || self.limits.all(a, self.limits.exists_one(b, b.per == a.per))",
            message="has two limits for one period: write them as one",
            holds=lambda m: len({limit.per for limit in m.limits}) == len(m.limits),
            field="limits",
        ),
    )
    transitions: ClassVar[tuple[Transition, ...]] = (
        Transition(
            cel="self.provider == oldSelf.provider",
            message="cannot be changed: delete the account and create it anew",
            holds=lambda new, old: new.provider == old.provider,
            field="provider",
        ),
    )

    provider: Provider = Field(description="Where the account lives. Immutable; must match the credential.")
    base_url: URL | None = Field(
        default=None,
        description="Where requests go. Default: the provider's own. Plain http only for loopback and Services of the"
        " same cluster, unless allowInsecure.",
    )
    allow_insecure: bool = Field(default=False, description="Allow plain http anywhere. Default: false.")
    state: AccountState = Field(
        default=AccountState.ACTIVE,
        description="Active (default), Paused, or Draining: finishes what it has, serves its pins, takes no new"
        " conversation.",
    )
    state_reason: ShortText | None = Field(default=None, description="Why; shown wherever the state is shown.")
    credential: Credential = Field(description="How the account proves itself: exactly one kind.")
    priority: Annotated[int, Field(ge=0, le=1000)] = Field(default=0, description="Lower is tried first. Default: 0.")
    weight: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=100, description="Share among accounts of one priority. Default: 100."
    )
    max_concurrency: Concurrency | None = Field(default=None, description="Requests at once. Default: not limited.")
    limits: Annotated[tuple[AccountLimit, ...], Field(max_length=MAX_LIMITS)] = Field(
        default=(), description="Known caps, beside what the provider's headers teach; one per period."
    )
    limit_group: ShortText | None = Field(
        default=None, description="Accounts of a namespace with one limitGroup share one bucket at the provider."
    )
    models: AccountModels = Field(default=AccountModels(), description="Models that the account serves, and renames.")
    proxy: Proxy | None = Field(default=None, description="Proxy for the account's requests.")
    expires_at: Time | None = Field(default=None, description="When the account stops serving.")

    @property
    def oauth_token_url(self) -> str | None:
        """Token endpoint of an OAuth credential, if that is what the account has."""
        return self.credential.oauth.token_url if self.credential.oauth else None

    @property
    def oauth_authorization_url(self) -> str | None:
        """Authorisation endpoint of an OAuth credential, where the document names one."""
        return self.credential.oauth.authorization_url if self.credential.oauth else None

    @property
    def federation_token_url(self) -> str | None:
        """Token endpoint of a federation credential, where the document names one."""
        return self.credential.federation.token_url if self.credential.federation else None

    @property
    def upstream_url(self) -> str:
        """Where requests go: `baseURL`, or the provider's own address, without a slash at the end.

        Default hosts are those that the providers document for their Messages APIs.
        """
        if self.base_url is not None:
            return self.base_url.rstrip("/")
        credential = self.credential
        if credential.bedrock:
            return f"https://bedrock-runtime.{credential.bedrock.region}.amazonaws.com"
        if credential.vertex:
            region = credential.vertex.region
            return f"https://{'' if region == 'global' else region + '-'}aiplatform.googleapis.com"
        if credential.foundry:
            return f"https://{credential.foundry.resource}.services.ai.azure.com/anthropic"
        return "https://api.anthropic.com"


class ClaudeAccount(Resource):
    """One entitlement at a provider."""

    spec: ClaudeAccountSpec
