"""The models that the simulated provider lists. A name that only looks like one of them is served, but not listed."""

from typing import Any

from signalbox_simulator.accounts import MODEL_CLASSES, model_class

MODELS = (
    ("claude-fable-5-2", "Claude Fable 5.2", "2026-10-20T00:00:00Z", 1_000_000, 128_000),
    ("claude-opus-5-5", "Claude Opus 5.5", "2026-09-20T00:00:00Z", 1_000_000, 128_000),
    ("claude-sonnet-5-5", "Claude Sonnet 5.5", "2026-09-20T00:00:00Z", 1_000_000, 128_000),
    ("claude-haiku-5-5", "Claude Haiku 5.5", "2026-10-07T00:00:00Z", 1_000_000, 128_000),
    ("claude-opus-5", "Claude Opus 5", "2026-06-02T00:00:00Z", 1_000_000, 128_000),
    ("claude-sonnet-5", "Claude Sonnet 5", "2026-06-02T00:00:00Z", 1_000_000, 128_000),
    ("claude-haiku-4-5", "Claude Haiku 4.5", "2025-10-15T00:00:00Z", 200_000, 64_000),
)
DEFAULT_PAGE = 20
MAX_PAGE = 1000


def entry(model: tuple[str, str, str, int, int]) -> dict[str, Any]:
    """Return a model as `/v1/models` lists it."""
    name, display_name, created_at, max_input_tokens, max_tokens = model
    line = model_class(name)
    return {
        "type": "model", "id": name, "display_name": display_name, "created_at": created_at, "lifecycle": "active",
        "line": line if line in MODEL_CLASSES else None, "max_input_tokens": max_input_tokens,
        "max_tokens": max_tokens, "capabilities": None, "deprecated_at": None, "retires_at": None,
    }


def is_served(name: str) -> bool:
    """Tell whether a request for this model is answered."""
    return name.startswith("claude-")


def page(items: list[dict[str, Any]], query: dict[str, str]) -> dict[str, Any]:
    """Return one page of a list by `limit`, `after_id` and `before_id`. Raises ValueError for a bad limit."""
    limit = int(query.get("limit", DEFAULT_PAGE))
    if not 1 <= limit <= MAX_PAGE:
        raise ValueError(f"limit: must be between 1 and {MAX_PAGE}")
    ids = [item["id"] for item in items]
    if "before_id" in query:
        end = ids.index(query["before_id"]) if query["before_id"] in ids else 0
        start = max(0, end - limit)
        data, has_more = items[start:end], start > 0
    else:
        start = ids.index(query["after_id"]) + 1 if query.get("after_id") in ids else 0
        data, has_more = items[start : start + limit], start + limit < len(items)
    return {
        "data": data, "has_more": has_more, "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
    }
