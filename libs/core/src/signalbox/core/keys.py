"""Relay keys: how they are made, recognised and hashed. Who may use which is the scheduler's business."""

import hashlib
import secrets
import zlib

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
PREFIX = "sbx_"
_RANDOM_CHARS = 37
_CHECK_CHARS = 6
MIN_KEY_CHARS = 16


def new_key() -> str:
    """Return a fresh relay key: `sbx_`, 37 random base62 characters, 6 base62 digits of their CRC-32.

    The check digits cover the 41 characters before them, most significant digit first, so that scanners can
    tell a leaked key from noise and a caller a typing error from a revoked key.
    """
    head = PREFIX + "".join(secrets.choice(ALPHABET) for _ in range(_RANDOM_CHARS))
    return head + _check_digits(head)


def has_valid_check(text: str) -> bool:
    """Whether `text` has the form of a generated key and its check digits agree."""
    head, check = text[:-_CHECK_CHARS], text[-_CHECK_CHARS:]
    shaped = text.startswith(PREFIX) and len(text) == len(PREFIX) + _RANDOM_CHARS + _CHECK_CHARS
    return shaped and text.isascii() and check == _check_digits(head)


def is_acceptable(text: str) -> bool:
    """Whether `text` may serve as a relay key: at least 16 printable characters without spaces at its ends."""
    return len(text) >= MIN_KEY_CHARS and text.isprintable() and text == text.strip()


def digest(text: str | bytes) -> bytes:
    """Return the 32 bytes under which a key is known: SHA-256 of its text in UTF-8."""
    return hashlib.sha256(text.encode() if isinstance(text, str) else text).digest()


def hash_key(text: str) -> str:
    """Return the form that documents use: `sha256:` and 64 hexadecimal digits."""
    return "sha256:" + digest(text).hex()


def _check_digits(head: str) -> str:
    value = zlib.crc32(head.encode())
    digits = []
    for _ in range(_CHECK_CHARS):
        value, digit = divmod(value, len(ALPHABET))
        digits.append(ALPHABET[digit])
    return "".join(reversed(digits))
