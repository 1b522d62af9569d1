"""`python -m signalbox.gateway` runs one gateway."""

from signalbox.core.lifecycle import run
from signalbox.gateway import app

run("signalbox.gateway", app.run)
