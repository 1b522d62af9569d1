"""Pure decisions of the gateway: the relayed attempt and request; no I/O, time comes from outside."""
