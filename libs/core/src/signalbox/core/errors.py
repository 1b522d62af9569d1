"""The error tree that every room shares.

SignalboxError
├── StartupError      a room cannot start; names what is unusable and why (exit status 2)
├── Unavailable       a neighbour (Redis, ledger, another room) cannot be reached now; trying again may help
└── Refused           a caller asked for something that is not allowed or does not exist; carries a stable code
"""


class SignalboxError(Exception):
    """Base of everything that Signalbox raises on purpose."""


class StartupError(SignalboxError):
    """A room cannot start.

    `what` names the thing (a setting, an address, a directory) and `why` says what is wrong with it; neither
    ever holds a secret.
    """

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what}: {why}")
        self.what = what
        self.why = why


class Unavailable(SignalboxError):
    """A neighbour cannot be reached now. `neighbour` is its name as operators know it."""

    def __init__(self, neighbour: str, why: str) -> None:
        super().__init__(f"{neighbour} is unavailable: {why}")
        self.neighbour = neighbour
        self.why = why


class Refused(SignalboxError):
    """A request that is wrong or not allowed. `code` is stable; `message` is safe to show to the caller."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
