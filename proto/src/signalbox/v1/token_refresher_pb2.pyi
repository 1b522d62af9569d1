from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetCredentialRequest(_message.Message):
    __slots__ = ("account_id", "rejected_version")
    ACCOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    REJECTED_VERSION_FIELD_NUMBER: _ClassVar[int]
    account_id: str
    rejected_version: str
    def __init__(self, account_id: _Optional[str] = ..., rejected_version: _Optional[str] = ...) -> None: ...

class Header(_message.Message):
    __slots__ = ("name", "value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: str
    def __init__(self, name: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...

class Credential(_message.Message):
    __slots__ = ("account_id", "version", "headers", "expires_at_ms", "proxy_url")
    ACCOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_MS_FIELD_NUMBER: _ClassVar[int]
    PROXY_URL_FIELD_NUMBER: _ClassVar[int]
    account_id: str
    version: str
    headers: _containers.RepeatedCompositeFieldContainer[Header]
    expires_at_ms: int
    proxy_url: str
    def __init__(self, account_id: _Optional[str] = ..., version: _Optional[str] = ..., headers: _Optional[_Iterable[_Union[Header, _Mapping]]] = ..., expires_at_ms: _Optional[int] = ..., proxy_url: _Optional[str] = ...) -> None: ...

class WatchCredentialsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CredentialEvent(_message.Message):
    __slots__ = ("type", "account_id", "credential")
    class Type(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        TYPE_UNSPECIFIED: _ClassVar[CredentialEvent.Type]
        PUT: _ClassVar[CredentialEvent.Type]
        REMOVED: _ClassVar[CredentialEvent.Type]
        SYNCED: _ClassVar[CredentialEvent.Type]
    TYPE_UNSPECIFIED: CredentialEvent.Type
    PUT: CredentialEvent.Type
    REMOVED: CredentialEvent.Type
    SYNCED: CredentialEvent.Type
    TYPE_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    CREDENTIAL_FIELD_NUMBER: _ClassVar[int]
    type: CredentialEvent.Type
    account_id: str
    credential: Credential
    def __init__(self, type: _Optional[_Union[CredentialEvent.Type, str]] = ..., account_id: _Optional[str] = ..., credential: _Optional[_Union[Credential, _Mapping]] = ...) -> None: ...

class PutGrantRequest(_message.Message):
    __slots__ = ("account_id", "kind", "material", "config", "seed_version")
    class MaterialEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class ConfigEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ACCOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    MATERIAL_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    SEED_VERSION_FIELD_NUMBER: _ClassVar[int]
    account_id: str
    kind: str
    material: _containers.ScalarMap[str, str]
    config: _containers.ScalarMap[str, str]
    seed_version: str
    def __init__(self, account_id: _Optional[str] = ..., kind: _Optional[str] = ..., material: _Optional[_Mapping[str, str]] = ..., config: _Optional[_Mapping[str, str]] = ..., seed_version: _Optional[str] = ...) -> None: ...

class DeleteGrantRequest(_message.Message):
    __slots__ = ("account_id",)
    ACCOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    account_id: str
    def __init__(self, account_id: _Optional[str] = ...) -> None: ...

class DeleteGrantResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GrantStatusRequest(_message.Message):
    __slots__ = ("account_ids",)
    ACCOUNT_IDS_FIELD_NUMBER: _ClassVar[int]
    account_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, account_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class GrantStatusResponse(_message.Message):
    __slots__ = ("grants",)
    GRANTS_FIELD_NUMBER: _ClassVar[int]
    grants: _containers.RepeatedCompositeFieldContainer[GrantStatus]
    def __init__(self, grants: _Optional[_Iterable[_Union[GrantStatus, _Mapping]]] = ...) -> None: ...

class GrantStatus(_message.Message):
    __slots__ = ("account_id", "kind", "seed_version", "version", "valid", "reason", "message", "expires_at_ms", "refreshed_at_ms", "next_refresh_at_ms", "healings", "last_transition_ms")
    ACCOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    SEED_VERSION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    VALID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_MS_FIELD_NUMBER: _ClassVar[int]
    REFRESHED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    NEXT_REFRESH_AT_MS_FIELD_NUMBER: _ClassVar[int]
    HEALINGS_FIELD_NUMBER: _ClassVar[int]
    LAST_TRANSITION_MS_FIELD_NUMBER: _ClassVar[int]
    account_id: str
    kind: str
    seed_version: str
    version: str
    valid: bool
    reason: str
    message: str
    expires_at_ms: int
    refreshed_at_ms: int
    next_refresh_at_ms: int
    healings: int
    last_transition_ms: int
    def __init__(self, account_id: _Optional[str] = ..., kind: _Optional[str] = ..., seed_version: _Optional[str] = ..., version: _Optional[str] = ..., valid: _Optional[bool] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., expires_at_ms: _Optional[int] = ..., refreshed_at_ms: _Optional[int] = ..., next_refresh_at_ms: _Optional[int] = ..., healings: _Optional[int] = ..., last_transition_ms: _Optional[int] = ...) -> None: ...

class BeginAuthorizationRequest(_message.Message):
    __slots__ = ("account_id", "redirect_uri")
    ACCOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    REDIRECT_URI_FIELD_NUMBER: _ClassVar[int]
    account_id: str
    redirect_uri: str
    def __init__(self, account_id: _Optional[str] = ..., redirect_uri: _Optional[str] = ...) -> None: ...

class BeginAuthorizationResponse(_message.Message):
    __slots__ = ("authorization_url", "state")
    AUTHORIZATION_URL_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    authorization_url: str
    state: str
    def __init__(self, authorization_url: _Optional[str] = ..., state: _Optional[str] = ...) -> None: ...

class CompleteAuthorizationRequest(_message.Message):
    __slots__ = ("state", "code")
    STATE_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    state: str
    code: str
    def __init__(self, state: _Optional[str] = ..., code: _Optional[str] = ...) -> None: ...

class ProbeRequest(_message.Message):
    __slots__ = ("account_id", "base_url", "model")
    ACCOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    BASE_URL_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    account_id: str
    base_url: str
    model: str
    def __init__(self, account_id: _Optional[str] = ..., base_url: _Optional[str] = ..., model: _Optional[str] = ...) -> None: ...

class ProbeResponse(_message.Message):
    __slots__ = ("ok", "status", "error_type", "message", "duration_ms", "input_tokens")
    OK_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    ERROR_TYPE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    DURATION_MS_FIELD_NUMBER: _ClassVar[int]
    INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ok: bool
    status: int
    error_type: str
    message: str
    duration_ms: int
    input_tokens: int
    def __init__(self, ok: _Optional[bool] = ..., status: _Optional[int] = ..., error_type: _Optional[str] = ..., message: _Optional[str] = ..., duration_ms: _Optional[int] = ..., input_tokens: _Optional[int] = ...) -> None: ...
