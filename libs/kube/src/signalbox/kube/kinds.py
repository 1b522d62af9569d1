"""The kinds that Signalbox reads and writes, as classes that the client library can address; objects are dicts."""

from typing import Any, Final

from lightkube.generic_resource import create_global_resource, create_namespaced_resource

from signalbox.resources.crds import GROUP, PLURALS, VERSION

CUSTOM_KINDS: Final = tuple(PLURALS)

# Generic classes for Kubernetes' own kinds as well: the typed ones would bring megabytes of models for five calls.
KINDS: Final[dict[str, Any]] = {
    **{kind: create_namespaced_resource(GROUP, VERSION, kind, plural) for kind, plural in PLURALS.items()},
    "Secret": create_namespaced_resource("", "v1", "Secret", "secrets"),
    "Event": create_namespaced_resource("", "v1", "Event", "events"),
    "Namespace": create_global_resource("", "v1", "Namespace", "namespaces"),
    "Lease": create_namespaced_resource("coordination.k8s.io", "v1", "Lease", "leases"),
}
