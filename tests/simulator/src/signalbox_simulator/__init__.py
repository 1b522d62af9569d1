"""A simulated Anthropic provider, run as a process: scripted behaviour in, recorded truth out. Imported by nothing."""
