"""What the commands raise on purpose; main.py turns it into one line on stderr and an exit status.

SignalboxError
├── CommandFailed   the thing that was asked for did not work (exit status 1)
│   └── NotRunning  no instance answers
└── BadUsage        the command line itself is wrong (exit status 2)
"""

from signalbox.core.errors import SignalboxError

EXIT_FAILED = 1
EXIT_USAGE = 2


class CommandFailed(SignalboxError):
    """The command could not do what it was asked; the message says why and what to do."""


class NotRunning(CommandFailed):
    """No instance answers where one was looked for."""


class BadUsage(SignalboxError):
    """An argument or a variable that the command cannot work with."""
