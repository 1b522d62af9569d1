"""A room's certificate, its key and the authority, read anew whenever their files change.

Whoever mounts them (a Secret, a certificate manager) may replace them at any time, one file after the other: what does
not belong together yet is left for the next look.
"""

import ssl
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from signalbox.core import logs
from signalbox.core.errors import StartupError
from signalbox.core.settings import RoomSettings
from signalbox.core.tls import not_by_form

log = logs.logger(__name__)

_Stamp = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Pem:
    """What the three files held together."""

    ca: bytes
    key: bytes
    cert: bytes


class Certificates:
    """The newest that were whole. Any thread may ask."""

    def __init__(self, cert: Path, key: Path, ca: Path) -> None:
        self._files = (ca, key, cert)
        self._lock = threading.Lock()
        try:
            self._stamp = self._look()
            self.pem = self._read()
        except (OSError, ssl.SSLError) as e:
            raise StartupError("SIGNALBOX_TLS_CERT_FILE, _KEY_FILE or _CA_FILE", str(e)) from e

    @classmethod
    def of(cls, settings: RoomSettings) -> Self | None:
        """Return those of the settings, None where rooms speak without TLS. Raises StartupError."""
        cert, key, ca = settings.tls_cert_file, settings.tls_key_file, settings.tls_ca_file
        return cls(cert, key, ca) if cert and key and ca else None

    def refresh(self) -> Pem:
        """Return what the files hold now, or held last where they are not whole."""
        with self._lock:
            try:
                stamp = self._look()
                if stamp != self._stamp:
                    self.pem = self._read()
                    self._stamp = stamp
                    log.info("certificates_read_again")
            except (OSError, ssl.SSLError) as e:
                log.debug("certificates_not_whole", why=str(e))
            return self.pem

    def context(self) -> ssl.SSLContext:
        """Return a client's context with what the files hold now. Raises ssl.SSLError while they are being replaced."""
        return self._context(ssl.Purpose.SERVER_AUTH)

    def serving(self) -> ssl.SSLContext:
        """Return the same for a server, which asks for a certificate in turn."""
        context = self._context(ssl.Purpose.CLIENT_AUTH)
        context.verify_mode = ssl.CERT_REQUIRED
        return context

    def _context(self, purpose: ssl.Purpose) -> ssl.SSLContext:
        ca, key, cert = self._files
        self.refresh()
        context = not_by_form(ssl.create_default_context(purpose, cafile=ca))
        context.load_cert_chain(cert, key)
        context.set_alpn_protocols(["h2"])
        return context

    def _look(self) -> _Stamp:
        return tuple((s.st_ino, s.st_mtime_ns, s.st_size) for s in (f.stat() for f in self._files))

    def _read(self) -> Pem:
        ca, key, cert = self._files
        whole = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        whole.load_verify_locations(ca)
        whole.load_cert_chain(cert, key)  # raises where one does not belong to the other
        return Pem(*(f.read_bytes() for f in self._files))
