"""The ledger's tables as SQLAlchemy sees them. Migrations create them; a test holds both together.

Money is integer nano-dollars, time is Unix milliseconds; texts are bounded before they come here.
"""

from sqlalchemy import BigInteger, Boolean, Column, Index, LargeBinary, MetaData, Table, Text, text

metadata = MetaData()


def _text(name: str, *, key: bool = False) -> Column[str]:
    return Column(name, Text, primary_key=key, nullable=False)


def _number(name: str, *, key: bool = False) -> Column[int]:
    return Column(name, BigInteger, primary_key=key, nullable=False, autoincrement=False)


def _flag(name: str) -> Column[bool]:
    return Column(name, Boolean, nullable=False)


_DENIED = text("attempt = 0")

attempts = Table(
    "attempts", metadata,
    _text("request_id", key=True), _number("attempt", key=True),
    _number("admitted_at_ms"), _number("started_at_ms"),
    _text("key_id"), _text("owner"), _text("account_id"), _text("pool_id"), _text("route"), _text("client"),
    _text("model"), _text("sent_model"), _text("served_model"), _flag("streamed"),
    _text("outcome"), _number("status"), _text("reason"), _flag("estimated"),
    _number("input_tokens"), _number("output_tokens"), _number("cache_write_5m_tokens"),
    _number("cache_write_1h_tokens"), _number("cache_read_tokens"), _number("web_search_requests"),
    _text("service_tier"), _text("inference_geo"), _text("speed"), _number("cost_nano_usd"), _flag("price_assumed"),
    _number("duration_ms"), _number("ttft_ms"), _number("retry_after_ms"),
    _text("upstream_request_id"), _text("gateway_id"), _text("lease_id"),
    Column("decision", LargeBinary, nullable=False),
    Column("orphan_event", LargeBinary),
    Index("attempts_by_time", "admitted_at_ms"),
    Index("attempts_by_key", "key_id", "admitted_at_ms"),
    Index("attempts_by_account", "account_id", "admitted_at_ms"),
    Index("denials_by_time", "admitted_at_ms", sqlite_where=_DENIED, postgresql_where=_DENIED),
)

rollups = Table(
    "rollups", metadata,
    _number("width_ms", key=True), _number("start_ms", key=True),
    _text("key_id", key=True), _text("owner", key=True), _text("account_id", key=True),
    _text("model", key=True), _text("sent_model", key=True), _text("served_model", key=True),
    _number("attempts"), _number("requests"), _number("limited_requests"),
    _number("input_tokens"), _number("output_tokens"), _number("cache_write_5m_tokens"),
    _number("cache_write_1h_tokens"), _number("cache_read_tokens"), _number("cost_nano_usd"),
    sqlite_with_rowid=False,  # the key is nearly the whole row: one tree instead of two
)

facts = Table(
    "facts", metadata,
    _number("kind", key=True), _text("key_id", key=True), _text("name", key=True), _number("at_ms"),
)
