"""`python -m signalbox.scheduler`: the scheduler as a process."""

from signalbox.core.lifecycle import run
from signalbox.scheduler.app import main

run("signalbox.scheduler", main)
