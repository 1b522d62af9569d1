"""Kubernetes' own kinds that may lie beside the documents: Secret (values), Namespace (labels, for selectors)."""

import base64
import binascii
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from signalbox.resources.models.base import Resource
from signalbox.resources.values import SecretKey


def _decode(value: Any) -> bytes:
    if not isinstance(value, str):
        raise PydanticCustomError("string_type", "must be a string")
    try:
        return base64.b64decode("".join(value.split()), validate=True)
    except (binascii.Error, ValueError) as e:
        raise PydanticCustomError("base64", "must be base64; plain text belongs under stringData") from e


Base64 = Annotated[bytes, BeforeValidator(_decode)]


class Secret(Resource):
    """A Kubernetes Secret; `stringData` wins over `data`, as at the API server. Its values are never printed."""

    type: str = Field(default="Opaque", description="Not interpreted.")
    immutable: bool = Field(default=False, description="Not interpreted.")
    data: dict[SecretKey, Base64] | None = Field(default=None, repr=False, description="Values in base64.")
    string_data: dict[SecretKey, str] | None = Field(
        default=None, repr=False, description="Values as text; locally, ${NAME} is taken from the environment."
    )

    def values(self) -> dict[str, bytes]:
        """Return all values as bytes, by key."""
        return (self.data or {}) | {k: v.encode() for k, v in (self.string_data or {}).items()}


class Namespace(Resource):
    """A Kubernetes Namespace; only its labels matter here. Locally it is optional."""

    spec: Any = Field(default=None, description="Ignored.")
