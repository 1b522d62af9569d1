from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Outcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OUTCOME_UNSPECIFIED: _ClassVar[Outcome]
    OUTCOME_OK: _ClassVar[Outcome]
    OUTCOME_CLIENT_GONE: _ClassVar[Outcome]
    OUTCOME_UPSTREAM_ERROR: _ClassVar[Outcome]
    OUTCOME_TRUNCATED: _ClassVar[Outcome]
    OUTCOME_TIMEOUT: _ClassVar[Outcome]
    OUTCOME_ORPHANED: _ClassVar[Outcome]
    OUTCOME_DENIED: _ClassVar[Outcome]
OUTCOME_UNSPECIFIED: Outcome
OUTCOME_OK: Outcome
OUTCOME_CLIENT_GONE: Outcome
OUTCOME_UPSTREAM_ERROR: Outcome
OUTCOME_TRUNCATED: Outcome
OUTCOME_TIMEOUT: Outcome
OUTCOME_ORPHANED: Outcome
OUTCOME_DENIED: Outcome

class TokenUsage(_message.Message):
    __slots__ = ("input_tokens", "output_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens", "cache_read_tokens", "web_search_requests", "service_tier", "inference_geo", "speed", "other_models")
    INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHE_WRITE_5M_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHE_WRITE_1H_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHE_READ_TOKENS_FIELD_NUMBER: _ClassVar[int]
    WEB_SEARCH_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    SERVICE_TIER_FIELD_NUMBER: _ClassVar[int]
    INFERENCE_GEO_FIELD_NUMBER: _ClassVar[int]
    SPEED_FIELD_NUMBER: _ClassVar[int]
    OTHER_MODELS_FIELD_NUMBER: _ClassVar[int]
    input_tokens: int
    output_tokens: int
    cache_write_5m_tokens: int
    cache_write_1h_tokens: int
    cache_read_tokens: int
    web_search_requests: int
    service_tier: str
    inference_geo: str
    speed: str
    other_models: _containers.RepeatedCompositeFieldContainer[IterationUsage]
    def __init__(self, input_tokens: _Optional[int] = ..., output_tokens: _Optional[int] = ..., cache_write_5m_tokens: _Optional[int] = ..., cache_write_1h_tokens: _Optional[int] = ..., cache_read_tokens: _Optional[int] = ..., web_search_requests: _Optional[int] = ..., service_tier: _Optional[str] = ..., inference_geo: _Optional[str] = ..., speed: _Optional[str] = ..., other_models: _Optional[_Iterable[_Union[IterationUsage, _Mapping]]] = ...) -> None: ...

class IterationUsage(_message.Message):
    __slots__ = ("model", "usage")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    model: str
    usage: TokenUsage
    def __init__(self, model: _Optional[str] = ..., usage: _Optional[_Union[TokenUsage, _Mapping]] = ...) -> None: ...

class Condition(_message.Message):
    __slots__ = ("type", "status", "reason", "message", "last_transition_ms")
    TYPE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    LAST_TRANSITION_MS_FIELD_NUMBER: _ClassVar[int]
    type: str
    status: bool
    reason: str
    message: str
    last_transition_ms: int
    def __init__(self, type: _Optional[str] = ..., status: _Optional[bool] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., last_transition_ms: _Optional[int] = ...) -> None: ...

class Window(_message.Message):
    __slots__ = ("name", "utilization", "limit", "remaining", "resets_at_ms", "status", "model_class")
    NAME_FIELD_NUMBER: _ClassVar[int]
    UTILIZATION_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    REMAINING_FIELD_NUMBER: _ClassVar[int]
    RESETS_AT_MS_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    MODEL_CLASS_FIELD_NUMBER: _ClassVar[int]
    name: str
    utilization: float
    limit: int
    remaining: int
    resets_at_ms: int
    status: str
    model_class: str
    def __init__(self, name: _Optional[str] = ..., utilization: _Optional[float] = ..., limit: _Optional[int] = ..., remaining: _Optional[int] = ..., resets_at_ms: _Optional[int] = ..., status: _Optional[str] = ..., model_class: _Optional[str] = ...) -> None: ...

class Amount(_message.Message):
    __slots__ = ("limit", "used", "reserved")
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    USED_FIELD_NUMBER: _ClassVar[int]
    RESERVED_FIELD_NUMBER: _ClassVar[int]
    limit: int
    used: int
    reserved: int
    def __init__(self, limit: _Optional[int] = ..., used: _Optional[int] = ..., reserved: _Optional[int] = ...) -> None: ...

class LimitState(_message.Message):
    __slots__ = ("name", "per", "models", "resets_at_ms", "requests", "tokens", "cost_nano_usd")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PER_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    RESETS_AT_MS_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    COST_NANO_USD_FIELD_NUMBER: _ClassVar[int]
    name: str
    per: str
    models: _containers.RepeatedScalarFieldContainer[str]
    resets_at_ms: int
    requests: Amount
    tokens: Amount
    cost_nano_usd: Amount
    def __init__(self, name: _Optional[str] = ..., per: _Optional[str] = ..., models: _Optional[_Iterable[str]] = ..., resets_at_ms: _Optional[int] = ..., requests: _Optional[_Union[Amount, _Mapping]] = ..., tokens: _Optional[_Union[Amount, _Mapping]] = ..., cost_nano_usd: _Optional[_Union[Amount, _Mapping]] = ...) -> None: ...
