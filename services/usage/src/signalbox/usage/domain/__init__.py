"""Pure decisions of the ledger: what an event becomes, which of two records stays, how roll-ups change."""
