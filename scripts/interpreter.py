"""How the Python that runs this was built: `system` (a distribution's, optimised), `optimised` or `plain`.

Profile-guided optimisation is a quarter of what a request costs. Set-up chooses by this, the bench reports it.
"""

import sys
import sysconfig


def build() -> str:
    """Return `system`, `optimised` or `plain`."""
    if sys.base_prefix == "/usr":
        return "system"
    return "optimised" if "--enable-optimizations" in (sysconfig.get_config_var("CONFIG_ARGS") or "") else "plain"


if __name__ == "__main__":
    print(build())
