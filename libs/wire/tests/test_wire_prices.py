"""Usage as reported becomes tokens as billed becomes exact money."""

import json
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signalbox.wire.models import base_name
from signalbox.wire.prices import Cost, PriceBook, PriceDataError
from signalbox.wire.usage import MessageUsage, Usage, UsageMeter, parse_usage, usage_of_message

BOOK = PriceBook.load()
NOW = datetime(2026, 11, 21, tzinfo=UTC)
MILLION = 10**6


def usd(text: str) -> int:
    return int(Fraction(text) * 10**9)


@pytest.mark.parametrize(
    ("model", "usage", "expected"),
    [
        ("claude-opus-5-5", Usage(input_tokens=MILLION), "4"),
        ("claude-opus-5-5", Usage(output_tokens=MILLION, speed="fast"), "40"),
        ("claude-opus-5", Usage(input_tokens=MILLION, output_tokens=MILLION, speed="fast"), "60"),
        ("claude-opus-4-7", Usage(input_tokens=MILLION, speed="fast"), "5"),
        ("claude-sonnet-5-5", Usage(cache_read_tokens=MILLION), "0.10"),
        ("claude-sonnet-5-5", Usage(cache_write_5m_tokens=MILLION, cache_write_1h_tokens=MILLION), "6.50"),
        ("claude-sonnet-4-6", Usage(input_tokens=MILLION, inference_geo="us"), "3.3"),
        ("claude-sonnet-4-5", Usage(input_tokens=MILLION, inference_geo="us"), "3"),
        ("claude-sonnet-4-5-20250929", Usage(output_tokens=MILLION), "15"),
        ("claude-haiku-4-5@20251001", Usage(output_tokens=MILLION), "5"),
        ("us.anthropic.claude-haiku-4-5-20251001-v1:0", Usage(output_tokens=MILLION), "5"),
        ("claude-fable-5-1", Usage(cache_read_tokens=MILLION), "0.25"),
        ("claude-haiku-5-5", Usage(input_tokens=100_000), "0.01"),
        ("claude-haiku-5-5", Usage(input_tokens=1, cache_read_tokens=100_000, output_tokens=0), "0.0050005"),
        ("claude-opus-5", Usage(input_tokens=MILLION, service_tier="batch"), "2.50"),
        ("claude-opus-5", Usage(web_search_requests=3), "0.03"),
        ("gpt-6.1-terra", Usage(cache_write_1h_tokens=200_000), "0.5"),
        ("gemini-2.5-pro", Usage(input_tokens=300_000), "0.75"),
        ("claude-opus-5", Usage(input_tokens=MILLION, other_models=(("claude-haiku-4-5", Usage(output_tokens=MILLION)),)), "10"),
    ],
)
def test_known_prices(model: str, usage: Usage, expected: str) -> None:
    assert BOOK.cost(usage, model, NOW) == Cost(usd(expected), False)


def test_prices_are_dated() -> None:
    read = Usage(cache_read_tokens=MILLION)
    assert BOOK.cost(read, "claude-sonnet-5-5", datetime(2026, 10, 6, 23, 59, tzinfo=UTC)).nano_usd == usd("0.20")
    assert BOOK.cost(read, "claude-sonnet-5-5", datetime(2026, 10, 7, tzinfo=UTC)).nano_usd == usd("0.10")


def test_an_unknown_model_costs_as_the_dearest_and_says_so() -> None:
    cost = BOOK.cost(Usage(input_tokens=MILLION, output_tokens=MILLION), "claude-new-9", NOW)
    assert cost == Cost(usd("60"), True)
    assert not BOOK.known("claude-new-9")
    assert BOOK.cost(Usage(cache_write_1h_tokens=MILLION), "other-model", NOW) == Cost(usd("20"), True)
    assert BOOK.known("claude-opus-5-20260801")


@given(*(st.integers(0, 10**7) for _ in range(5)), st.sampled_from(["", "us"]), st.sampled_from(["", "batch"]))
def test_money_is_exact_and_rounded_half_up_once(a: int, b: int, c: int, d: int, e: int, geo: str, tier: str) -> None:
    usage = Usage(a, b, c, d, e, inference_geo=geo, service_tier=tier)
    rates = {"input": "2", "out": "10", "w5": "2.50", "w1": "4", "read": "0.10"}
    exact = (
        a * Fraction(rates["input"]) + b * Fraction(rates["out"]) + c * Fraction(rates["w5"])
        + d * Fraction(rates["w1"]) + e * Fraction(rates["read"])
    ) * 1000 * (Fraction(11, 10) if geo else 1) / (2 if tier else 1)
    rounded = int(exact) + (1 if exact - int(exact) >= Fraction(1, 2) else 0)
    assert BOOK.cost(usage, "claude-sonnet-5-5", NOW).nano_usd == rounded


def test_the_worst_case_covers_what_can_happen() -> None:
    tokens, nano = BOOK.worst_case("claude-opus-5", 1001, 100, NOW)
    assert (tokens, nano) == (601, 501 * 10_000 + 100 * 25_000)
    assert BOOK.worst_case("claude-opus-5", 0, 0, NOW)[0] == 128_000
    assert BOOK.worst_case("claude-opus-5", 1001, 100, NOW, speed="fast", geo="us")[1] == nano * 22 // 10


def test_a_file_overrides_single_entries(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    own = {"model": "claude-own", "provider": "anthropic", "from": "2026-01-01", "input": "1", "cache_write_5m": "1",
           "cache_write_1h": "1", "cache_read": "1", "output": "7", "source": "our contract"}
    path.write_text(json.dumps({"prices": [own]}))
    book = PriceBook.load(path)
    assert book.cost(Usage(output_tokens=MILLION), "claude-own", NOW) == Cost(usd("7"), False)
    assert book.cost(Usage(output_tokens=MILLION), "claude-opus-5", NOW) == Cost(usd("25"), False)
    path.write_text(json.dumps({"prices": [{**own, "output": "0.0000001"}]}))
    with pytest.raises(PriceDataError, match="claude-own"):
        PriceBook.load(path)


@pytest.mark.parametrize(("content", "words"), [
    ("[]", "list of"), ('{"prices": {}}', "list of"), ('{"prices": 5}', "list of"), ("5", "list of"), ("nonsense", "Expecting"),
    ('{"models": []}', "models: is not"), ('{"unit": "EUR per million tokens"}', "unit"), ('{"prices": [5]}', "must be an object"),
    ('{"prices": [{"model": "m", "outptu": "1"}]}', "outptu: is not"), ('{"prices": [{"model": "m"}]}', "input"),
    ('{"web_search_per_1000": "ten"}', "p.json"), ('{"batch_multiplier": null}', "p.json"),
])
def test_a_file_that_would_be_passed_over_in_part_is_refused(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "p.json"
    path.write_text(content)
    with pytest.raises(PriceDataError, match=words):
        PriceBook.load(path)


@pytest.mark.parametrize(
    ("model", "base"),
    [("claude-opus-5-5", "claude-opus-5-5"), ("claude-opus-5-20260801", "claude-opus-5"),
     ("eu.anthropic.claude-sonnet-4-5-20250929-v1:0", "claude-sonnet-4-5"), ("claude-sonnet-latest", "claude-sonnet")],
)
def test_names(model: str, base: str) -> None:
    assert base_name(model) == base


def test_usage_is_read_as_billed() -> None:
    reported = {
        "input_tokens": 10, "output_tokens": 20, "cache_creation_input_tokens": 100, "cache_read_input_tokens": 7,
        "cache_creation": {"ephemeral_5m_input_tokens": 60, "ephemeral_1h_input_tokens": 40},
        "server_tool_use": {"web_search_requests": 2}, "service_tier": "standard",
        "iterations": [
            {"type": "message", "input_tokens": 10, "output_tokens": 20},
            {"type": "compaction", "input_tokens": 1000, "output_tokens": 5},
            {"type": "advisor_message", "model": "claude-opus-5", "input_tokens": 3, "output_tokens": 4},
        ],
    }
    usage = parse_usage(reported, "claude-sonnet-5")
    assert (usage.input_tokens, usage.output_tokens) == (10, 20)
    assert (usage.cache_write_5m_tokens, usage.cache_write_1h_tokens, usage.cache_read_tokens) == (60, 40, 7)
    assert usage.other_models == (
        ("claude-sonnet-5", Usage(input_tokens=1000, output_tokens=5, service_tier="standard")),
        ("claude-opus-5", Usage(input_tokens=3, output_tokens=4, service_tier="standard")),
    )


@pytest.mark.parametrize(
    ("total", "short", "long", "expected"),
    [(None, 6, 4, (6, 4)), (10, 6, 4, (6, 4)), (30, 6, 4, (26, 4)), (30, 0, 4, (0, 30)), (3, 6, 4, (0, 3)), (9, 0, 0, (9, 0))],
)
def test_cache_writes_are_split_by_time_to_live(total: int | None, short: int, long: int, expected: tuple[int, int]) -> None:
    split = {"ephemeral_5m_input_tokens": short, "ephemeral_1h_input_tokens": long}
    usage = parse_usage({"cache_creation_input_tokens": total, "cache_creation": split}, "claude-opus-5")
    assert (usage.cache_write_5m_tokens, usage.cache_write_1h_tokens) == expected


def test_a_compaction_is_priced_by_its_own_prompt() -> None:
    compaction = {"type": "compaction", "input_tokens": 90_000, "output_tokens": 0}
    usage = parse_usage({"input_tokens": 90_000, "output_tokens": 0, "iterations": [compaction]}, "claude-haiku-5-5")
    assert BOOK.cost(usage, "claude-haiku-5-5", NOW).nano_usd == 2 * 90_000 * 100


def spent(kind: str, tokens: int, model: str | None = None) -> dict[str, object]:
    return {"type": kind, "input_tokens": tokens, "output_tokens": 1, **({"model": model} if model else {})}


DECLINED = spent("message", 50, "claude-fable-5")
SERVED = spent("fallback_message", 70, "claude-opus-4-8")


@pytest.mark.parametrize(
    ("total", "own", "iterations"),
    [
        pytest.param((120, 2), (70, 1), [DECLINED, SERVED], id="the totals hold the declined hop"),
        pytest.param((70, 1), (70, 1), [DECLINED, SERVED], id="the totals hold the serving model only"),
        pytest.param((70, 1), (70, 1), [DECLINED, spent("fallback_message", 70, "claude-opus-4-8-20260801")], id="dated"),
    ],
)
@pytest.mark.parametrize("named", ["claude-fable-5", "claude-opus-4-8"])
def test_a_fallback_is_billed_once_and_each_model_by_itself(
    total: tuple[int, int], own: tuple[int, int], iterations: list[dict[str, object]], named: str,
) -> None:
    usage = {"input_tokens": total[0], "output_tokens": total[1], "iterations": iterations}
    found = usage_of_message(json.dumps({"model": named, "usage": usage}).encode())
    assert found is not None
    assert base_name(found.model) == "claude-opus-4-8"
    assert (found.usage.input_tokens, found.usage.output_tokens) == own
    assert found.usage.other_models == (("claude-fable-5", Usage(input_tokens=50, output_tokens=1)),)


@given(st.lists(st.dictionaries(
    st.sampled_from(["input_tokens", "output_tokens", "cache_read_input_tokens"]), st.none() | st.integers(0, 99),
), max_size=5))
def test_later_reports_replace_what_they_name(reports: list[dict[str, int | None]]) -> None:
    meter, expected = UsageMeter(), {"input_tokens": 1, "output_tokens": 2, "cache_read_input_tokens": 3}
    meter.start(dict(expected))
    for report in reports:
        meter.report(report)
        expected |= {name: value for name, value in report.items() if value is not None}
    usage = meter.usage("claude-opus-5")
    assert (usage.input_tokens, usage.output_tokens, usage.cache_read_tokens) == tuple(expected.values())


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.floats(allow_nan=False),
                    lambda v: st.lists(v, max_size=3) | st.dictionaries(
                        st.sampled_from(["usage", "model", "input_tokens", "iterations", "cache_creation"]), v, max_size=4)))
def test_odd_answers_never_break_the_reader(value: object) -> None:
    found = usage_of_message(json.dumps(value).encode())
    assert found is None or found.usage.input_tokens >= 0


TOLD = b'"model":"claude-opus-5","stop_reason":"tool_use","usage":{"input_tokens":11,"output_tokens":7}'
DEEP = b"[" * 50_000 + b"]" * 50_000


@pytest.mark.parametrize("body", [
    b'{"content":[{"input":"\\ud800"}],%s}' % TOLD,
    b'{"content":NaN,%s}' % TOLD,
    b'{"content":[{"input":%s}],%s}' % (DEEP, TOLD),
    b' { "x" : {"usage":{"input_tokens":9}}, %s , "content":%s, "y":"},\\"{[" } ' % (TOLD, DEEP),
    b"\xef\xbb\xbf{%s}" % TOLD,
], ids=["half of a surrogate pair", "NaN", "deep", "deep, with traps", "byte order mark"])
def test_what_the_strict_parser_refuses_is_billed_all_the_same(body: bytes) -> None:
    assert usage_of_message(body) == MessageUsage(Usage(input_tokens=11, output_tokens=7), "claude-opus-5", "tool_use")


def test_names_that_are_no_utf_8_do_not_spread() -> None:
    found = usage_of_message(b'{"model":"x\\ud800","usage":{"output_tokens":7,"service_tier":"\\udfff"}}')
    assert found == MessageUsage(Usage(output_tokens=7, service_tier="?"), "x?")


@pytest.mark.parametrize("body", [b'{"content":%s' % DEEP, b'{"content":%s}}' % DEEP, b'{"content":%s}' % DEEP[:-1], DEEP])
def test_what_is_deep_and_not_whole_has_no_usage(body: bytes) -> None:
    assert usage_of_message(body) is None


@pytest.mark.parametrize("body", [b'{"x":NaN,"model":"\xed\xa0\x80"}', b'{"model":"\xff","usage":{}}', b'{"usage":3,"content":"\xff"}', b"[" * 99_999, b"", b"[]"])
def test_what_is_no_message_has_no_usage(body: bytes) -> None:
    assert usage_of_message(body) is None


COUNTS = st.none() | st.integers(-2, 20) | st.just(10**13) | st.booleans() | st.text(max_size=2) | st.floats(0, 9)


@given(st.fixed_dictionaries({}, optional={
    "input_tokens": COUNTS, "output_tokens": COUNTS, "cache_creation_input_tokens": COUNTS,
    "cache_read_input_tokens": COUNTS,
    "cache_creation": st.none() | st.fixed_dictionaries({}, optional={
        "ephemeral_5m_input_tokens": COUNTS, "ephemeral_1h_input_tokens": COUNTS,
    }),
    "server_tool_use": st.none() | st.fixed_dictionaries({}, optional={"web_search_requests": COUNTS}),
    "service_tier": st.none() | st.text(max_size=3) | st.integers(), "speed": st.none() | st.just("fast"),
    "inference_geo": st.none() | st.just("us"),
    "iterations": st.none() | st.just([]) | st.just([{"type": "compaction", "input_tokens": 3}]),
}))
def test_the_usage_of_a_message_is_what_the_general_reading_gives(usage: dict[str, object]) -> None:
    found = usage_of_message(json.dumps({"model": "m", "usage": usage, "content": []}).encode())
    assert found is not None
    assert found.usage == parse_usage(usage, "m")
