"""Encrypts grants at rest: AES-256-GCM under the first of several keys, opened by whichever sealed it.

A sealed grant names its key and its account in clear; both are authenticated, so that no file can stand in for
another account's.
"""

import base64
import binascii
import hashlib
import os
import re
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES = 32
_MAGIC = b"SBGRANT1"
_KEY_ID_BYTES = 8
_NONCE_BYTES = 12
_FIXED = len(_MAGIC) + _KEY_ID_BYTES + _NONCE_BYTES + 2


class Unopened(Exception):
    """A sealed grant can't be opened: damaged, or sealed with a key that is not here. Holds no secret."""


@dataclass(frozen=True, slots=True)
class Keyring:
    """Encryption keys by their ids, the one that seals first."""

    keys: tuple[bytes, ...] = field(repr=False)

    @classmethod
    def read(cls, text: str) -> "Keyring":
        """Read keys in base64 or hexadecimal, separated by commas or white space. Raises ValueError, without them."""
        parts = [part for part in re.split(r"[\s,]+", text) if part]
        if not parts:
            raise ValueError("must hold a key: 32 bytes in base64 or hexadecimal")
        return cls(tuple(_read_key(part) for part in parts))

    def seal(self, account_id: str, plain: bytes) -> bytes:
        """Return `plain` encrypted for `account_id` under the first key."""
        key = self.keys[0]
        name = account_id.encode()
        nonce = os.urandom(_NONCE_BYTES)
        header = b"".join((_MAGIC, _key_id(key), nonce, len(name).to_bytes(2, "big"), name))
        return header + AESGCM(key).encrypt(nonce, plain, header)

    def open(self, sealed: bytes) -> tuple[str, bytes]:
        """Return account id and plain bytes of what `seal` made. Raises Unopened."""
        if len(sealed) < _FIXED or not sealed.startswith(_MAGIC):
            raise Unopened("the file is damaged: it does not begin like a grant")
        key_id = sealed[len(_MAGIC) :][:_KEY_ID_BYTES]
        nonce = sealed[len(_MAGIC) + _KEY_ID_BYTES :][:_NONCE_BYTES]
        end = _FIXED + int.from_bytes(sealed[_FIXED - 2 : _FIXED], "big")
        key = next((key for key in self.keys if _key_id(key) == key_id), None)
        if key is None:
            raise Unopened(f"it is encrypted with key {key_id.hex()}, which is not among the configured ones")
        header, body = sealed[:end], sealed[end:]
        try:
            plain = AESGCM(key).decrypt(nonce, body, header)
        except (InvalidTag, ValueError):
            raise Unopened("the file is damaged: its contents do not match their seal") from None
        return header[_FIXED:].decode(), plain

    def is_newest(self, sealed: bytes) -> bool:
        """Whether the first key sealed this."""
        return sealed[len(_MAGIC) :][:_KEY_ID_BYTES] == _key_id(self.keys[0])


def _read_key(text: str) -> bytes:
    if re.fullmatch(r"[0-9a-fA-F]{64}", text):
        return bytes.fromhex(text)
    try:
        key = base64.b64decode(text.replace("-", "+").replace("_", "/") + "=" * (-len(text) % 4), validate=True)
    except binascii.Error:
        raise ValueError("must be in base64 or hexadecimal") from None
    if len(key) != KEY_BYTES:
        raise ValueError(f"must be {KEY_BYTES} bytes long, not {len(key)}")
    return key


def _key_id(key: bytes) -> bytes:
    return hashlib.sha256(b"signalbox grant key\0" + key).digest()[:_KEY_ID_BYTES]
