"""A simulated Anthropic provider: scripted behaviour, recorded truth."""
