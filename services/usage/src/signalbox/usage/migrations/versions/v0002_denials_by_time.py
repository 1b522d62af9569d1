"""An index of the denials alone: they are forgotten sooner than attempts, and must be found without reading those.

Revision ID: 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the index."""
    denied = sa.text("attempt = 0")
    op.create_index("denials_by_time", "attempts", ["admitted_at_ms"], sqlite_where=denied, postgresql_where=denied)
