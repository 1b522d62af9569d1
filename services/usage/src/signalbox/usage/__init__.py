"""The usage service: turns events into the ledger, roll-ups and reports."""
