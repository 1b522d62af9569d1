"""`python -m signalbox.operator`: the operator as a process."""

from signalbox.core.lifecycle import run
from signalbox.operator.settings import OperatorSettings

run("signalbox.operator", OperatorSettings)
