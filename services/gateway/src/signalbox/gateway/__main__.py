"""`python -m signalbox.gateway` runs one gateway."""

from signalbox.core.lifecycle import run
from signalbox.gateway.settings import GatewaySettings

run("signalbox.gateway", GatewaySettings)
