"""What touches the database: engines, schema, migrations, the ledger's writes and reads."""
