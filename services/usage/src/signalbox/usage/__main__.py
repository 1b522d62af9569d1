"""`python -m signalbox.usage`: the usage service as a process."""

from signalbox.core.lifecycle import run
from signalbox.usage.app import main

run("signalbox.usage", main)
