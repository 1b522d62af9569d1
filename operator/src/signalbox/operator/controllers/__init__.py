"""The loops that gather, decide and act, each about one thing. All of them may be repeated at any time."""
