"""Where credentials may go in a cluster, so that whoever writes accounts cannot read Secrets through them."""

import posixpath
import re
from urllib.parse import urlsplit

from signalbox.resources import conditions
from signalbox.resources.models import ClaudeAccountSpec
from signalbox.resources.secrets import Unusable
from signalbox.resources.state import TOKEN_FILE_ROOT, Policy

# Hosts of the providers' own APIs and token endpoints. Domains under which customers can run servers of their own
# (amazonaws.com, googleapis.com) are named by service.
_PROVIDER_HOSTS = re.compile(
    r"([a-z0-9-]+\.)*(anthropic|claude)\.com"
    r"|(bedrock-runtime|bedrock-runtime-fips|sts)\.[a-z0-9-]+\.amazonaws\.com"
    r"|(bedrock-mantle|aws-external-anthropic)\.[a-z0-9-]+\.api\.aws"
    r"|([a-z0-9-]+-)?aiplatform\.googleapis\.com|(claude|oauth2|sts)\.googleapis\.com"
    r"|[a-z0-9-]+\.services\.ai\.azure\.com|login\.microsoftonline\.com"
)


def check_upstreams(spec: ClaudeAccountSpec, namespace: str, policy: Policy) -> None:
    """Raise Unusable where, in a cluster, the account would send its credential somewhere it must not go."""
    if not policy.cluster:
        return
    urls = [url for url in (spec.upstream_url, spec.oauth_token_url, spec.federation_token_url) if url]
    for url in urls:
        host = (urlsplit(url).hostname or "").lower()
        if not _host_allowed(host, namespace, policy):
            raise Unusable(conditions.UPSTREAM_NOT_ALLOWED, f"{host} is not among allowedUpstreamHosts")
        if spec.proxy and url.startswith("http://"):
            raise Unusable(conditions.UPSTREAM_NOT_ALLOWED, f"{host} is plain http, which may not go through a proxy")


def check_token_file(spec: ClaudeAccountSpec, policy: Policy) -> None:
    """Raise Unusable where, in a cluster, an identity token would be read from elsewhere than the projected tokens.

    By the path's text alone; whoever opens the file resolves links and checks again.
    """
    credential = spec.credential
    path = credential.federation.identity_token_file if credential.federation else None
    if credential.bedrock:
        path = credential.bedrock.web_identity_token_file
    if path and policy.cluster and not posixpath.normpath(path).startswith(TOKEN_FILE_ROOT):
        raise Unusable(conditions.TOKEN_FILE_NOT_ALLOWED, f"the token file must lie under {TOKEN_FILE_ROOT}")


def _host_allowed(host: str, namespace: str, policy: Policy) -> bool:
    if policy.allowed_upstream_hosts is not None:
        return any(_host_matches(host, entry.lower()) for entry in policy.allowed_upstream_hosts)
    service = rf"[a-z0-9-]+\.{re.escape(namespace)}\.svc(\.cluster\.local)?"
    return _PROVIDER_HOSTS.fullmatch(host) is not None or re.fullmatch(service, host) is not None


def _host_matches(host: str, entry: str) -> bool:
    return host.endswith(entry[1:]) if entry.startswith("*.") else host == entry
