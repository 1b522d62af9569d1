"""Identity tokens from files: read anew each time, from the allowed directory only, whatever links say."""

import asyncio
import os
from pathlib import Path

from signalbox.token_refresher.domain.grants import is_token
from signalbox.token_refresher.domain.renewal import IdentityUnusable

_MAX_BYTES = 64 << 10


class IdentityFiles:
    """Reads identity token files below `root` (None: anywhere)."""

    def __init__(self, root: Path | None) -> None:
        self._root = root

    async def read(self, path: str) -> str | IdentityUnusable:
        """Return the token that the file holds at this moment."""
        return await asyncio.to_thread(self._read, Path(path))

    def _read(self, path: Path) -> str | IdentityUnusable:
        try:
            real = path.resolve(strict=True)
            if self._root is not None and not real.is_relative_to(self._root.resolve()):
                return IdentityUnusable(f"the identity token file {path} lies outside {self._root}")
            # Opened by the name that was checked: a link that changes now leads nowhere else.
            descriptor = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            with open(descriptor, "rb") as file:
                data = file.read(_MAX_BYTES + 1)
        except OSError as e:
            return IdentityUnusable(f"the identity token file {path} can't be read: {e.strerror or type(e).__name__}")
        text = data.decode("ascii", errors="replace").strip()
        if len(data) > _MAX_BYTES or not is_token(text):
            return IdentityUnusable(f"the identity token file {path} holds no token")
        return text
