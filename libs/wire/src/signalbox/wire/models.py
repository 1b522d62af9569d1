"""One model's spellings (dated, aliased, a cloud's own) reduced to one name.

What a model costs is prices.py's business, who may use it the scheduler's.
"""

import re
from functools import lru_cache

_CLOUD_PREFIX = re.compile(r"^(?:(?:us|eu|apac|jp|au|global)\.)?anthropic\.|^(?:models/|publishers/[a-z]+/models/)")
_SUFFIX = re.compile(r"(?:@[0-9a-z-]+|-v[0-9]+(?::[0-9]+)?|-latest|-20[0-9]{6})+$")


@lru_cache(maxsize=4096)
def base_name(model: str) -> str:
    """Return a model's name without date, version, alias and cloud prefixes or suffixes."""
    return _SUFFIX.sub("", _CLOUD_PREFIX.sub("", model))
