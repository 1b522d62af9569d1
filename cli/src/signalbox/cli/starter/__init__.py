"""The documents that `signalbox init` writes, as templates."""
