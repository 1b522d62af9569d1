"""Everything beside messages: models, files, batches. Minimal, but bound to the organisation as the real ones are."""

import json
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from signalbox_simulator.accounts import Account
from signalbox_simulator.behaviour import NOTHING
from signalbox_simulator.catalogue import MODELS, entry, page
from signalbox_simulator.content import input_usage, make_reply
from signalbox_simulator.errors import ApiError, dumps

if TYPE_CHECKING:
    from signalbox_simulator.provider import Call, Provider

MAX_OBJECTS = 1000
HEALTH_PATHS = ("/", "/health", "/healthz")


@dataclass(slots=True)
class Stored:
    """A file or a batch: whose it is, what is said of it, and its content."""

    organization: str
    document: dict[str, Any]
    content: bytes = b""
    content_type: str = "application/octet-stream"


@dataclass(slots=True)
class Store:
    """Files and batches by id, the oldest forgotten first. The clock gives Unix seconds."""

    clock: Callable[[], float]
    files: dict[str, Stored] = field(default_factory=dict)
    batches: dict[str, Stored] = field(default_factory=dict)

    def now(self) -> datetime:
        """Return the time."""
        return datetime.fromtimestamp(self.clock(), UTC)


def _stamp(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")


def _keep(objects: dict[str, Stored], stored: Stored) -> None:
    objects[stored.document["id"]] = stored
    while len(objects) > MAX_OBJECTS:
        del objects[next(iter(objects))]


async def serve(provider: "Provider", call: "Call") -> str:
    """Answer a request for a resource. Raises ApiError."""
    request = call.exchange.request
    if request.path in HEALTH_PATHS and request.method in {"GET", "HEAD"}:
        return await provider.answer(call, b"{}")
    account = provider.authenticate(call)
    for method, pattern, endpoint in ENDPOINTS:
        found = re.fullmatch(pattern, request.path)
        if found and method == request.method:
            body, content_type = endpoint(provider, call, account, *found.groups())
            return await provider.answer(call, body, content_type=content_type)
    raise ApiError(404, "Not found")


Answer = tuple[bytes, str]
JSON = "application/json"


def _list_models(_: "Provider", call: "Call", __: Account) -> Answer:
    return _paged([entry(m) for m in MODELS], call)


def _get_model(_: "Provider", __: "Call", ___: Account, name: str) -> Answer:
    found = next((m for m in MODELS if m[0] == name), None)
    if found is None:
        raise ApiError(404, f"model: {name}")
    return dumps(entry(found)), JSON


def _paged(items: list[dict[str, Any]], call: "Call") -> Answer:
    try:
        return dumps(page(items, call.exchange.request.query)), JSON
    except ValueError as e:
        raise ApiError(400, str(e)) from e


def _own(objects: dict[str, Stored], account: Account, object_id: str) -> Stored:
    stored = objects.get(object_id)
    if stored is None or stored.organization != account.organization:
        raise ApiError(404, f"{object_id} was not found")
    return stored


# ---------------------------------------------------------------------- files


def _create_file(provider: "Provider", call: "Call", account: Account) -> Answer:
    request = call.exchange.request
    name, content_type, content = _uploaded(bytes(request.body), request.header("content-type"))
    document = {
        "type": "file", "id": f"file_sim{secrets.token_hex(10)}", "created_at": _stamp(provider.store.now()),
        "filename": name, "mime_type": content_type, "size_bytes": len(content), "downloadable": True,
    }
    _keep(provider.store.files, Stored(account.organization, document, content, content_type))
    return dumps(document), JSON


def _uploaded(body: bytes, content_type: str) -> tuple[str, str, bytes]:
    """Return the first file of a multipart form: its name, type and content."""
    boundary = re.search(r'boundary="?([^";]+)', content_type)
    if boundary is None:
        raise ApiError(400, "file: multipart/form-data is expected")
    for part in body.split(b"--" + boundary.group(1).encode()):
        head, _, content = part.partition(b"\r\n\r\n")
        name = re.search(rb'filename="([^"]*)"', head)
        if name is None:
            continue
        kind = re.search(rb"(?i)content-type: *([^\r\n]+)", head)
        stated = kind.group(1).decode() if kind else "application/octet-stream"
        return name.group(1).decode(), stated, content.removesuffix(b"\r\n")
    raise ApiError(400, "file: Field required")


def _list_files(provider: "Provider", call: "Call", account: Account) -> Answer:
    own = [s.document for s in provider.store.files.values() if s.organization == account.organization]
    return _paged(own[::-1], call)


def _get_file(provider: "Provider", _: "Call", account: Account, file_id: str) -> Answer:
    return dumps(_own(provider.store.files, account, file_id).document), JSON


def _get_content(provider: "Provider", _: "Call", account: Account, file_id: str) -> Answer:
    stored = _own(provider.store.files, account, file_id)
    return stored.content, stored.content_type


def _delete_file(provider: "Provider", _: "Call", account: Account, file_id: str) -> Answer:
    _own(provider.store.files, account, file_id)
    del provider.store.files[file_id]
    return dumps({"id": file_id, "type": "file_deleted"}), JSON


# ---------------------------------------------------------------------- batches


def _create_batch(provider: "Provider", call: "Call", account: Account) -> Answer:
    """Make a batch that has ended as soon as it is asked for."""
    requests = call.parsed.get("requests") if isinstance(call.parsed, dict) else None
    if not isinstance(requests, list) or not requests:
        raise ApiError(400, "requests: Field required")
    now = provider.store.now()
    batch_id = f"msgbatch_sim{secrets.token_hex(10)}"
    lines = [_batch_line(provider, account, item) for item in requests]
    counts = {"processing": 0, "succeeded": len(lines), "errored": 0, "canceled": 0, "expired": 0}
    document = {
        "type": "message_batch", "id": batch_id, "processing_status": "ended", "request_counts": counts,
        "created_at": _stamp(now), "ended_at": _stamp(now), "expires_at": _stamp(now + timedelta(days=1)),
        "archived_at": None, "cancel_initiated_at": None,
        "results_url": f"http://{call.exchange.request.header('host')}/v1/messages/batches/{batch_id}/results",
    }
    _keep(provider.store.batches, Stored(account.organization, document, b"\n".join(lines) + b"\n"))
    return dumps(document), JSON


def _batch_line(provider: "Provider", account: Account, item: Any) -> bytes:
    body = json.dumps(item["params"]).encode()
    fields = input_usage(len(body), {"read": 0, "5m": 0, "1h": 0})
    reply = make_reply(item["params"], NOTHING, digest=body, seed=provider.settings.seed,
                       message_id=f"msg_{provider.new_id()}", organization=account.organization, input_fields=fields)
    reply.usage["service_tier"] = "batch"
    result = {"type": "succeeded", "message": reply.message()}
    return dumps({"custom_id": item["custom_id"], "result": result})


def _list_batches(provider: "Provider", call: "Call", account: Account) -> Answer:
    own = [s.document for s in provider.store.batches.values() if s.organization == account.organization]
    return _paged(own[::-1], call)


def _get_batch(provider: "Provider", _: "Call", account: Account, batch_id: str) -> Answer:
    return dumps(_own(provider.store.batches, account, batch_id).document), JSON


def _get_results(provider: "Provider", _: "Call", account: Account, batch_id: str) -> Answer:
    return _own(provider.store.batches, account, batch_id).content, "application/x-jsonl"


def _delete_batch(provider: "Provider", _: "Call", account: Account, batch_id: str) -> Answer:
    _own(provider.store.batches, account, batch_id)
    del provider.store.batches[batch_id]
    return dumps({"id": batch_id, "type": "message_batch_deleted"}), JSON


ENDPOINTS: list[tuple[str, str, Callable[..., Answer]]] = [
    ("GET", r"/v1/models", _list_models),
    ("GET", r"/v1/models/([^/]+)", _get_model),
    ("POST", r"/v1/files", _create_file),
    ("GET", r"/v1/files", _list_files),
    ("GET", r"/v1/files/([^/]+)", _get_file),
    ("GET", r"/v1/files/([^/]+)/content", _get_content),
    ("DELETE", r"/v1/files/([^/]+)", _delete_file),
    ("POST", r"/v1/messages/batches", _create_batch),
    ("GET", r"/v1/messages/batches", _list_batches),
    ("GET", r"/v1/messages/batches/([^/]+)", _get_batch),
    ("POST", r"/v1/messages/batches/([^/]+)/cancel", _get_batch),
    ("GET", r"/v1/messages/batches/([^/]+)/results", _get_results),
    ("DELETE", r"/v1/messages/batches/([^/]+)", _delete_batch),
]
