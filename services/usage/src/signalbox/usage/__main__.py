"""`python -m signalbox.usage`: the usage service as a process."""

from signalbox.core.lifecycle import run
from signalbox.usage.settings import UsageSettings

run("signalbox.usage", UsageSettings)
