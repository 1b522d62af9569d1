from signalbox.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class InspectRequest(_message.Message):
    __slots__ = ("seq", "key_hash", "source_address", "client", "with_limits", "with_accounts")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    KEY_HASH_FIELD_NUMBER: _ClassVar[int]
    SOURCE_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    WITH_LIMITS_FIELD_NUMBER: _ClassVar[int]
    WITH_ACCOUNTS_FIELD_NUMBER: _ClassVar[int]
    seq: int
    key_hash: bytes
    source_address: str
    client: str
    with_limits: bool
    with_accounts: bool
    def __init__(self, seq: _Optional[int] = ..., key_hash: _Optional[bytes] = ..., source_address: _Optional[str] = ..., client: _Optional[str] = ..., with_limits: _Optional[bool] = ..., with_accounts: _Optional[bool] = ...) -> None: ...

class InspectResponse(_message.Message):
    __slots__ = ("seq", "denial", "key_id", "owner", "state", "expires_at_ms", "first_used_at_ms", "concurrency_limit", "in_flight", "limits", "accounts", "key_models")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    DENIAL_FIELD_NUMBER: _ClassVar[int]
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_MS_FIELD_NUMBER: _ClassVar[int]
    FIRST_USED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    CONCURRENCY_LIMIT_FIELD_NUMBER: _ClassVar[int]
    IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    ACCOUNTS_FIELD_NUMBER: _ClassVar[int]
    KEY_MODELS_FIELD_NUMBER: _ClassVar[int]
    seq: int
    denial: Denial
    key_id: str
    owner: str
    state: str
    expires_at_ms: int
    first_used_at_ms: int
    concurrency_limit: int
    in_flight: int
    limits: _containers.RepeatedCompositeFieldContainer[_common_pb2.LimitState]
    accounts: _containers.RepeatedCompositeFieldContainer[AccountModels]
    key_models: ModelRules
    def __init__(self, seq: _Optional[int] = ..., denial: _Optional[_Union[Denial, _Mapping]] = ..., key_id: _Optional[str] = ..., owner: _Optional[str] = ..., state: _Optional[str] = ..., expires_at_ms: _Optional[int] = ..., first_used_at_ms: _Optional[int] = ..., concurrency_limit: _Optional[int] = ..., in_flight: _Optional[int] = ..., limits: _Optional[_Iterable[_Union[_common_pb2.LimitState, _Mapping]]] = ..., accounts: _Optional[_Iterable[_Union[AccountModels, _Mapping]]] = ..., key_models: _Optional[_Union[ModelRules, _Mapping]] = ...) -> None: ...

class ModelRules(_message.Message):
    __slots__ = ("allow", "deny")
    ALLOW_FIELD_NUMBER: _ClassVar[int]
    DENY_FIELD_NUMBER: _ClassVar[int]
    allow: _containers.RepeatedScalarFieldContainer[str]
    deny: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, allow: _Optional[_Iterable[str]] = ..., deny: _Optional[_Iterable[str]] = ...) -> None: ...

class AccountModels(_message.Message):
    __slots__ = ("account_id", "base_url", "provider", "models", "map")
    class MapEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ACCOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    BASE_URL_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    MAP_FIELD_NUMBER: _ClassVar[int]
    account_id: str
    base_url: str
    provider: str
    models: ModelRules
    map: _containers.ScalarMap[str, str]
    def __init__(self, account_id: _Optional[str] = ..., base_url: _Optional[str] = ..., provider: _Optional[str] = ..., models: _Optional[_Union[ModelRules, _Mapping]] = ..., map: _Optional[_Mapping[str, str]] = ...) -> None: ...

class AdmitRequest(_message.Message):
    __slots__ = ("seq", "request_id", "key_hash", "route", "model", "models", "client", "source_address", "session", "session_derived", "state_bound", "stream", "input_bytes", "max_tokens", "unseen_input", "gateway_id", "deadline_ms", "speed", "inference_geo", "wants_limit_lines", "traceparent")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    KEY_HASH_FIELD_NUMBER: _ClassVar[int]
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    SOURCE_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    SESSION_DERIVED_FIELD_NUMBER: _ClassVar[int]
    STATE_BOUND_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    INPUT_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    UNSEEN_INPUT_FIELD_NUMBER: _ClassVar[int]
    GATEWAY_ID_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    SPEED_FIELD_NUMBER: _ClassVar[int]
    INFERENCE_GEO_FIELD_NUMBER: _ClassVar[int]
    WANTS_LIMIT_LINES_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    seq: int
    request_id: str
    key_hash: bytes
    route: str
    model: str
    models: _containers.RepeatedScalarFieldContainer[str]
    client: str
    source_address: str
    session: bytes
    session_derived: bool
    state_bound: bool
    stream: bool
    input_bytes: int
    max_tokens: int
    unseen_input: bool
    gateway_id: str
    deadline_ms: int
    speed: str
    inference_geo: str
    wants_limit_lines: bool
    traceparent: str
    def __init__(self, seq: _Optional[int] = ..., request_id: _Optional[str] = ..., key_hash: _Optional[bytes] = ..., route: _Optional[str] = ..., model: _Optional[str] = ..., models: _Optional[_Iterable[str]] = ..., client: _Optional[str] = ..., source_address: _Optional[str] = ..., session: _Optional[bytes] = ..., session_derived: _Optional[bool] = ..., state_bound: _Optional[bool] = ..., stream: _Optional[bool] = ..., input_bytes: _Optional[int] = ..., max_tokens: _Optional[int] = ..., unseen_input: _Optional[bool] = ..., gateway_id: _Optional[str] = ..., deadline_ms: _Optional[int] = ..., speed: _Optional[str] = ..., inference_geo: _Optional[str] = ..., wants_limit_lines: _Optional[bool] = ..., traceparent: _Optional[str] = ...) -> None: ...

class AdmitResponse(_message.Message):
    __slots__ = ("seq", "grant", "denial", "limits", "decision", "limit_lines")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    GRANT_FIELD_NUMBER: _ClassVar[int]
    DENIAL_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    DECISION_FIELD_NUMBER: _ClassVar[int]
    LIMIT_LINES_FIELD_NUMBER: _ClassVar[int]
    seq: int
    grant: Grant
    denial: Denial
    limits: _containers.RepeatedCompositeFieldContainer[_common_pb2.LimitState]
    decision: bytes
    limit_lines: bytes
    def __init__(self, seq: _Optional[int] = ..., grant: _Optional[_Union[Grant, _Mapping]] = ..., denial: _Optional[_Union[Denial, _Mapping]] = ..., limits: _Optional[_Iterable[_Union[_common_pb2.LimitState, _Mapping]]] = ..., decision: _Optional[bytes] = ..., limit_lines: _Optional[bytes] = ...) -> None: ...

class Grant(_message.Message):
    __slots__ = ("lease_id", "lease_token", "attempt", "key_id", "owner", "account_id", "pool_id", "provider", "base_url", "send_model", "repinned", "has_proxy", "admitted_at_ms", "max_attempts", "attempts_left", "timeouts", "lease_ttl_ms", "waited_ms")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    POOL_ID_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    BASE_URL_FIELD_NUMBER: _ClassVar[int]
    SEND_MODEL_FIELD_NUMBER: _ClassVar[int]
    REPINNED_FIELD_NUMBER: _ClassVar[int]
    HAS_PROXY_FIELD_NUMBER: _ClassVar[int]
    ADMITTED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    MAX_ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_LEFT_FIELD_NUMBER: _ClassVar[int]
    TIMEOUTS_FIELD_NUMBER: _ClassVar[int]
    LEASE_TTL_MS_FIELD_NUMBER: _ClassVar[int]
    WAITED_MS_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    lease_token: bytes
    attempt: int
    key_id: str
    owner: str
    account_id: str
    pool_id: str
    provider: str
    base_url: str
    send_model: str
    repinned: bool
    has_proxy: bool
    admitted_at_ms: int
    max_attempts: int
    attempts_left: int
    timeouts: Timeouts
    lease_ttl_ms: int
    waited_ms: int
    def __init__(self, lease_id: _Optional[str] = ..., lease_token: _Optional[bytes] = ..., attempt: _Optional[int] = ..., key_id: _Optional[str] = ..., owner: _Optional[str] = ..., account_id: _Optional[str] = ..., pool_id: _Optional[str] = ..., provider: _Optional[str] = ..., base_url: _Optional[str] = ..., send_model: _Optional[str] = ..., repinned: _Optional[bool] = ..., has_proxy: _Optional[bool] = ..., admitted_at_ms: _Optional[int] = ..., max_attempts: _Optional[int] = ..., attempts_left: _Optional[int] = ..., timeouts: _Optional[_Union[Timeouts, _Mapping]] = ..., lease_ttl_ms: _Optional[int] = ..., waited_ms: _Optional[int] = ...) -> None: ...

class Timeouts(_message.Message):
    __slots__ = ("connect", "headers", "headers_unstreamed", "first_content", "idle", "total")
    CONNECT_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    HEADERS_UNSTREAMED_FIELD_NUMBER: _ClassVar[int]
    FIRST_CONTENT_FIELD_NUMBER: _ClassVar[int]
    IDLE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    connect: int
    headers: int
    headers_unstreamed: int
    first_content: int
    idle: int
    total: int
    def __init__(self, connect: _Optional[int] = ..., headers: _Optional[int] = ..., headers_unstreamed: _Optional[int] = ..., first_content: _Optional[int] = ..., idle: _Optional[int] = ..., total: _Optional[int] = ...) -> None: ...

class Denial(_message.Message):
    __slots__ = ("error_code", "message", "retry_after_ms", "never_fits", "key_id", "owner")
    ERROR_CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    NEVER_FITS_FIELD_NUMBER: _ClassVar[int]
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    error_code: str
    message: str
    retry_after_ms: int
    never_fits: bool
    key_id: str
    owner: str
    def __init__(self, error_code: _Optional[str] = ..., message: _Optional[str] = ..., retry_after_ms: _Optional[int] = ..., never_fits: _Optional[bool] = ..., key_id: _Optional[str] = ..., owner: _Optional[str] = ...) -> None: ...

class Decision(_message.Message):
    __slots__ = ("strategy", "pin", "considered", "candidates", "chosen", "reason", "excluded", "waited_ms", "waited_for", "pinned", "pin_reason")
    class ExcludedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    STRATEGY_FIELD_NUMBER: _ClassVar[int]
    PIN_FIELD_NUMBER: _ClassVar[int]
    CONSIDERED_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    CHOSEN_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    EXCLUDED_FIELD_NUMBER: _ClassVar[int]
    WAITED_MS_FIELD_NUMBER: _ClassVar[int]
    WAITED_FOR_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    PIN_REASON_FIELD_NUMBER: _ClassVar[int]
    strategy: str
    pin: str
    considered: int
    candidates: _containers.RepeatedCompositeFieldContainer[Candidate]
    chosen: str
    reason: str
    excluded: _containers.ScalarMap[str, int]
    waited_ms: int
    waited_for: str
    pinned: str
    pin_reason: str
    def __init__(self, strategy: _Optional[str] = ..., pin: _Optional[str] = ..., considered: _Optional[int] = ..., candidates: _Optional[_Iterable[_Union[Candidate, _Mapping]]] = ..., chosen: _Optional[str] = ..., reason: _Optional[str] = ..., excluded: _Optional[_Mapping[str, int]] = ..., waited_ms: _Optional[int] = ..., waited_for: _Optional[str] = ..., pinned: _Optional[str] = ..., pin_reason: _Optional[str] = ...) -> None: ...

class Candidate(_message.Message):
    __slots__ = ("account_id", "score", "note")
    ACCOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    account_id: str
    score: int
    note: str
    def __init__(self, account_id: _Optional[str] = ..., score: _Optional[int] = ..., note: _Optional[str] = ...) -> None: ...

class RetryRequest(_message.Message):
    __slots__ = ("seq", "failed", "same_account", "deadline_ms", "waited_ms", "traceparent")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    SAME_ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    WAITED_MS_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    seq: int
    failed: SettleRequest
    same_account: bool
    deadline_ms: int
    waited_ms: int
    traceparent: str
    def __init__(self, seq: _Optional[int] = ..., failed: _Optional[_Union[SettleRequest, _Mapping]] = ..., same_account: _Optional[bool] = ..., deadline_ms: _Optional[int] = ..., waited_ms: _Optional[int] = ..., traceparent: _Optional[str] = ...) -> None: ...

class AccountEffect(_message.Message):
    __slots__ = ("kind", "reason", "until_ms", "model_class", "account_only")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        NONE: _ClassVar[AccountEffect.Kind]
        REST: _ClassVar[AccountEffect.Kind]
        BENCH: _ClassVar[AccountEffect.Kind]
        COOL: _ClassVar[AccountEffect.Kind]
    NONE: AccountEffect.Kind
    REST: AccountEffect.Kind
    BENCH: AccountEffect.Kind
    COOL: AccountEffect.Kind
    KIND_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    UNTIL_MS_FIELD_NUMBER: _ClassVar[int]
    MODEL_CLASS_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_ONLY_FIELD_NUMBER: _ClassVar[int]
    kind: AccountEffect.Kind
    reason: str
    until_ms: int
    model_class: str
    account_only: bool
    def __init__(self, kind: _Optional[_Union[AccountEffect.Kind, str]] = ..., reason: _Optional[str] = ..., until_ms: _Optional[int] = ..., model_class: _Optional[str] = ..., account_only: _Optional[bool] = ...) -> None: ...

class SettleRequest(_message.Message):
    __slots__ = ("seq", "lease_id", "lease_token", "outcome", "status", "had_content", "usage", "served_model", "estimated", "effect", "windows", "retry_after_ms", "ttft_ms", "duration_ms", "more_attempts", "unused")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    HAD_CONTENT_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    SERVED_MODEL_FIELD_NUMBER: _ClassVar[int]
    ESTIMATED_FIELD_NUMBER: _ClassVar[int]
    EFFECT_FIELD_NUMBER: _ClassVar[int]
    WINDOWS_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    TTFT_MS_FIELD_NUMBER: _ClassVar[int]
    DURATION_MS_FIELD_NUMBER: _ClassVar[int]
    MORE_ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    UNUSED_FIELD_NUMBER: _ClassVar[int]
    seq: int
    lease_id: str
    lease_token: bytes
    outcome: _common_pb2.Outcome
    status: int
    had_content: bool
    usage: _common_pb2.TokenUsage
    served_model: str
    estimated: bool
    effect: AccountEffect
    windows: _containers.RepeatedCompositeFieldContainer[_common_pb2.Window]
    retry_after_ms: int
    ttft_ms: int
    duration_ms: int
    more_attempts: bool
    unused: bool
    def __init__(self, seq: _Optional[int] = ..., lease_id: _Optional[str] = ..., lease_token: _Optional[bytes] = ..., outcome: _Optional[_Union[_common_pb2.Outcome, str]] = ..., status: _Optional[int] = ..., had_content: _Optional[bool] = ..., usage: _Optional[_Union[_common_pb2.TokenUsage, _Mapping]] = ..., served_model: _Optional[str] = ..., estimated: _Optional[bool] = ..., effect: _Optional[_Union[AccountEffect, _Mapping]] = ..., windows: _Optional[_Iterable[_Union[_common_pb2.Window, _Mapping]]] = ..., retry_after_ms: _Optional[int] = ..., ttft_ms: _Optional[int] = ..., duration_ms: _Optional[int] = ..., more_attempts: _Optional[bool] = ..., unused: _Optional[bool] = ...) -> None: ...

class SettleResponse(_message.Message):
    __slots__ = ("seq",)
    SEQ_FIELD_NUMBER: _ClassVar[int]
    seq: int
    def __init__(self, seq: _Optional[int] = ...) -> None: ...

class HeartbeatRequest(_message.Message):
    __slots__ = ("seq", "gateway_id", "leases")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    GATEWAY_ID_FIELD_NUMBER: _ClassVar[int]
    LEASES_FIELD_NUMBER: _ClassVar[int]
    seq: int
    gateway_id: str
    leases: _containers.RepeatedCompositeFieldContainer[LeaseBeat]
    def __init__(self, seq: _Optional[int] = ..., gateway_id: _Optional[str] = ..., leases: _Optional[_Iterable[_Union[LeaseBeat, _Mapping]]] = ...) -> None: ...

class LeaseBeat(_message.Message):
    __slots__ = ("lease_id", "lease_token", "usage", "output_tokens", "served_model")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SERVED_MODEL_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    lease_token: bytes
    usage: _common_pb2.TokenUsage
    output_tokens: int
    served_model: str
    def __init__(self, lease_id: _Optional[str] = ..., lease_token: _Optional[bytes] = ..., usage: _Optional[_Union[_common_pb2.TokenUsage, _Mapping]] = ..., output_tokens: _Optional[int] = ..., served_model: _Optional[str] = ...) -> None: ...

class HeartbeatResponse(_message.Message):
    __slots__ = ("seq", "lost")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    seq: int
    lost: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, seq: _Optional[int] = ..., lost: _Optional[_Iterable[str]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("gateway_id", "protocol")
    GATEWAY_ID_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    gateway_id: str
    protocol: str
    def __init__(self, gateway_id: _Optional[str] = ..., protocol: _Optional[str] = ...) -> None: ...

class JournalDelivered(_message.Message):
    __slots__ = ("epoch",)
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    epoch: str
    def __init__(self, epoch: _Optional[str] = ...) -> None: ...

class DeliverJournal(_message.Message):
    __slots__ = ("epoch",)
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    epoch: str
    def __init__(self, epoch: _Optional[str] = ...) -> None: ...

class Cancel(_message.Message):
    __slots__ = ("request_id",)
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    def __init__(self, request_id: _Optional[str] = ...) -> None: ...

class Queued(_message.Message):
    __slots__ = ("seq", "wait_ms")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    WAIT_MS_FIELD_NUMBER: _ClassVar[int]
    seq: int
    wait_ms: int
    def __init__(self, seq: _Optional[int] = ..., wait_ms: _Optional[int] = ...) -> None: ...

class GatewayBatch(_message.Message):
    __slots__ = ("hello", "inspects", "admits", "retries", "settles", "heartbeats", "journal_delivered", "cancels")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    INSPECTS_FIELD_NUMBER: _ClassVar[int]
    ADMITS_FIELD_NUMBER: _ClassVar[int]
    RETRIES_FIELD_NUMBER: _ClassVar[int]
    SETTLES_FIELD_NUMBER: _ClassVar[int]
    HEARTBEATS_FIELD_NUMBER: _ClassVar[int]
    JOURNAL_DELIVERED_FIELD_NUMBER: _ClassVar[int]
    CANCELS_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    inspects: _containers.RepeatedCompositeFieldContainer[InspectRequest]
    admits: _containers.RepeatedCompositeFieldContainer[AdmitRequest]
    retries: _containers.RepeatedCompositeFieldContainer[RetryRequest]
    settles: _containers.RepeatedCompositeFieldContainer[SettleRequest]
    heartbeats: _containers.RepeatedCompositeFieldContainer[HeartbeatRequest]
    journal_delivered: JournalDelivered
    cancels: _containers.RepeatedCompositeFieldContainer[Cancel]
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., inspects: _Optional[_Iterable[_Union[InspectRequest, _Mapping]]] = ..., admits: _Optional[_Iterable[_Union[AdmitRequest, _Mapping]]] = ..., retries: _Optional[_Iterable[_Union[RetryRequest, _Mapping]]] = ..., settles: _Optional[_Iterable[_Union[SettleRequest, _Mapping]]] = ..., heartbeats: _Optional[_Iterable[_Union[HeartbeatRequest, _Mapping]]] = ..., journal_delivered: _Optional[_Union[JournalDelivered, _Mapping]] = ..., cancels: _Optional[_Iterable[_Union[Cancel, _Mapping]]] = ...) -> None: ...

class SchedulerBatch(_message.Message):
    __slots__ = ("inspects", "admits", "settles", "heartbeats", "deliver_journal", "draining", "queued")
    INSPECTS_FIELD_NUMBER: _ClassVar[int]
    ADMITS_FIELD_NUMBER: _ClassVar[int]
    SETTLES_FIELD_NUMBER: _ClassVar[int]
    HEARTBEATS_FIELD_NUMBER: _ClassVar[int]
    DELIVER_JOURNAL_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    inspects: _containers.RepeatedCompositeFieldContainer[InspectResponse]
    admits: _containers.RepeatedCompositeFieldContainer[AdmitResponse]
    settles: _containers.RepeatedCompositeFieldContainer[SettleResponse]
    heartbeats: _containers.RepeatedCompositeFieldContainer[HeartbeatResponse]
    deliver_journal: DeliverJournal
    draining: bool
    queued: _containers.RepeatedCompositeFieldContainer[Queued]
    def __init__(self, inspects: _Optional[_Iterable[_Union[InspectResponse, _Mapping]]] = ..., admits: _Optional[_Iterable[_Union[AdmitResponse, _Mapping]]] = ..., settles: _Optional[_Iterable[_Union[SettleResponse, _Mapping]]] = ..., heartbeats: _Optional[_Iterable[_Union[HeartbeatResponse, _Mapping]]] = ..., deliver_journal: _Optional[_Union[DeliverJournal, _Mapping]] = ..., draining: _Optional[bool] = ..., queued: _Optional[_Iterable[_Union[Queued, _Mapping]]] = ...) -> None: ...

class Object(_message.Message):
    __slots__ = ("kind", "id", "revision", "spec_json", "conditions", "uid", "created_at_ms", "labels", "source", "managed")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    KIND_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    SPEC_JSON_FIELD_NUMBER: _ClassVar[int]
    CONDITIONS_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    MANAGED_FIELD_NUMBER: _ClassVar[int]
    kind: str
    id: str
    revision: str
    spec_json: bytes
    conditions: _containers.RepeatedCompositeFieldContainer[_common_pb2.Condition]
    uid: str
    created_at_ms: int
    labels: _containers.ScalarMap[str, str]
    source: str
    managed: bool
    def __init__(self, kind: _Optional[str] = ..., id: _Optional[str] = ..., revision: _Optional[str] = ..., spec_json: _Optional[bytes] = ..., conditions: _Optional[_Iterable[_Union[_common_pb2.Condition, _Mapping]]] = ..., uid: _Optional[str] = ..., created_at_ms: _Optional[int] = ..., labels: _Optional[_Mapping[str, str]] = ..., source: _Optional[str] = ..., managed: _Optional[bool] = ...) -> None: ...

class PutObjectsRequest(_message.Message):
    __slots__ = ("writer", "fence", "objects")
    WRITER_FIELD_NUMBER: _ClassVar[int]
    FENCE_FIELD_NUMBER: _ClassVar[int]
    OBJECTS_FIELD_NUMBER: _ClassVar[int]
    writer: str
    fence: int
    objects: _containers.RepeatedCompositeFieldContainer[Object]
    def __init__(self, writer: _Optional[str] = ..., fence: _Optional[int] = ..., objects: _Optional[_Iterable[_Union[Object, _Mapping]]] = ...) -> None: ...

class PutObjectsResponse(_message.Message):
    __slots__ = ("changed",)
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    changed: int
    def __init__(self, changed: _Optional[int] = ...) -> None: ...

class ObjectRef(_message.Message):
    __slots__ = ("kind", "id")
    KIND_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    kind: str
    id: str
    def __init__(self, kind: _Optional[str] = ..., id: _Optional[str] = ...) -> None: ...

class DeleteObjectsRequest(_message.Message):
    __slots__ = ("writer", "fence", "objects")
    WRITER_FIELD_NUMBER: _ClassVar[int]
    FENCE_FIELD_NUMBER: _ClassVar[int]
    OBJECTS_FIELD_NUMBER: _ClassVar[int]
    writer: str
    fence: int
    objects: _containers.RepeatedCompositeFieldContainer[ObjectRef]
    def __init__(self, writer: _Optional[str] = ..., fence: _Optional[int] = ..., objects: _Optional[_Iterable[_Union[ObjectRef, _Mapping]]] = ...) -> None: ...

class DeleteObjectsResponse(_message.Message):
    __slots__ = ("changed",)
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    changed: int
    def __init__(self, changed: _Optional[int] = ...) -> None: ...

class ListObjectsRequest(_message.Message):
    __slots__ = ("kinds", "ids", "with_status")
    KINDS_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    WITH_STATUS_FIELD_NUMBER: _ClassVar[int]
    kinds: _containers.RepeatedScalarFieldContainer[str]
    ids: _containers.RepeatedScalarFieldContainer[str]
    with_status: bool
    def __init__(self, kinds: _Optional[_Iterable[str]] = ..., ids: _Optional[_Iterable[str]] = ..., with_status: _Optional[bool] = ...) -> None: ...

class ListObjectsResponse(_message.Message):
    __slots__ = ("objects", "epoch")
    OBJECTS_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    objects: _containers.RepeatedCompositeFieldContainer[ObjectWithStatus]
    epoch: str
    def __init__(self, objects: _Optional[_Iterable[_Union[ObjectWithStatus, _Mapping]]] = ..., epoch: _Optional[str] = ...) -> None: ...

class ObjectWithStatus(_message.Message):
    __slots__ = ("object", "account", "pool", "key")
    OBJECT_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    object: Object
    account: AccountStatus
    pool: PoolStatus
    key: KeyStatus
    def __init__(self, object: _Optional[_Union[Object, _Mapping]] = ..., account: _Optional[_Union[AccountStatus, _Mapping]] = ..., pool: _Optional[_Union[PoolStatus, _Mapping]] = ..., key: _Optional[_Union[KeyStatus, _Mapping]] = ...) -> None: ...

class AccountStatus(_message.Message):
    __slots__ = ("state", "state_reason", "available", "reason", "limited_until_ms", "in_flight", "windows", "last_used_at_ms", "conditions")
    STATE_FIELD_NUMBER: _ClassVar[int]
    STATE_REASON_FIELD_NUMBER: _ClassVar[int]
    AVAILABLE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    LIMITED_UNTIL_MS_FIELD_NUMBER: _ClassVar[int]
    IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    WINDOWS_FIELD_NUMBER: _ClassVar[int]
    LAST_USED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    CONDITIONS_FIELD_NUMBER: _ClassVar[int]
    state: str
    state_reason: str
    available: bool
    reason: str
    limited_until_ms: int
    in_flight: int
    windows: _containers.RepeatedCompositeFieldContainer[_common_pb2.Window]
    last_used_at_ms: int
    conditions: _containers.RepeatedCompositeFieldContainer[_common_pb2.Condition]
    def __init__(self, state: _Optional[str] = ..., state_reason: _Optional[str] = ..., available: _Optional[bool] = ..., reason: _Optional[str] = ..., limited_until_ms: _Optional[int] = ..., in_flight: _Optional[int] = ..., windows: _Optional[_Iterable[_Union[_common_pb2.Window, _Mapping]]] = ..., last_used_at_ms: _Optional[int] = ..., conditions: _Optional[_Iterable[_Union[_common_pb2.Condition, _Mapping]]] = ...) -> None: ...

class PoolStatus(_message.Message):
    __slots__ = ("strategy", "total", "ready", "by_state", "conditions")
    class ByStateEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    STRATEGY_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    BY_STATE_FIELD_NUMBER: _ClassVar[int]
    CONDITIONS_FIELD_NUMBER: _ClassVar[int]
    strategy: str
    total: int
    ready: int
    by_state: _containers.ScalarMap[str, int]
    conditions: _containers.RepeatedCompositeFieldContainer[_common_pb2.Condition]
    def __init__(self, strategy: _Optional[str] = ..., total: _Optional[int] = ..., ready: _Optional[int] = ..., by_state: _Optional[_Mapping[str, int]] = ..., conditions: _Optional[_Iterable[_Union[_common_pb2.Condition, _Mapping]]] = ...) -> None: ...

class KeyStatus(_message.Message):
    __slots__ = ("state", "reason", "first_used_at_ms", "expires_at_ms", "concurrency_limit", "in_flight", "limits", "conditions")
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    FIRST_USED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_MS_FIELD_NUMBER: _ClassVar[int]
    CONCURRENCY_LIMIT_FIELD_NUMBER: _ClassVar[int]
    IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    CONDITIONS_FIELD_NUMBER: _ClassVar[int]
    state: str
    reason: str
    first_used_at_ms: int
    expires_at_ms: int
    concurrency_limit: int
    in_flight: int
    limits: _containers.RepeatedCompositeFieldContainer[_common_pb2.LimitState]
    conditions: _containers.RepeatedCompositeFieldContainer[_common_pb2.Condition]
    def __init__(self, state: _Optional[str] = ..., reason: _Optional[str] = ..., first_used_at_ms: _Optional[int] = ..., expires_at_ms: _Optional[int] = ..., concurrency_limit: _Optional[int] = ..., in_flight: _Optional[int] = ..., limits: _Optional[_Iterable[_Union[_common_pb2.LimitState, _Mapping]]] = ..., conditions: _Optional[_Iterable[_Union[_common_pb2.Condition, _Mapping]]] = ...) -> None: ...

class WatchObjectsRequest(_message.Message):
    __slots__ = ("kinds",)
    KINDS_FIELD_NUMBER: _ClassVar[int]
    kinds: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, kinds: _Optional[_Iterable[str]] = ...) -> None: ...

class ObjectEvent(_message.Message):
    __slots__ = ("type", "object", "epoch")
    class Type(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        TYPE_UNSPECIFIED: _ClassVar[ObjectEvent.Type]
        PUT: _ClassVar[ObjectEvent.Type]
        DELETED: _ClassVar[ObjectEvent.Type]
        STATUS: _ClassVar[ObjectEvent.Type]
        RESYNC: _ClassVar[ObjectEvent.Type]
        SYNCED: _ClassVar[ObjectEvent.Type]
    TYPE_UNSPECIFIED: ObjectEvent.Type
    PUT: ObjectEvent.Type
    DELETED: ObjectEvent.Type
    STATUS: ObjectEvent.Type
    RESYNC: ObjectEvent.Type
    SYNCED: ObjectEvent.Type
    TYPE_FIELD_NUMBER: _ClassVar[int]
    OBJECT_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    type: ObjectEvent.Type
    object: ObjectWithStatus
    epoch: str
    def __init__(self, type: _Optional[_Union[ObjectEvent.Type, str]] = ..., object: _Optional[_Union[ObjectWithStatus, _Mapping]] = ..., epoch: _Optional[str] = ...) -> None: ...
