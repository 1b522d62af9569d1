"""The scheduler: admits, selects an account, settles; keeps the registry."""
