"""When an answer's limit headers are told on to the scheduler: ample windows now and then, tight ones always."""

import pytest

from signalbox.gateway.domain.account_limits import TOLD_EVERY_S, LimitNews
from signalbox.gateway.domain.events import ResponseHead


def answer(remaining: int, status: int = 200) -> ResponseHead:
    return ResponseHead(status, [
        (b"anthropic-ratelimit-requests-limit", b"100"),
        (b"anthropic-ratelimit-requests-remaining", b"%d" % remaining),
    ])


def told(news: LimitNews, head: ResponseHead | None, now_s: float, account: str = "default/a") -> list[int]:
    return [w.remaining for w in news.windows(account, head, now_s)]


def test_ample_windows_are_told_now_and_then() -> None:
    news = LimitNews()
    assert told(news, answer(90), 10.0) == [90]
    assert told(news, answer(89), 10.0 + TOLD_EVERY_S / 2) == []
    assert told(news, answer(89), 10.0, account="default/b") == [89]
    assert told(news, answer(88), 10.0 + TOLD_EVERY_S) == [88]


def test_tight_windows_are_always_told() -> None:
    news = LimitNews()
    assert [told(news, answer(n), 10.0) for n in (20, 19, 18)] == [[20], [19], [18]]


def test_a_warning_is_always_told() -> None:
    news = LimitNews()
    head = ResponseHead(200, [(b"anthropic-ratelimit-unified-5h-status", b"allowed_warning")])
    assert [len(news.windows("a", head, 10.0)) for _ in range(3)] == [1, 1, 1]


@pytest.mark.parametrize("status", [429, 500])
def test_an_errors_windows_are_always_told(status: int) -> None:
    news = LimitNews()
    assert told(news, answer(90), 10.0) == [90]
    assert told(news, answer(70, status), 10.0) == [70]


def test_no_answer_tells_nothing() -> None:
    news = LimitNews()
    assert told(news, None, 10.0) == []
    assert told(news, answer(90), 10.0) == [90]
