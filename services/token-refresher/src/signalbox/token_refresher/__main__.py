"""`python -m signalbox.token_refresher`: the token-refresher as a process."""

from signalbox.core.lifecycle import run
from signalbox.token_refresher.settings import TokenRefresherSettings

run("signalbox.token_refresher", TokenRefresherSettings)
