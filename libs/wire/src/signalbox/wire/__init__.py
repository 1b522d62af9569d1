"""Pure functions on provider wire formats: parse, classify, extract usage, price."""
