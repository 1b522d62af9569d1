"""One relayed attempt as a state machine without input or output: bytes, time and losses in; what to forward out.

It knows the commit point, the time limits, frame boundaries, truncation and usage. Whether to try again, and
what the caller is told then, is decided in request.py; sockets, timers and the journal belong to the driver.

        sent            head             content             last byte
WAITING ────▶ (headers) ────▶ HOLDING ──────────▶ STREAMING ──────────▶ ENDED     streamed answer
                              HOLDING ───────────────────────────────▶ ENDED     whole answer, or a provider's error

Nothing reaches the caller in WAITING and HOLDING, so an attempt that ends there may be made again elsewhere.
After that the answer ends whole or with a typed error event, never with an end that looks clean and is not.
"""

import json
from enum import Enum, auto

from signalbox.gateway.domain.events import (
    Ending,
    Finish,
    Headers,
    Limits,
    Lost,
    ResponseHead,
    Step,
    Trouble,
)
from signalbox.gateway.domain.usage import token_usage
from signalbox.v1.common_pb2 import (
    OUTCOME_CLIENT_GONE,
    OUTCOME_OK,
    OUTCOME_TIMEOUT,
    OUTCOME_TRUNCATED,
    OUTCOME_UPSTREAM_ERROR,
    Outcome,
)
from signalbox.wire.errors import Verdict, classify, sse_error_event
from signalbox.wire.sse import StreamReader
from signalbox.wire.usage import usage_of_message

MAX_ANSWER_BYTES = 32 << 20
MAX_ERROR_BYTES = 1 << 20
MAX_PRELUDE_BYTES = 1 << 20
FIRST_ERROR_STATUS = 400


class _Phase(Enum):
    WAITING = auto()
    HOLDING = auto()
    STREAMING = auto()
    ENDED = auto()


_WAITING, _HOLDING, _STREAMING, _ENDED = _Phase
_NONE = Step()


class Attempt:
    """Feed it what happens, carry out each Step, call `tick` when `deadline_s` has passed. Times are monotonic."""

    def __init__(self, *, streamed: bool, counted: bool, limits: Limits, request_id: str, now_s: float) -> None:
        """`counted` is False for count_tokens, whose answer is free."""
        self._streamed = streamed
        self._counted = counted
        self.limits = limits
        self._request_id = request_id
        self.reused = False     # on a kept connection, which may have been closed by the provider meanwhile
        self._phase = _WAITING
        self._started_s = self._sent_s = self._last_s = now_s
        self._head_s = 0.0
        self._paused_s: float | None = None
        self._head: ResponseHead | None = None
        self._held: list[bytes] = []
        self.held_bytes = 0     # withheld from the caller until the commit point
        self.reader: StreamReader | None = None    # of the stream that is relayed
        self.first_content_s: float | None = None
        self._certain: Ending | None = None
        self.ending: Ending | None = None

    # ---------------------------------------------------------------- what bytes tell

    def received(self, head: ResponseHead | None, data: bytes, whole: bool, now_s: float) -> Step:
        """Take what one read gave: perhaps the head, body bytes, and whether the message ended by its framing."""
        self._last_s = now_s
        if self._phase is _STREAMING:
            return self._stream_on(data, whole)
        if self._phase is _ENDED:
            return _NONE
        if head is not None:
            self._head, self._head_s, self._phase = head, now_s, _HOLDING
            if not self._open(head):
                return self._fail(Trouble.BROKEN, "unexpected_answer")
        return self._hold(data, whole, now_s)

    def lost(self, how: Lost, now_s: float) -> Step:
        """Learn that the upstream connection ended early."""
        if self._phase is _ENDED:
            return _NONE
        if self._phase is _STREAMING:
            return self._end_stream("cut", OUTCOME_TRUNCATED)
        if how is Lost.MALFORMED:
            return self._fail(Trouble.BROKEN, "malformed_http")
        if how is Lost.CUT:
            return self._fail(Trouble.CUT, "cut", OUTCOME_TRUNCATED)
        return self._fail(Trouble.STALE if self.reused else Trouble.RESET, "reset")

    def connected(self, now_s: float) -> None:
        """Note that the request is being handed to the socket: from now on the provider is waited for."""
        self._sent_s = self._last_s = now_s

    # ---------------------------------------------------------------- what time and people tell

    @property
    def deadline_s(self) -> float:
        """When `tick` has something to do unless something happens before; infinite once ended."""
        return self._deadline()[0]

    def tick(self, now_s: float) -> Step:
        """Let time pass."""
        deadline_s, reason = self._deadline()
        if now_s < deadline_s:
            return _NONE
        if reason == "client_stall":
            return self.client_gone()
        if self._phase is _STREAMING:
            return self._end_stream(reason, OUTCOME_TIMEOUT)
        return self._fail(Trouble.SILENT, reason, OUTCOME_TIMEOUT)

    def moved(self, now_s: float) -> None:
        """Note that content went the short way, past this machine."""
        self._last_s = now_s

    def paused(self, now_s: float) -> None:
        """Note that the caller does not keep up, so that silence is not the provider's fault."""
        self._paused_s = now_s

    def resumed(self, now_s: float) -> None:
        """Note that the caller reads on."""
        self._paused_s = None
        self._last_s = now_s

    def client_gone(self) -> Step:
        """Learn that nobody waits for the answer any more."""
        if self._phase is _ENDED:
            return _NONE
        if self.reader is not None and self.reader.stopped and self._phase is _STREAMING:
            return self._end_ok(Finish.NOTHING)
        return self._end(Finish.NOTHING, OUTCOME_CLIENT_GONE, "client_gone", self._phase is _STREAMING)

    def stop(self) -> Step:
        """End now because this gateway must stop."""
        if self._phase is _ENDED:
            return _NONE
        if self._phase is _STREAMING:
            return self._end_stream(Trouble.STOPPING.value, OUTCOME_TRUNCATED)
        return self._fail(Trouble.STOPPING, Trouble.STOPPING.value)

    def overflow(self) -> Step:
        """End now because this process has no room: in memory for what is withheld, or for another connection."""
        return self._fail(Trouble.OVERFLOW, Trouble.OVERFLOW.value)

    # ---------------------------------------------------------------- before the commit point

    def _open(self, head: ResponseHead) -> bool:
        """Whether the head is one that this request may get."""
        if head.status >= FIRST_ERROR_STATUS:
            return True
        if head.status != 200 or (b"content-encoding" in head.fields and _encoded(head.headers)):
            return False
        kind = head.fields.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if self._streamed:
            self.reader = StreamReader()
            return kind == b"text/event-stream"
        return kind == b"application/json"

    def _hold(self, data: bytes, whole: bool, now_s: float) -> Step:
        assert self._head is not None
        reader = self.reader
        if reader is not None:
            return self._hold_prelude(reader, data, whole, now_s)
        if whole and not self._held and len(data) <= MAX_ERROR_BYTES:
            return self._end_whole(self._head, data)
        if data:
            self._held.append(data)
            self.held_bytes += len(data)
        if self.held_bytes > (MAX_ERROR_BYTES if self._head.status >= FIRST_ERROR_STATUS else MAX_ANSWER_BYTES):
            return self._fail(Trouble.BROKEN, "answer_too_large")
        return self._end_whole(self._head, b"".join(self._held)) if whole else _NONE

    def _hold_prelude(self, reader: StreamReader, data: bytes, whole: bool, now_s: float) -> Step:
        frames = reader.feed(data)
        if reader.content_seen:
            return self._commit(frames, whole, now_s)
        if reader.error is not None:
            return self._fail_by_frame(reader)
        if frames:
            self._held.append(frames)
            self.held_bytes += len(frames)
        if whole:
            return self._fail(Trouble.CUT, "ended_without_content", OUTCOME_TRUNCATED)
        if self.held_bytes > MAX_PRELUDE_BYTES:
            return self._fail(Trouble.BROKEN, "endless_prelude")
        return _NONE

    def _commit(self, frames: bytes, whole: bool, now_s: float) -> Step:
        self._phase = _STREAMING
        self.first_content_s = now_s
        self._held.append(frames)
        data = b"".join(self._held)
        self._release()
        if not whole:
            return Step(self._head, data)
        last = self._end_of_stream()
        return Step(self._head, data + last.data, last.finish)

    def _end_whole(self, head: ResponseHead, body: bytes) -> Step:
        if head.status >= FIRST_ERROR_STATUS:
            return self._fail_by_answer(head, body)
        found = usage_of_message(body)
        if found is None and not _is_json(body):
            if head.until_close:
                return self._fail(Trouble.CUT, "cut", OUTCOME_TRUNCATED)
            return self._fail(Trouble.BROKEN, "not_json")
        self._release()
        self.first_content_s = self._last_s
        self._phase = _ENDED
        billed = self._counted and found is not None
        self.ending = Ending(
            OUTCOME_OK, status=head.status, committed=True, had_content=self._counted, head=head,
            usage=token_usage(found.usage) if found is not None and billed else None,
            served_model=found.model if found is not None and billed else "",
            stop_reason=found.stop_reason if found is not None else "",
        )
        return Step(head, body, Finish.WHOLE)

    def _fail_by_answer(self, head: ResponseHead, body: bytes) -> Step:
        verdict = classify(head.status, head.headers, body)
        step = self._fail(Trouble.PROVIDER, verdict.error_class.value)
        self._keep_error(verdict, head, body)
        return step

    def _fail_by_frame(self, reader: StreamReader) -> Step:
        """An `error` frame before content counts as its status, with the frame's data as the body."""
        assert self._head is not None
        assert reader.error is not None
        frame = reader.error
        verdict = classify(frame.status, self._head.headers, frame.raw)
        kept = [(n, v) for n, v in self._head.headers if n not in (b"content-type", b"content-length")]
        head = ResponseHead(frame.status, [*kept, (b"content-type", b"application/json")])
        step = self._fail(Trouble.PROVIDER, verdict.error_class.value)
        self._keep_error(verdict, head, frame.raw)
        return step

    def _keep_error(self, verdict: Verdict, head: ResponseHead, body: bytes) -> None:
        assert self.ending is not None
        self.ending.status = head.status
        self.ending.verdict = verdict
        self.ending.answer = head
        self.ending.answer_body = body

    # ---------------------------------------------------------------- after it

    def _stream_on(self, data: bytes, whole: bool) -> Step:
        assert self.reader is not None
        frames = self.reader.feed(data) if data else b""
        if not whole:
            return Step(None, frames)
        last = self._end_of_stream()
        return Step(None, frames + last.data, last.finish)

    def _end_of_stream(self) -> Step:
        """The provider ended the message; whether that is the end of the answer its frames tell."""
        assert self.reader is not None
        rest = self.reader.flush()
        if self.reader.stopped:
            return self._end_ok(Finish.WHOLE, rest)
        return self._end_stream("message_stop_missing", OUTCOME_TRUNCATED)

    def _end_stream(self, reason: str, outcome: Outcome) -> Step:
        """End a stream that stopped before its end, unless it had said all or had named its own error."""
        reader = self.reader
        assert reader is not None
        if reader.stopped:
            return self._end_ok(Finish.WHOLE)
        if reader.error is not None:
            verdict = classify(reader.error.status, self._head.headers if self._head else [], reader.error.raw)
            step = self._end(Finish.WHOLE, OUTCOME_UPSTREAM_ERROR, verdict.error_class.value, committed=True)
            assert self.ending is not None
            self.ending.verdict = verdict
            return step
        step = self._end(Finish.WHOLE, outcome, reason, committed=True)
        if reader.inside_frame:
            step.finish = Finish.BREAK
        else:
            step.data = sse_error_event(
                "api_error", "The provider's answer broke off; what came before is all there is.",
                "upstream_truncated", self._request_id,
            )
        return step

    # ---------------------------------------------------------------- endings

    def unreachable(self, *, timed_out: bool, proxy: bool = False) -> None:
        """End an attempt whose connection could not be made; `proxy`: for the fault of the account's proxy."""
        trouble = Trouble.PROXY if proxy else Trouble.UNREACHABLE
        reason = "connect_timeout" if timed_out and not proxy else trouble.value
        self._fail(trouble, reason, OUTCOME_TIMEOUT if timed_out else OUTCOME_UPSTREAM_ERROR)

    def _fail(self, trouble: Trouble, reason: str, outcome: Outcome = OUTCOME_UPSTREAM_ERROR) -> Step:
        step = self._end(Finish.NOTHING, outcome, reason, committed=False)
        assert self.ending is not None
        self.ending.trouble = trouble
        return step

    def _end_ok(self, finish: Finish, data: bytes = b"") -> Step:
        step = self._end(finish, OUTCOME_OK, "", committed=True)
        step.data = data
        return step

    def certain_ending(self) -> Ending | None:
        """Return how a stream that still runs will end whatever comes: message_stop is there. None before that."""
        if self._phase is not _STREAMING or self.reader is None or not self.reader.stopped:
            return None
        if self._certain is None:
            self._certain = self._ending(OUTCOME_OK, "", committed=True)
        return self._certain

    def _end(self, finish: Finish, outcome: Outcome, reason: str, committed: bool) -> Step:
        self._phase = _ENDED
        self._release()
        self.ending = self._certain or self._ending(outcome, reason, committed)
        return Step(finish=finish)

    def _ending(self, outcome: Outcome, reason: str, committed: bool) -> Ending:
        ending = Ending(outcome, reason, self._head.status if self._head else 0, committed, head=self._head)
        if self.reader is not None and committed:
            usage, ending.estimated = self.reader.billed()
            ending.usage = token_usage(usage)
            ending.had_content = True
        if self.reader is not None:
            ending.served_model = self.reader.model
            ending.stop_reason = self.reader.stop_reason
        return ending

    def _release(self) -> None:
        self._held = []
        self.held_bytes = 0

    def _deadline(self) -> tuple[float, str]:
        if self._phase is _ENDED:
            return float("inf"), ""
        limits = self.limits
        total = (self._started_s + limits.total_s, "total_timeout")
        if self._phase is _WAITING:
            wait_s = limits.headers_s if self._streamed else limits.headers_unstreamed_s
            return min((self._sent_s + wait_s, "headers_timeout"), total)
        if self._paused_s is not None:
            return min((self._paused_s + limits.client_stall_s, "client_stall"), total)
        if self._phase is _HOLDING and self.reader is not None:
            return min((self._head_s + limits.first_content_s, "first_content_timeout"), total)
        return min((self._last_s + limits.idle_s, "idle_timeout"), total)


def _encoded(headers: Headers) -> bool:
    return any(n == b"content-encoding" and v.strip().lower() not in (b"", b"identity") for n, v in headers)


def _is_json(body: bytes) -> bool:
    try:
        json.loads(body)
    except (ValueError, RecursionError):
        return False
    return True
