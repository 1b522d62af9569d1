"""Alembic's migrations of the ledger's database; adapters/migrate.py runs them at start."""
