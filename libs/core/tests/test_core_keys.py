"""Relay keys: form, check digits, hashing."""

import re
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signalbox.core import keys


def test_a_new_key_has_the_documented_form_and_check() -> None:
    key = keys.new_key()
    assert re.fullmatch(r"sbx_[0-9A-Za-z]{43}", key)
    value = 0
    for digit in key[-6:]:
        value = value * 62 + "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz".index(digit)
    assert value == zlib.crc32(key[:41].encode())
    assert keys.has_valid_check(key)
    assert keys.is_acceptable(key)


@given(st.integers(4, 46), st.sampled_from(keys.ALPHABET))
def test_one_changed_character_is_noticed(position: int, char: str) -> None:
    key = keys.new_key()
    changed = key[:position] + char + key[position + 1 :]
    assert keys.has_valid_check(changed) == (changed == key)


@pytest.mark.parametrize("text", ["", "short", "fifteen-chars--", "with\nnewline-1234567890", " leading-space-12345"])
def test_what_may_not_be_a_key(text: str) -> None:
    assert not keys.is_acceptable(text)


def test_hash_is_sha256_of_the_text() -> None:
    assert keys.hash_key("abc") == "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
