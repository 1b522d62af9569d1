"""The authority between a release's rooms: what it has to issue now. Pure; where it is kept is the command's business.

Rooms take up what changes in their files, at different moments. So a new authority is trusted by all before anything is
signed by it, and an old one until it has run out: at no time do two rooms refuse each other.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_LIFE = timedelta(days=3650)
SETTLED_AFTER = timedelta(hours=1)
"""How long after its making a new authority is trusted by every room: files in pods lag by minutes."""
_CLOCKS_DIFFER = timedelta(minutes=5)
_RENEW_AT = 3  # when less than a third of a life is left


@dataclass(frozen=True)
class Kept:
    """What is kept, all PEM; empty where there is none. `trusted` are the authorities that rooms believe."""

    authority: bytes = b""
    authority_key: bytes = b""
    trusted: bytes = b""
    cert: bytes = b""
    key: bytes = b""


def due(kept: Kept, names: Sequence[str], life: timedelta, now: datetime) -> Kept:
    """Return what should be kept instead; the same where nothing is due. Raises ValueError where `kept` is no PEM."""
    trusted = [c for c in _certificates(kept.trusted) if c.not_valid_after_utc > now]
    authority = next(iter(_certificates(kept.authority)), None)
    wanted = replace(kept, trusted=_pem(trusted)) if len(trusted) < len(_certificates(kept.trusted)) else kept
    settled = authority is not None and authority in trusted and now - _made(authority) >= SETTLED_AFTER
    if authority is None or not kept.authority_key or _is_due(authority, now):
        authority, key = _new_authority(now)
        wanted = replace(wanted, authority=_pem([authority]), authority_key=_key_pem(key))
    if authority not in trusted:
        wanted = replace(wanted, trusted=_pem([authority, *trusted]))
    cert = next(iter(_certificates(kept.cert)), None)
    if cert is None or not kept.key:
        return _issued(wanted, names, life, now)
    signs = wanted.authority == kept.authority and settled
    if signs and (_is_due(cert, now) or cert.issuer != authority.subject or _names(cert) != list(names)):
        return _issued(wanted, names, life, now)
    return wanted


def _issued(kept: Kept, names: Sequence[str], life: timedelta, now: datetime) -> Kept:
    [authority] = _certificates(kept.authority)
    signer = load_pem_private_key(kept.authority_key, None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey), "the authority's key is made here"
    key = ec.generate_private_key(ec.SECP256R1())
    usages = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    cert = (
        _builder(_name("rooms"), authority.subject, key, now, life)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(n) for n in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(usages, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, SHA256())
    )
    return replace(kept, cert=_pem([cert]), key=_key_pem(key))


def _new_authority(now: datetime) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(f"rooms' authority {now:%Y-%m-%d %H:%M:%S}")
    authority = (
        _builder(name, name, key, now, AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, SHA256())
    )
    return authority, key


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime, life: timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now - _CLOCKS_DIFFER).not_valid_after(now + life)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs, key_cert_sign=signs, crl_sign=signs, key_encipherment=False,
        content_commitment=False, data_encipherment=False, key_agreement=False, encipher_only=False,
        decipher_only=False,
    )


def _is_due(certificate: x509.Certificate, now: datetime) -> bool:
    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    return (certificate.not_valid_after_utc - now) * _RENEW_AT < life


def _made(certificate: x509.Certificate) -> datetime:
    return certificate.not_valid_before_utc + _CLOCKS_DIFFER


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return found.value.get_values_for_type(x509.DNSName)


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _certificates(pem: bytes) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(pem) if pem.strip() else []


def _pem(certificates: Sequence[x509.Certificate]) -> bytes:
    return b"".join(c.public_bytes(Encoding.PEM) for c in certificates)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
