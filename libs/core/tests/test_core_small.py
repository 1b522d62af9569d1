"""Globs, money, time: the small shared ideas."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signalbox.core import clock, globs, money


@pytest.mark.parametrize(
    ("name", "allow", "deny", "expected"),
    [
        ("claude-opus-5", [], [], True),
        ("claude-opus-5", ["claude-*"], [], True),
        ("claude-opus-5", ["claude-*"], ["*opus*"], False),
        ("gpt-6", ["claude-*"], [], False),
        ("claude.x", ["claude?x"], [], True),
        ("claude[1]", ["claude[1]"], [], True),
        ("CLAUDE", ["claude"], [], False),
        ("a\nb", ["a*"], [], True),
    ],
)
def test_model_rules(name: str, allow: list[str], deny: list[str], expected: bool) -> None:
    assert globs.allowed(name, allow, deny) is expected


@given(st.integers(-(10**16), 10**16))
def test_money_survives_text(nano: int) -> None:
    assert money.parse_usd(money.format_usd(nano)) == nano


@pytest.mark.parametrize(("nano", "text"), [(0, "0"), (1, "0.000000001"), (2_500_000_000, "2.5"), (20 * 10**9, "20")])
def test_money_as_text(nano: int, text: str) -> None:
    assert money.format_usd(nano) == text


@pytest.mark.parametrize("text", ["", "abc", "0.0000000001", "nan", "inf"])
def test_what_is_no_money(text: str) -> None:
    with pytest.raises(ValueError, match=r"decimal"):
        money.parse_usd(text)


def test_time_text() -> None:
    assert clock.rfc3339(0) == "1970-01-01T00:00:00Z"
    assert clock.rfc3339(1_500) == "1970-01-01T00:00:01.500Z"
    assert clock.to_ms(clock.from_ms(1_700_000_000_123)) == 1_700_000_000_123
