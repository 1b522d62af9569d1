"""The documents: models, schema, rules, and the pure reconcilers over them."""
