"""The documents: models, schema, rules, and the pure reconcilers over them.

Read a directory with `load_directory`, decide with `plan`, carry out what `diff` lists. Readers of the registry get
typed specs with `CompiledAccount.read` and its siblings.
"""

from signalbox.resources.actions import diff
from signalbox.resources.compiled import CompiledAccount, CompiledKey, CompiledKeyHash, CompiledLimit, CompiledPool
from signalbox.resources.conditions import Condition
from signalbox.resources.documents import (
    edit_file,
    find_document,
    render,
    rotation_changes,
    state_changes,
    write_file,
)
from signalbox.resources.editing import edit_spec
from signalbox.resources.errors import DocumentNotFound, EditRefused, ResourcesError, UnreadableDirectory
from signalbox.resources.loading import FileCache, LoadResult, load_directory, load_text
from signalbox.resources.reading import Document, Identity, Problem, read_document
from signalbox.resources.reconcile import plan
from signalbox.resources.schema import crd_schema
from signalbox.resources.state import (
    Action,
    DeleteGrant,
    DeleteObject,
    Desired,
    DesiredObject,
    Grant,
    Policy,
    PutGrant,
    PutObject,
    State,
)

__all__ = [
    "Action",
    "CompiledAccount",
    "CompiledKey",
    "CompiledKeyHash",
    "CompiledLimit",
    "CompiledPool",
    "Condition",
    "DeleteGrant",
    "DeleteObject",
    "Desired",
    "DesiredObject",
    "Document",
    "DocumentNotFound",
    "EditRefused",
    "FileCache",
    "Grant",
    "Identity",
    "LoadResult",
    "Policy",
    "Problem",
    "PutGrant",
    "PutObject",
    "ResourcesError",
    "State",
    "UnreadableDirectory",
    "crd_schema",
    "diff",
    "edit_file",
    "edit_spec",
    "find_document",
    "load_directory",
    "load_text",
    "plan",
    "read_document",
    "render",
    "rotation_changes",
    "state_changes",
    "write_file",
]
