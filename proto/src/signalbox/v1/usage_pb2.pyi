from signalbox.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AttemptEvent(_message.Message):
    __slots__ = ("request_id", "attempt", "lease_id", "route", "key_id", "owner", "account_id", "pool_id", "model", "client", "streamed", "admitted_at_ms", "started_at_ms", "decision", "gateway_id", "sent_model", "sent", "usage", "served_model", "had_content", "outcome", "status", "estimated", "duration_ms", "ttft_ms", "reason", "upstream_request_id", "retry_after_ms")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    POOL_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    STREAMED_FIELD_NUMBER: _ClassVar[int]
    ADMITTED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    DECISION_FIELD_NUMBER: _ClassVar[int]
    GATEWAY_ID_FIELD_NUMBER: _ClassVar[int]
    SENT_MODEL_FIELD_NUMBER: _ClassVar[int]
    SENT_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    SERVED_MODEL_FIELD_NUMBER: _ClassVar[int]
    HAD_CONTENT_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    ESTIMATED_FIELD_NUMBER: _ClassVar[int]
    DURATION_MS_FIELD_NUMBER: _ClassVar[int]
    TTFT_MS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    UPSTREAM_REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    attempt: int
    lease_id: str
    route: str
    key_id: str
    owner: str
    account_id: str
    pool_id: str
    model: str
    client: str
    streamed: bool
    admitted_at_ms: int
    started_at_ms: int
    decision: bytes
    gateway_id: str
    sent_model: str
    sent: bool
    usage: _common_pb2.TokenUsage
    served_model: str
    had_content: bool
    outcome: _common_pb2.Outcome
    status: int
    estimated: bool
    duration_ms: int
    ttft_ms: int
    reason: str
    upstream_request_id: str
    retry_after_ms: int
    def __init__(self, request_id: _Optional[str] = ..., attempt: _Optional[int] = ..., lease_id: _Optional[str] = ..., route: _Optional[str] = ..., key_id: _Optional[str] = ..., owner: _Optional[str] = ..., account_id: _Optional[str] = ..., pool_id: _Optional[str] = ..., model: _Optional[str] = ..., client: _Optional[str] = ..., streamed: _Optional[bool] = ..., admitted_at_ms: _Optional[int] = ..., started_at_ms: _Optional[int] = ..., decision: _Optional[bytes] = ..., gateway_id: _Optional[str] = ..., sent_model: _Optional[str] = ..., sent: _Optional[bool] = ..., usage: _Optional[_Union[_common_pb2.TokenUsage, _Mapping]] = ..., served_model: _Optional[str] = ..., had_content: _Optional[bool] = ..., outcome: _Optional[_Union[_common_pb2.Outcome, str]] = ..., status: _Optional[int] = ..., estimated: _Optional[bool] = ..., duration_ms: _Optional[int] = ..., ttft_ms: _Optional[int] = ..., reason: _Optional[str] = ..., upstream_request_id: _Optional[str] = ..., retry_after_ms: _Optional[int] = ...) -> None: ...

class IngestBatch(_message.Message):
    __slots__ = ("source", "batch", "events")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    source: str
    batch: int
    events: _containers.RepeatedCompositeFieldContainer[AttemptEvent]
    def __init__(self, source: _Optional[str] = ..., batch: _Optional[int] = ..., events: _Optional[_Iterable[_Union[AttemptEvent, _Mapping]]] = ...) -> None: ...

class IngestAck(_message.Message):
    __slots__ = ("batch",)
    BATCH_FIELD_NUMBER: _ClassVar[int]
    batch: int
    def __init__(self, batch: _Optional[int] = ...) -> None: ...

class QueryRequest(_message.Message):
    __slots__ = ("requests", "usage", "explain", "counters")
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    EXPLAIN_FIELD_NUMBER: _ClassVar[int]
    COUNTERS_FIELD_NUMBER: _ClassVar[int]
    requests: RequestsQuery
    usage: UsageQuery
    explain: ExplainQuery
    counters: CountersQuery
    def __init__(self, requests: _Optional[_Union[RequestsQuery, _Mapping]] = ..., usage: _Optional[_Union[UsageQuery, _Mapping]] = ..., explain: _Optional[_Union[ExplainQuery, _Mapping]] = ..., counters: _Optional[_Union[CountersQuery, _Mapping]] = ...) -> None: ...

class QueryResponse(_message.Message):
    __slots__ = ("rows", "usage", "counters", "facts", "as_of_ms", "accounts")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    COUNTERS_FIELD_NUMBER: _ClassVar[int]
    FACTS_FIELD_NUMBER: _ClassVar[int]
    AS_OF_MS_FIELD_NUMBER: _ClassVar[int]
    ACCOUNTS_FIELD_NUMBER: _ClassVar[int]
    rows: _containers.RepeatedCompositeFieldContainer[LedgerRow]
    usage: _containers.RepeatedCompositeFieldContainer[UsageRow]
    counters: _containers.RepeatedCompositeFieldContainer[CounterBucket]
    facts: _containers.RepeatedCompositeFieldContainer[Fact]
    as_of_ms: int
    accounts: _containers.RepeatedCompositeFieldContainer[AccountBucket]
    def __init__(self, rows: _Optional[_Iterable[_Union[LedgerRow, _Mapping]]] = ..., usage: _Optional[_Iterable[_Union[UsageRow, _Mapping]]] = ..., counters: _Optional[_Iterable[_Union[CounterBucket, _Mapping]]] = ..., facts: _Optional[_Iterable[_Union[Fact, _Mapping]]] = ..., as_of_ms: _Optional[int] = ..., accounts: _Optional[_Iterable[_Union[AccountBucket, _Mapping]]] = ...) -> None: ...

class RequestsQuery(_message.Message):
    __slots__ = ("key_id", "account_id", "since_ms", "until_ms", "last", "with_denials", "outcome", "before")
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    SINCE_MS_FIELD_NUMBER: _ClassVar[int]
    UNTIL_MS_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    WITH_DENIALS_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    key_id: str
    account_id: str
    since_ms: int
    until_ms: int
    last: int
    with_denials: bool
    outcome: str
    before: RowPlace
    def __init__(self, key_id: _Optional[str] = ..., account_id: _Optional[str] = ..., since_ms: _Optional[int] = ..., until_ms: _Optional[int] = ..., last: _Optional[int] = ..., with_denials: _Optional[bool] = ..., outcome: _Optional[str] = ..., before: _Optional[_Union[RowPlace, _Mapping]] = ...) -> None: ...

class RowPlace(_message.Message):
    __slots__ = ("admitted_at_ms", "request_id", "attempt")
    ADMITTED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    admitted_at_ms: int
    request_id: str
    attempt: int
    def __init__(self, admitted_at_ms: _Optional[int] = ..., request_id: _Optional[str] = ..., attempt: _Optional[int] = ...) -> None: ...

class UsageQuery(_message.Message):
    __slots__ = ("by", "since_ms", "until_ms", "key_id", "account_id")
    BY_FIELD_NUMBER: _ClassVar[int]
    SINCE_MS_FIELD_NUMBER: _ClassVar[int]
    UNTIL_MS_FIELD_NUMBER: _ClassVar[int]
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    by: _containers.RepeatedScalarFieldContainer[str]
    since_ms: int
    until_ms: int
    key_id: str
    account_id: str
    def __init__(self, by: _Optional[_Iterable[str]] = ..., since_ms: _Optional[int] = ..., until_ms: _Optional[int] = ..., key_id: _Optional[str] = ..., account_id: _Optional[str] = ...) -> None: ...

class ExplainQuery(_message.Message):
    __slots__ = ("request_id",)
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    def __init__(self, request_id: _Optional[str] = ...) -> None: ...

class CountersQuery(_message.Message):
    __slots__ = ("now_ms", "ended_since_ms", "delivered")
    NOW_MS_FIELD_NUMBER: _ClassVar[int]
    ENDED_SINCE_MS_FIELD_NUMBER: _ClassVar[int]
    DELIVERED_FIELD_NUMBER: _ClassVar[int]
    now_ms: int
    ended_since_ms: int
    delivered: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, now_ms: _Optional[int] = ..., ended_since_ms: _Optional[int] = ..., delivered: _Optional[_Iterable[str]] = ...) -> None: ...

class CounterBucket(_message.Message):
    __slots__ = ("key_id", "model", "served_model", "start_ms", "width_ms", "requests", "tokens", "cost_nano_usd", "sent_model")
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SERVED_MODEL_FIELD_NUMBER: _ClassVar[int]
    START_MS_FIELD_NUMBER: _ClassVar[int]
    WIDTH_MS_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    COST_NANO_USD_FIELD_NUMBER: _ClassVar[int]
    SENT_MODEL_FIELD_NUMBER: _ClassVar[int]
    key_id: str
    model: str
    served_model: str
    start_ms: int
    width_ms: int
    requests: int
    tokens: int
    cost_nano_usd: int
    sent_model: str
    def __init__(self, key_id: _Optional[str] = ..., model: _Optional[str] = ..., served_model: _Optional[str] = ..., start_ms: _Optional[int] = ..., width_ms: _Optional[int] = ..., requests: _Optional[int] = ..., tokens: _Optional[int] = ..., cost_nano_usd: _Optional[int] = ..., sent_model: _Optional[str] = ...) -> None: ...

class AccountBucket(_message.Message):
    __slots__ = ("account_id", "start_ms", "width_ms", "requests", "input_tokens", "output_tokens")
    ACCOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    START_MS_FIELD_NUMBER: _ClassVar[int]
    WIDTH_MS_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    account_id: str
    start_ms: int
    width_ms: int
    requests: int
    input_tokens: int
    output_tokens: int
    def __init__(self, account_id: _Optional[str] = ..., start_ms: _Optional[int] = ..., width_ms: _Optional[int] = ..., requests: _Optional[int] = ..., input_tokens: _Optional[int] = ..., output_tokens: _Optional[int] = ...) -> None: ...

class Fact(_message.Message):
    __slots__ = ("kind", "key_id", "name", "at_ms")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        KIND_UNSPECIFIED: _ClassVar[Fact.Kind]
        FIRST_USE: _ClassVar[Fact.Kind]
        LIMIT_SINCE: _ClassVar[Fact.Kind]
    KIND_UNSPECIFIED: Fact.Kind
    FIRST_USE: Fact.Kind
    LIMIT_SINCE: Fact.Kind
    KIND_FIELD_NUMBER: _ClassVar[int]
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    AT_MS_FIELD_NUMBER: _ClassVar[int]
    kind: Fact.Kind
    key_id: str
    name: str
    at_ms: int
    def __init__(self, kind: _Optional[_Union[Fact.Kind, str]] = ..., key_id: _Optional[str] = ..., name: _Optional[str] = ..., at_ms: _Optional[int] = ...) -> None: ...

class RememberRequest(_message.Message):
    __slots__ = ("facts",)
    FACTS_FIELD_NUMBER: _ClassVar[int]
    facts: _containers.RepeatedCompositeFieldContainer[Fact]
    def __init__(self, facts: _Optional[_Iterable[_Union[Fact, _Mapping]]] = ...) -> None: ...

class RememberResponse(_message.Message):
    __slots__ = ("facts",)
    FACTS_FIELD_NUMBER: _ClassVar[int]
    facts: _containers.RepeatedCompositeFieldContainer[Fact]
    def __init__(self, facts: _Optional[_Iterable[_Union[Fact, _Mapping]]] = ...) -> None: ...

class LedgerRow(_message.Message):
    __slots__ = ("request_id", "attempt", "route", "key_id", "owner", "account_id", "pool_id", "model", "served_model", "outcome", "status", "streamed", "usage", "estimated", "cost_nano_usd", "price_assumed", "started_at_ms", "duration_ms", "ttft_ms", "client", "reason", "decision", "upstream_request_id", "admitted_at_ms", "retry_after_ms", "sent_model")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    POOL_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SERVED_MODEL_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    STREAMED_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    ESTIMATED_FIELD_NUMBER: _ClassVar[int]
    COST_NANO_USD_FIELD_NUMBER: _ClassVar[int]
    PRICE_ASSUMED_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    DURATION_MS_FIELD_NUMBER: _ClassVar[int]
    TTFT_MS_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DECISION_FIELD_NUMBER: _ClassVar[int]
    UPSTREAM_REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ADMITTED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    SENT_MODEL_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    attempt: int
    route: str
    key_id: str
    owner: str
    account_id: str
    pool_id: str
    model: str
    served_model: str
    outcome: _common_pb2.Outcome
    status: int
    streamed: bool
    usage: _common_pb2.TokenUsage
    estimated: bool
    cost_nano_usd: int
    price_assumed: bool
    started_at_ms: int
    duration_ms: int
    ttft_ms: int
    client: str
    reason: str
    decision: bytes
    upstream_request_id: str
    admitted_at_ms: int
    retry_after_ms: int
    sent_model: str
    def __init__(self, request_id: _Optional[str] = ..., attempt: _Optional[int] = ..., route: _Optional[str] = ..., key_id: _Optional[str] = ..., owner: _Optional[str] = ..., account_id: _Optional[str] = ..., pool_id: _Optional[str] = ..., model: _Optional[str] = ..., served_model: _Optional[str] = ..., outcome: _Optional[_Union[_common_pb2.Outcome, str]] = ..., status: _Optional[int] = ..., streamed: _Optional[bool] = ..., usage: _Optional[_Union[_common_pb2.TokenUsage, _Mapping]] = ..., estimated: _Optional[bool] = ..., cost_nano_usd: _Optional[int] = ..., price_assumed: _Optional[bool] = ..., started_at_ms: _Optional[int] = ..., duration_ms: _Optional[int] = ..., ttft_ms: _Optional[int] = ..., client: _Optional[str] = ..., reason: _Optional[str] = ..., decision: _Optional[bytes] = ..., upstream_request_id: _Optional[str] = ..., admitted_at_ms: _Optional[int] = ..., retry_after_ms: _Optional[int] = ..., sent_model: _Optional[str] = ...) -> None: ...

class UsageRow(_message.Message):
    __slots__ = ("key_id", "owner", "account_id", "model", "day", "requests", "input_tokens", "output_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens", "cache_read_tokens", "cost_nano_usd")
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DAY_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHE_WRITE_5M_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHE_WRITE_1H_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHE_READ_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COST_NANO_USD_FIELD_NUMBER: _ClassVar[int]
    key_id: str
    owner: str
    account_id: str
    model: str
    day: str
    requests: int
    input_tokens: int
    output_tokens: int
    cache_write_5m_tokens: int
    cache_write_1h_tokens: int
    cache_read_tokens: int
    cost_nano_usd: str
    def __init__(self, key_id: _Optional[str] = ..., owner: _Optional[str] = ..., account_id: _Optional[str] = ..., model: _Optional[str] = ..., day: _Optional[str] = ..., requests: _Optional[int] = ..., input_tokens: _Optional[int] = ..., output_tokens: _Optional[int] = ..., cache_write_5m_tokens: _Optional[int] = ..., cache_write_1h_tokens: _Optional[int] = ..., cache_read_tokens: _Optional[int] = ..., cost_nano_usd: _Optional[str] = ...) -> None: ...

class WatchRowsRequest(_message.Message):
    __slots__ = ("key_id",)
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    key_id: str
    def __init__(self, key_id: _Optional[str] = ...) -> None: ...
