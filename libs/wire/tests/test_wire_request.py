"""Reading a request: what is found, what is refused, and that no second reader could see something else."""

import dataclasses
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signalbox.wire.request import (
    MAX_USUAL_BYTES,
    READ_FIELDS,
    RequestFacts,
    RequestInvalid,
    conversation_seed,
    read_request,
    rewrite_model,
)


def body(**fields: object) -> bytes:
    return json.dumps({"model": "claude-opus-5", "max_tokens": 10, "messages": [], **fields}).encode()


def test_the_fields_that_are_read() -> None:
    facts = read_request(body(stream=True, speed="fast", inference_geo="us", service_tier="auto", prompt_cache_key="k"))
    assert (facts.model, facts.models, facts.stream, facts.max_tokens) == ("claude-opus-5", ("claude-opus-5",), True, 10)
    assert (facts.speed, facts.inference_geo, facts.service_tier) == ("fast", "us", "auto")
    assert (facts.prompt_cache_key, facts.session, facts.state_bound, facts.unseen_input) == ("k", "", False, False)


@pytest.mark.parametrize("more", ["", " " * MAX_USUAL_BYTES], ids=["usual", "careful"])
@pytest.mark.parametrize(("given", "read_as"), [("0", 1), ("-0", 1), ("1", 1), ("null", 0), (None, 0)])
def test_a_request_that_only_warms_a_cache_is_not_one_without_a_limit(more: str, given: str | None, read_as: int) -> None:
    limit = "" if given is None else f',"max_tokens":{given}'
    assert read_request(f'{{"model":"m"{limit}}}{more}'.encode()).max_tokens == read_as


@pytest.mark.parametrize(
    ("text", "param"),
    [
        (b"", ""), (b"[]", ""), (b"null", ""), (b"{", ""), (b'{"model":"a"} x', ""), (b"\xff", ""),
        (b"[" * 100_000, ""), (b'{"model":"a","messages":' + b"[" * 100_000, ""),
        (b"{}", "model"), (b'{"model":1}', "model"), (b'{"model":""}', "model"), (b'{"model":null}', "model"),
        (b'{"model":"' + b"x" * 300 + b'"}', "model"), (b'{"model":"\xff"}', "model"),
        (b'{"model":"a\\u0000b"}', "model"), (b'{"model":"a\\nb"}', "model"), (b'{"model":"\\ud800"}', ""),
        (b'{"model":"a","stream":1}', "stream"), (b'{"model":"a","stream":"true"}', "stream"),
        (b'{"model":"a","max_tokens":"1"}', "max_tokens"), (b'{"model":"a","max_tokens":-1}', "max_tokens"),
        (b'{"model":"a","max_tokens":1.5}', "max_tokens"), (b'{"model":"a","max_tokens":1e30}', "max_tokens"),
        (b'{"model":"a","model":"b"}', "model"), (b'{"model":"a","model":"a"}', "model"),
        (b'{"model":"a","m\\u006fdel":"b"}', "model"), (b'{"m\\u006fdel":"b"}', "model"),
        (b'{"model":"a","stream":true,"stream":false}', "stream"),
        (b'{"model":"a","str\\u0065am":true}', "stream"),
        (b'{"model":"a","metadata":{"user_id":"a","user_id":"b"}}', "user_id"),
        (b'{"model":"a","fallbacks":[{"model":"b","model":"c"}]}', "model"),
        (b'{"model":"a","fallbacks":[{"mod\\u0065l":"b"}]}', "model"),
        (b'{"model":"a","tools":[{"type":"advisor","model":"b","model":"c"}]}', "model"),
        (b'{"model":"a","tools":[{"type":"advisor","mod\\u0065l":"b"}]}', "model"),
        (b'{"model":"a","tools":[{"type":"advisor","type":"custom","model":"b"}]}', "type"),
        (b'{"model":"a","messages":[{"content":[{"tool":{"mod\\u0065l":"b"}}]}]}', "model"),
        (b'{"model":"a","metadata":{"user_id":"{\\"session_id\\":\\"a\\",\\"session_id\\":\\"b\\"}"}}', "session_id"),
    ],
)
def test_what_is_refused(text: bytes, param: str) -> None:
    with pytest.raises(RequestInvalid) as refused:
        read_request(text)
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("user_id", "session"),
    [
        ('{"device_id":"d","account_uuid":"","session_id":"11111111-2222"}', "11111111-2222"),
        ("user_" + "0" * 64 + "_account__session_00000000-0000-4000-8000-000000000000", "00000000-0000-4000-8000-000000000000"),
        ("user_x_account_y_session_abc", "abc"), ("somebody", ""), ("{not json session", ""), ('{"session_id":1}', ""),
    ],
)
def test_the_session_in_the_user_id(user_id: str, session: str) -> None:
    assert read_request(body(metadata={"user_id": user_id})).session == session


@pytest.mark.parametrize(
    ("fields", "models"),
    [
        ({"fallbacks": [{"model": "b"}, {"model": "c"}]}, ("claude-opus-5", "b", "c")),
        ({"tools": [{"type": "advisor_20260301", "name": "advisor", "model": "b"}]}, ("claude-opus-5", "b")),
        ({"tools": [{"name": "t", "input_schema": {"properties": {"model": {"type": "string", "model": "x"}}}}]},
         ("claude-opus-5",)),
        ({"context_management": {"edits": [{"type": "compact", "model": "b"}]}}, ("claude-opus-5", "b")),
        ({"messages": [{"role": "assistant", "content": [{"type": "tool_use", "input": {"model": "x"}}]}]},
         ("claude-opus-5",)),
        ({"fallbacks": [{"model": "claude-opus-5"}]}, ("claude-opus-5",)),
        ({"fallbacks": "default"}, ("claude-opus-5",)),
        ({"messages": [{"role": "system", "content": [{"type": "tool_addition", "tool": {
            "type": "tool_definition", "definition": {"type": "advisor_20260301", "model": "b"}}}]}]},
         ("claude-opus-5", "b")),
        ({"messages": [{"role": "assistant", "content": [{"type": "fallback", "to": {"model": "b"}}]}]},
         ("claude-opus-5",)),
    ],
)
def test_every_model_that_can_serve_is_found(fields: dict[str, object], models: tuple[str, ...]) -> None:
    assert read_request(body(**fields)).models == models


def block(**source: object) -> list[dict[str, object]]:
    return [{"role": "user", "content": [{"type": "document", "source": source}]}]


@pytest.mark.parametrize(
    ("fields", "bound", "unseen"),
    [
        ({"container": "c_1"}, True, False), ({"container": None}, False, False), ({"thread": {"id": "t"}}, True, False),
        ({"messages": block(type="file", file_id="f_1")}, True, True),
        ({"messages": block(type="url", url="https://example.com/x.pdf")}, False, True),
        ({"messages": [{"role": "user", "content": 'say "file_id" and {"type": "url"}'}]}, False, False),
        ({"tools": [{"type": "web_search_20260301", "name": "web_search"}]}, False, True),
        ({"tools": [{"type": "custom", "name": "web_search", "input_schema": {}}]}, False, False),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, False, False),
        ({"mcp_servers": [{"url": "https://example.com"}]}, False, True),
        ({"messages": [{"role": "user", "content": [{"type": "container_upload", "file_id": "f_1"}]}]}, True, True),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result", "content": block(type="file", file_id="f")}]}]},
         True, True),
        ({"messages": [{"role": "assistant", "content": [{"type": "tool_use", "input": {"file_id": "mine"}}]}]},
         False, False),
    ],
)
def test_what_binds_to_an_account_and_what_bytes_do_not_show(fields: dict[str, object], bound: bool, unseen: bool) -> None:
    facts = read_request(body(**fields))
    assert (facts.state_bound, facts.unseen_input) == (bound, unseen)


def test_the_seed_is_system_and_first_user_turn() -> None:
    first = {"role": "user", "content": "hello"}
    one = conversation_seed(body(system="s", messages=[first]))
    later = conversation_seed(body(system="s", messages=[first, {"role": "assistant", "content": "hi"}, first]))
    other = conversation_seed(body(system="t", messages=[first]))
    assert one == later != other
    assert b"hello" in one


def test_the_seed_ignores_cache_marks_that_move_along() -> None:
    def seed(marked: bool) -> bytes:
        mark = {"cache_control": {"type": "ephemeral", "ttl": "1h"}} if marked else {}
        return conversation_seed(body(messages=[{"role": "user", "content": [{"type": "text", "text": "hi", **mark}]}]))
    assert seed(marked=True) == seed(marked=False)


@pytest.mark.parametrize(
    "text",
    [
        b'{"model":"a","x":1,"x":' + b"1" * 5000 + b"}",
        b'{"model":"a","tools":[{"type":"advisor","n":' + b"1" * 5000 + b"}]}",
        b'{"model":"a","x":1,"x":"\xc3\xa9\\ud83d\\ude00"}',
        b' {\n"model" : "a" ,\t"messages" : [ ] } ',
    ],
)
def test_odd_but_unambiguous_bodies_are_read(text: bytes) -> None:
    facts = read_request(text)
    assert facts.models == ("a",)
    assert rewrite_model(text, "b") == text.replace(b'"a"', b'"b"')


@pytest.mark.parametrize("depth", [100, 700, 850, 900, 925, 950, 975, 1000, 5000])
@pytest.mark.parametrize("place", [b'"x":1,"x":%s', b'"messages":[{"tool":{},"content":%s}]', b'"fallbacks":%s', b'"tools":[%s]'])
def test_depth_is_read_or_refused(depth: int, place: bytes) -> None:
    for opening, closing in ((b"[", b"]"), (b'{"content":', b"}"), (b'{"model":"b","y":', b"}")):
        facts, refusal = read(b'{"model":"a",' + place % (opening * depth + b"1" + closing * depth) + b"}")
        assert (facts is None) != (refusal is None)


@pytest.mark.parametrize("rest", [
    b',"a":{}' * 400_000, b"".join(b',"a%d":1' % i for i in range(200_000)), b',"\\u0061":1' * 200_000,
])
def test_a_large_body_made_to_be_slow_is_refused_soon(rest: bytes) -> None:
    began_s = time.process_time()
    with pytest.raises(RequestInvalid):
        read_request(b'{"model":"a"' + rest + b"}")
    assert time.process_time() - began_s < 0.5


def test_white_space_does_not_make_the_seed_slow() -> None:
    turn = b'{"role":"user","content":[{"cache_control":{},"x":1,' + b" " * 1_000_000 + b'"y":1}]}'
    began_s = time.process_time()
    conversation_seed(b'{"model":"a","messages":[' + turn + b"]}")
    assert time.process_time() - began_s < 0.5


# ------------------------------------------------------------------ against a slow, obvious reader


def read(text: bytes) -> tuple[RequestFacts | None, RequestInvalid | None]:
    try:
        return read_request(text), None
    except RequestInvalid as e:
        return None, e


NAMES = st.sampled_from([*sorted(READ_FIELDS), "other", "mödel", "Model"])
STRINGS = st.text(max_size=8) | st.just('"model":"x"') | NAMES
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | STRINGS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)


def spelt(text: str, escape: bool) -> str:
    return '"' + "".join(f"\\u{ord(c):04x}" for c in text) + '"' if escape and text.isascii() else json.dumps(text)


@given(
    st.lists(st.tuples(NAMES, VALUES, st.booleans()), max_size=6), st.sampled_from(["", " ", "\n\t"]),
    st.integers(0, 6), st.booleans(),
)
def test_agrees_with_a_slow_reader(members: list[tuple[str, object, bool]], space: str, at: int, ascii_only: bool) -> None:
    members = [m for m in members if m[0] != "model"]
    members.insert(min(at, len(members)), ("model", "the-model", False))
    text = "{" + ",".join(
        f"{space}{spelt(n, e)}{space}:{space}{json.dumps(v, ensure_ascii=ascii_only)}{space}" for n, v, e in members
    ) + "}"
    names = [n for n, _, _ in members]
    ambiguous = any(names.count(n) > 1 and n in READ_FIELDS for n in names) or any(
        e and n in READ_FIELDS for n, _, e in members
    )
    facts, refusal = read(text.encode())
    if facts is None:
        assert refusal is not None
        assert ambiguous or refusal.param
        return
    assert not ambiguous
    assert facts.model == "the-model"
    rewritten = rewrite_model(text.encode(), 'new"model').decode()
    assert rewritten == text.replace('"the-model"', '"new\\"model"', 1) or json.loads(rewritten)["model"] == 'new"model'
    assert len(rewritten) == len(text) + len('"new\\"model"') - len('"the-model"')


USUAL = st.fixed_dictionaries({"model": st.just("m") | STRINGS}, optional={
    "stream": st.none() | st.booleans(),
    "max_tokens": st.none() | st.integers(-1, 5),
    "metadata": st.none() | st.fixed_dictionaries({}, optional={"user_id": st.none() | st.sampled_from([
        "user_x_session_abc", '{"session_id":"s"}', '{"session_id":1}', '{"x":"session_id"}', '{"session_id":"a","session_id":"b"}',
        "metadata", "user_id", "{",
    ])}),
    "system": VALUES,
    "messages": VALUES | st.lists(st.fixed_dictionaries({"role": st.just("user") | NAMES}, optional={
        "content": VALUES | st.lists(st.fixed_dictionaries({}, optional={
            "type": st.sampled_from(["text", "url", "image"]), "file_id": VALUES, "tool": VALUES, "source": VALUES,
        }), max_size=2),
    }), max_size=2),
    "tools": VALUES | st.lists(st.fixed_dictionaries({}, optional={
        "name": STRINGS, "type": st.none() | st.just("custom"), "model": STRINGS, "input_schema": VALUES,
    }), max_size=2),
    "speed": st.none() | STRINGS, "fallbacks": VALUES, "container": VALUES, "other": VALUES,
})


@given(USUAL, st.booleans(), st.booleans())
def test_usual_bodies_are_read_as_the_careful_way_reads_them(fields: dict[str, object], dense: bool, ascii_only: bool) -> None:
    text = json.dumps(fields, separators=(",", ":") if dense else None, ensure_ascii=ascii_only).encode()
    facts, refusal = read(text)
    careful, careful_refusal = read(text + b" " * MAX_USUAL_BYTES)    # what is longer goes the careful way
    if careful is None:
        assert facts is None
        assert (refusal.message, refusal.param) == (careful_refusal.message, careful_refusal.param)
        return
    assert facts == dataclasses.replace(careful, input_bytes=len(text))


@given(st.binary(max_size=60))
def test_any_bytes_give_facts_or_a_clear_refusal(noise: bytes) -> None:
    for text in (noise, b'{"model":"a",' + noise + b"}", b'{"model":"a","messages":' + noise + b"}"):
        facts, refusal = read(text)
        assert facts is not None or (refusal is not None and refusal.message)


@pytest.mark.parametrize(
    "text",
    [
        b'{"model":"m","tools":[' + b",".join([b'{"type":"x","model":"m"}'] * 2_000) + b"]}",
        b'{"model":"m","fallbacks":[' + b",".join([b'{"model":"m"}'] * 60_000) + b"]}",
        b'{"model":"m","messages":{' + b",".join(b'"a%d":{}' % n for n in range(60_000)) + b"}}",
    ],
)
def test_a_body_of_very_many_small_values_is_refused_before_it_is_built(text: bytes) -> None:
    with pytest.raises(RequestInvalid):
        read_request(text)
