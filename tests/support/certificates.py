"""Certificates for tests that speak TLS over loopback: self-signed ones, and believing a test's own authority."""

import ssl
import subprocess
from pathlib import Path


def self_signed(directory: Path, name: str = "localhost") -> tuple[ssl.SSLContext, Path]:
    """Return a server's context for a host name, and the certificate file that a client trusts it by."""
    key, cert = directory / "key.pem", directory / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", key,
         "-out", cert, "-days", "1", "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"],
        check=True, capture_output=True,
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(cert, key)
    return server, cert


def believing(*, cafile: str | None = None, cadata: str | None = None) -> ssl.SSLContext:
    """Return a client's context for an authority without key identifiers, which Pythons from 3.13 on refuse by default."""
    context = ssl.create_default_context(cafile=cafile, cadata=cadata)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context
