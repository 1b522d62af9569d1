"""What holds for every test: how properties are tried."""

from hypothesis import settings

# An example that takes long on a busy machine is no failure; pytest's own timeout ends what hangs.
settings.register_profile("signalbox", deadline=None)
settings.load_profile("signalbox")
