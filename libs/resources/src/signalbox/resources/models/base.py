"""What all documents share: the base class that runs the rules, references to Secrets, selectors, metadata."""

from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from signalbox.resources.rules import Rule, Transition
from signalbox.resources.values import LabelKey, LabelValue, Name, NamespaceName, SecretKey, Time

API_VERSION = "signalbox.dev/v1alpha1"
DEFAULT_NAMESPACE = "default"

_ACRONYMS = {"url": "URL", "id": "ID", "usd": "USD", "arn": "ARN", "cidrs": "CIDRs"}


def document_name(attribute: str) -> str:
    """Return how documents spell an attribute: camelCase with upper-case acronyms (`base_url` → `baseURL`)."""
    first, *rest = attribute.rstrip("_").split("_")
    return first + "".join(_ACRONYMS.get(word, word.capitalize()) for word in rest)


class Model(BaseModel):
    """Base of every object in a document: unknown fields, nulls and lax types are refused, values are frozen."""

    # Validators are built when a model is first used: each room uses a few, and building takes longer than importing.
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, alias_generator=document_name, hide_input_in_errors=True,
        defer_build=True,
    )
    rules: ClassVar[tuple[Rule, ...]] = ()
    transitions: ClassVar[tuple[Transition, ...]] = ()

    @model_validator(mode="after")
    def _run_rules(self) -> Self:
        failed = [(rule.field, rule.message) for rule in self.rules if not rule.holds(self)]
        if failed:
            raise PydanticCustomError("rules", "breaks its rules", {"violations": failed})
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        out = handler(schema)
        resolved = handler.resolve_ref_schema(out)
        if rules := [*cls.rules, *cls.transitions]:
            resolved["x-kubernetes-validations"] = [rule.to_schema() for rule in rules]
        return out

    def to_document(self) -> dict[str, Any]:
        """Return the object in the document's notation, as plain JSON values; what is unset is left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class SecretKeyRef(Model):
    """One value of a Secret in the same namespace."""

    name: Name = Field(description="Name of the Secret, in the document's own namespace.")
    key: SecretKey = Field(description="Key inside the Secret.")


class Metadata(Model):
    """The object's metadata. What the API server adds is accepted and, but for the fields named here, ignored."""

    name: Name = Field(description="Name, unique per kind and namespace.")
    namespace: NamespaceName = Field(
        default=DEFAULT_NAMESPACE, description="Namespace; `default` where none is written."
    )
    labels: dict[LabelKey, LabelValue] | None = Field(default=None, description="Labels, which pools select by.")
    annotations: dict[str, str] | None = Field(default=None, description="Annotations; not interpreted.")
    uid: str = Field(default="", description="Set by the API server.")
    creation_timestamp: Time | None = Field(default=None, description="Set by the API server.")
    generation: int = Field(default=0, description="Set by the API server.")
    resource_version: str | None = Field(default=None, description="Set by the API server; ignored.")
    deletion_timestamp: Time | None = Field(default=None, description="Set by the API server.")
    deletion_grace_period_seconds: int | None = Field(default=None, description="Set by the API server; ignored.")
    finalizers: list[str] | None = Field(default=None, description="Ignored.")
    owner_references: list[Any] | None = Field(default=None, description="Ignored.")
    managed_fields: list[Any] | None = Field(default=None, description="Ignored.")
    generate_name: str | None = Field(default=None, description="Ignored.")
    self_link: str | None = Field(default=None, description="Ignored.")


class Resource(Model):
    """A whole document: metadata and, in each kind, its spec."""

    metadata: Metadata

    @property
    def id(self) -> str:
        """The identity used everywhere: `namespace/name`."""
        return f"{self.metadata.namespace}/{self.metadata.name}"
