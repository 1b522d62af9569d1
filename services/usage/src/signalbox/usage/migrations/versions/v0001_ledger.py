"""The ledger's first tables: attempts, roll-ups, facts. Never edited again; later changes are migrations of their own.

Revision ID: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def _texts(*names: str) -> list[sa.Column[str]]:
    return [sa.Column(name, sa.Text, nullable=False) for name in names]


def _numbers(*names: str) -> list[sa.Column[int]]:
    return [sa.Column(name, sa.BigInteger, nullable=False, autoincrement=False) for name in names]


def _flags(*names: str) -> list[sa.Column[bool]]:
    return [sa.Column(name, sa.Boolean, nullable=False) for name in names]


def upgrade() -> None:
    """Create everything."""
    op.create_table(
        "attempts",
        *_texts("request_id"), *_numbers("attempt", "admitted_at_ms", "started_at_ms"),
        *_texts("key_id", "owner", "account_id", "pool_id", "route", "client", "model", "sent_model", "served_model"),
        *_flags("streamed"), *_texts("outcome"), *_numbers("status"), *_texts("reason"), *_flags("estimated"),
        *_numbers(
            "input_tokens", "output_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens", "cache_read_tokens",
            "web_search_requests",
        ),
        *_texts("service_tier", "inference_geo", "speed"), *_numbers("cost_nano_usd"), *_flags("price_assumed"),
        *_numbers("duration_ms", "ttft_ms", "retry_after_ms"),
        *_texts("upstream_request_id", "gateway_id", "lease_id"),
        sa.Column("decision", sa.LargeBinary, nullable=False),
        sa.Column("orphan_event", sa.LargeBinary),
        sa.PrimaryKeyConstraint("request_id", "attempt"),
    )
    op.create_index("attempts_by_time", "attempts", ["admitted_at_ms"])
    op.create_index("attempts_by_key", "attempts", ["key_id", "admitted_at_ms"])
    op.create_index("attempts_by_account", "attempts", ["account_id", "admitted_at_ms"])
    op.create_table(
        "rollups",
        *_numbers("width_ms", "start_ms"),
        *_texts("key_id", "owner", "account_id", "model", "sent_model", "served_model"),
        *_numbers(
            "attempts", "requests", "limited_requests", "input_tokens", "output_tokens", "cache_write_5m_tokens",
            "cache_write_1h_tokens", "cache_read_tokens", "cost_nano_usd",
        ),
        sa.PrimaryKeyConstraint(
            "width_ms", "start_ms", "key_id", "owner", "account_id", "model", "sent_model", "served_model",
        ),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "facts",
        *_numbers("kind"), *_texts("key_id", "name"), *_numbers("at_ms"),
        sa.PrimaryKeyConstraint("kind", "key_id", "name"),
    )
