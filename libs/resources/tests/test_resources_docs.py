"""The generated page is up to date, complete, and its example works."""

import re
from pathlib import Path

from signalbox.resources import conditions
from signalbox.resources.docs import render
from signalbox.resources.loading import load_text

PAGE = Path(__file__).parents[3] / "docs" / "documents.md"


def test_page_is_up_to_date() -> None:
    assert PAGE.read_text() == render(), "run: python -m signalbox.resources.docs docs/documents.md"


def test_every_reason_has_a_meaning_on_the_page() -> None:
    constants = {v for k, v in vars(conditions).items() if k.isupper() and isinstance(v, str)}
    assert constants == set(conditions.TYPES) | set(conditions.REASONS)
    for name in constants:
        assert f"| `{name}` |" in PAGE.read_text()


def test_example_is_good() -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    loaded = load_text(example, {"ADA_RELAY_KEY": "a-key-that-ada-has-already"})
    assert loaded.problems == ()
    assert len(loaded.documents) == 2
