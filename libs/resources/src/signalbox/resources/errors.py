"""Errors of the documents library. What is wrong inside a document is a Problem (see documents), not an exception.

ResourcesError
├── UnreadableDirectory   the manifests directory itself cannot be listed; nothing may be concluded from it
├── DocumentNotFound      an edit names a document that no file holds
└── EditRefused           an edit would leave a document that breaks the rules, or cannot be made in place
"""

from signalbox.core.errors import SignalboxError


class ResourcesError(SignalboxError):
    """Base of what this library raises."""


class UnreadableDirectory(ResourcesError):
    """The manifests directory cannot be listed. The caller keeps everything it has."""


class DocumentNotFound(ResourcesError):
    """No file of the directory holds the document that was asked for."""


class EditRefused(ResourcesError):
    """A textual edit was not made; the file is as it was. The message says what to do instead."""
