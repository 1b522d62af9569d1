"""`python -m signalbox.scheduler`: the scheduler as a process."""

from signalbox.core.lifecycle import run
from signalbox.scheduler.settings import SchedulerSettings

run("signalbox.scheduler", SchedulerSettings)
