"""The gateway's connections to the world: provider, scheduler, token-refresher, usage, its journal on disk."""
