"""What several rooms truly share: settings, errors, telemetry, rpc, key hashing, clocks, ids, globs.

It leaves to each room everything that only one room needs.
"""

import os

# Looking for plugins of pydantic's reads the metadata of every installed package, with each start; there are none.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
