"""The scalar types of documents: durations, money, times, networks, URLs, globs, names.

Each type reads the document's notation, writes it back, and brings its own piece of the OpenAPI schema, so that
the models and the CRDs cannot disagree. Rules between fields are in rules.py.
"""

import ipaddress
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, PlainSerializer, WithJsonSchema
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from signalbox.core.money import format_usd, parse_usd

MAX_LIST = 64
MAX_MEMBERS = 256
MAX_LIMITS = 16
MAX_NAME = 253
MAX_URL = 2048
MAX_GLOB = 128
MAX_STRING = 256
MAX_DURATION_S = 87_600 * 3600.0
MAX_USD = 9_000_000
MAX_COUNT = 9_000_000_000_000_000  # Redis scripts count in doubles, which are exact up to 2**53

_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_SUBDOMAIN = rf"{_LABEL}(\.{_LABEL})*"
DURATION_PATTERN = r"^([0-9]{1,9}(\.[0-9]{1,9})?(ms|s|m|h)){1,4}$"
_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)")
_SECONDS = {"ms": Decimal("0.001"), "s": Decimal(1), "m": Decimal(60), "h": Decimal(3600)}
USD_PATTERN = r"^([0-8]?[0-9]{1,6}(\.[0-9]{1,9})?|9000000(\.0{1,9})?)$"
TIME_PATTERN = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?(Z|[+-][0-9]{2}:[0-9]{2})$"
NETWORK_PATTERN = r"^[0-9A-Fa-f:.]{2,45}/(0|[1-9][0-9]{0,2})$"
_HOST = r"([A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])"
_PORT = r"([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
_PATH = r"(/[A-Za-z0-9._~%!$&'()*+,;=:@/-]*)?"

# Where plain http may carry a credential: this machine, and Services of the same cluster.
PLAIN_HTTP_HOSTS = (
    r"^http://(localhost|127(\.[0-9]{1,3}){3}|\[::1\]"
    rf"|{_LABEL}\.{_LABEL}\.svc(\.cluster\.local)?)(:[0-9]+)?(/.*)?$"
)


@dataclass(frozen=True)
class Text:
    """The constraints of a string: an anchored pattern, a longest length, and what to write instead."""

    hint: str
    pattern: str | None = None
    max_length: int = MAX_STRING
    min_length: int = 1

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        out = handler(schema)
        out["maxLength"] = self.max_length
        if self.min_length:
            out["minLength"] = self.min_length
        if self.pattern is not None:
            out["pattern"] = self.pattern
        return out

    def _check(self, value: str) -> str:
        if len(value) > self.max_length:
            raise PydanticCustomError("text_too_long", "is longer than {most} characters", {"most": self.max_length})
        if len(value) < self.min_length:
            raise PydanticCustomError("text_empty", "is empty: write a value or leave the field out")
        if self.pattern is not None and re.fullmatch(self.pattern, value) is None:
            raise PydanticCustomError("pattern", "{hint}", {"hint": f"must be {self.hint}"})
        return value


def parse_duration(text: str) -> float:
    """Return a duration such as `5s`, `100ms` or `1h30m` in seconds. Raises ValueError for anything else."""
    if re.fullmatch(DURATION_PATTERN, text) is None:
        raise ValueError("must be a duration such as 5s, 100ms, 1h30m (units: ms, s, m, h)")
    seconds = sum((Decimal(n) * _SECONDS[unit] for n, unit in _DURATION_PART.findall(text)), Decimal(0))
    if not 0 < seconds <= Decimal(MAX_DURATION_S):
        raise ValueError("must be longer than zero and at most 87600h")
    return float(seconds)


def format_duration(seconds: float) -> str:
    """Return seconds in the documents' notation, in the largest whole units (`5400.0` → `1h30m`)."""
    left = Decimal(repr(seconds))
    out = ""
    for unit in ("h", "m"):
        count, left = divmod(left, _SECONDS[unit])
        out += f"{int(count)}{unit}" if count else ""
    if left and left % 1:
        milliseconds = left * 1000
        return out + (f"{_plain(milliseconds)}ms" if left < 1 else f"{_plain(left)}s")
    return out + (f"{_plain(left)}s" if left else "")


def _plain(number: Decimal) -> str:
    text = format(number, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def parse_money(value: object) -> int:
    """Return an amount in USD (an integer or a decimal string, at most 9 places and 9000000) as nano-dollars."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError('must be an integer or a decimal string in quotes, such as "20.00"')  # noqa: TRY004
    if isinstance(value, str) and re.fullmatch(USD_PATTERN, value) is None:
        raise ValueError("must be a decimal number from 0 to 9000000 with at most 9 places")
    if isinstance(value, int) and not 0 <= value <= MAX_USD:
        raise ValueError("must be from 0 to 9000000")
    return parse_usd(str(value))


def parse_time(text: str) -> datetime:
    """Return an RFC 3339 time as an aware datetime in UTC. Raises ValueError for anything else."""
    message = "must be a time with its zone, such as 2027-01-01T00:00:00Z"
    if re.fullmatch(TIME_PATTERN, text) is None:
        raise ValueError(message)
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError) as e:
        raise ValueError(message) from e


def format_time(value: datetime) -> str:
    """Return an aware datetime as RFC 3339 in UTC, with a fraction only where there is one."""
    return value.astimezone(UTC).isoformat().replace("+00:00", "Z")


def parse_network(text: str) -> str:
    """Return `text` if it is a network in CIDR notation (host bits allowed, as in Kubernetes)."""
    try:
        if re.fullmatch(NETWORK_PATTERN, text):
            ipaddress.ip_network(text, strict=False)
            return text
    except ValueError:
        pass
    raise ValueError("must be a network with a slash, such as 10.0.0.0/8 or 2001:db8::/32")


def _reading(parse: Any) -> BeforeValidator:
    """Make a parser of strings a validator whose error is the message alone."""

    def read(value: Any) -> Any:
        if parse is not parse_money and not isinstance(value, str):
            raise PydanticCustomError("string_type", "must be a string")
        try:
            return parse(value)
        except ValueError as e:
            raise PydanticCustomError("value", "{hint}", {"hint": str(e)}) from e

    return BeforeValidator(read)


def _cel(rule: str, message: str) -> dict[str, str]:
    return {"rule": rule, "message": message}


Duration = Annotated[
    float,
    _reading(parse_duration),
    PlainSerializer(format_duration, return_type=str, when_used="json"),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": DURATION_PATTERN,
            "maxLength": 64,
            "x-kubernetes-validations": [
                _cel(
                    "duration(self) > duration('0s') && duration(self) <= duration('87600h')",
                    "must be longer than zero and at most 87600h",
                )
            ],
        }
    ),
]
NanoUSD = Annotated[
    int,
    _reading(parse_money),
    PlainSerializer(format_usd, return_type=str, when_used="json"),
    WithJsonSchema({"x-kubernetes-int-or-string": True, "pattern": USD_PATTERN, "minimum": 0, "maximum": MAX_USD}),
]
Time = Annotated[
    datetime,
    _reading(parse_time),
    PlainSerializer(format_time, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "format": "date-time", "pattern": TIME_PATTERN, "maxLength": 64}),
]
Network = Annotated[
    str,
    _reading(parse_network),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": NETWORK_PATTERN,
            "maxLength": 49,
            "x-kubernetes-validations": [_cel("isCIDR(self)", "must be a network with a slash, such as 10.0.0.0/8")],
        }
    ),
]

Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]
Concurrency = Annotated[int, Field(ge=1, le=1_000_000)]
ShortText = Annotated[str, Text("text")]
Name = Annotated[str, Text("a DNS name in lower case, such as team-a", pattern=f"^{_SUBDOMAIN}$", max_length=MAX_NAME)]
NamespaceName = Annotated[str, Text("a DNS label in lower case, such as team-a", pattern=f"^{_LABEL}$", max_length=63)]
PoolRef = Annotated[
    str,
    Text(
        "a pool's name, or namespace/name",
        pattern=rf"^({_LABEL}/)?{_SUBDOMAIN}$",
        max_length=MAX_NAME + 64,
    ),
]
LimitName = Annotated[str, Text("a DNS label in lower case, such as daily-opus", pattern=f"^{_LABEL}$", max_length=63)]
SecretKey = Annotated[
    str, Text("a Secret's key: letters, digits, '-', '_', '.'", pattern=r"^[-._a-zA-Z0-9]+$", max_length=MAX_NAME)
]
Glob = Annotated[
    str, Text("a model name without spaces; * and ? are wildcards", pattern=r"^[!-~]+$", max_length=MAX_GLOB)
]
URL = Annotated[
    str,
    Text(
        "an http(s) URL without user, query and fragment",
        pattern=rf"^https?://{_HOST}(:{_PORT})?{_PATH}$",
        max_length=MAX_URL,
    ),
]
KeyHash = Annotated[
    str,
    Text('"sha256:" and the 64 lower-case hexadecimal digits', pattern=r"^sha256:[0-9a-f]{64}$", max_length=71),
]
FilePath = Annotated[str, Text("an absolute path", pattern=r"^/[^\x00-\x1f]*$")]
Region = Annotated[str, Text("a region's name, such as us-east-1", pattern=f"^{_LABEL}$", max_length=63)]
HeaderName = Annotated[str, Text("a header's name", pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$", max_length=128)]
LabelValue = Annotated[
    str,
    Text("a label's value", pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$", max_length=63, min_length=0),
]
LabelKey = Annotated[
    str,
    Text(
        "a label's name",
        pattern=rf"^({_SUBDOMAIN}/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$",
        max_length=317,
    ),
]
