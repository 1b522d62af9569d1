"""What carries the decisions out: the encrypted store, encryption keys, calls to providers."""
