"""The provider's error answers: which type belongs to which status, and the envelope that they come in."""

import json
from typing import Any

ERROR_TYPES = {
    400: "invalid_request_error", 401: "authentication_error", 402: "billing_error", 403: "permission_error",
    404: "not_found_error", 409: "conflict_error", 413: "request_too_large", 429: "rate_limit_error",
    500: "api_error", 503: "api_error", 504: "timeout_error", 529: "overloaded_error",
}
MESSAGES = {
    400: "invalid request", 401: "invalid x-api-key", 402: "Your credit balance is too low to access the API.",
    403: "Your account does not have access to this resource.", 404: "Not found",
    413: "Request exceeds the maximum size", 429: "This request would exceed your organization's rate limit.",
    500: "Internal server error", 503: "Service unavailable", 504: "The request timed out", 529: "Overloaded",
}

_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


class ApiError(Exception):
    """An error that the provider answers with."""

    def __init__(
        self, status: int, message: str | None = None, *, error_type: str | None = None, error_code: str | None = None,
        details: dict[str, Any] | None = None, headers: list[tuple[str, str]] | None = None,
    ) -> None:
        self.status = status
        self.error_type = error_type or ERROR_TYPES.get(status, "api_error")
        self.message = message or MESSAGES.get(status, "error")
        self.details = {**(details or {}), **({"error_code": error_code} if error_code else {})}
        self.headers = headers or []
        super().__init__(self.message)

    def document(self, request_id: str | None) -> dict[str, Any]:
        """Return the envelope; without a request id as an `error` event in a stream has it."""
        error: dict[str, Any] = {"type": self.error_type, "message": self.message}
        if self.details:
            error["details"] = self.details
        envelope: dict[str, Any] = {"type": "error", "error": error}
        return {**envelope, "request_id": request_id} if request_id else envelope


def dumps(document: Any) -> bytes:
    """Return compact JSON in UTF-8, without escapes, as the provider sends it."""
    return _ENCODER.encode(document).encode()
