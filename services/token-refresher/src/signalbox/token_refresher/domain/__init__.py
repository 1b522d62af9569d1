"""Pure decisions about grants: what one is, how it changes, what may be handed out of it."""
