"""`python -m signalbox.operator`: the operator as a process."""

from signalbox.core.lifecycle import run
from signalbox.operator.app import main

run("signalbox.operator", main)
