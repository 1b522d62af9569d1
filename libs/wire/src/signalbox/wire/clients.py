"""Which program calls, and which conversation it is in, by what the client itself sends.

Sources: docs/clients.md, Claude Code 2.1.197 as seen on the wire on 20 Nov 2026. Nothing here is proof of identity.
"""

from collections.abc import Mapping
from functools import lru_cache

from signalbox.wire.request import RequestFacts

CLAUDE_CODE = "ClaudeCode"
CODEX = "Codex"
GEMINI_CLI = "GeminiCLI"
ANTHROPIC_SDK = "AnthropicSDK"
OPENAI_SDK = "OpenAISDK"

_BY_USER_AGENT = (
    (b"claude-cli/", CLAUDE_CODE),
    (b"claude-code/", CLAUDE_CODE),
    (b"codex", CODEX),
    (b"geminicli", GEMINI_CLI),
    (b"anthropic/", ANTHROPIC_SDK),
    (b"openai/", OPENAI_SDK),
    (b"asyncanthropic/", ANTHROPIC_SDK),
    (b"asyncopenai/", OPENAI_SDK),
)
_SESSION_HEADERS = (b"x-claude-code-session-id", b"x-session-id", b"session-id", b"session_id")
MAX_SESSION_BYTES = 512


def identify(headers: Mapping[bytes, bytes]) -> str:
    """Return the name of the client program by its own headers (lower-case names), or an empty string."""
    client = _by_user_agent(headers.get(b"user-agent", b""))
    if client:
        return client
    if headers.get(b"originator", b"").lower().startswith(b"codex"):
        return CODEX
    return ""


@lru_cache(maxsize=1024)
def _by_user_agent(agent: bytes) -> str:
    agent = agent.lower()
    return next((client for prefix, client in _BY_USER_AGENT if agent.startswith(prefix)), "")


def named_session(headers: Mapping[bytes, bytes]) -> bytes:
    """Return the conversation that the headers (lower-case names) name, in the contract's order, or nothing."""
    return next((value for name in _SESSION_HEADERS if (value := headers.get(name))), b"")


def session_of(named: bytes, facts: RequestFacts) -> bytes:
    """Return what names the conversation: `named` by the headers, else by the body; nothing where none does."""
    return (named or (facts.session or facts.prompt_cache_key).encode())[:MAX_SESSION_BYTES]
