"""What the pages name is there: every linked file, and every path or module of this repository in backquotes."""

import re
import subprocess
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[2]
KEPT = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
PAGES = [name for name in KEPT if name.endswith(".md")]
PLACES = {*KEPT, *(str(folder) for name in KEPT for folder in PurePosixPath(name).parents)}
LINKED = re.compile(r"\]\((?![a-z]+:)([^)#\s]+)[)#]")
OURS = "|".join(sorted({name.partition("/")[0] for name in KEPT if "/" in name and name[0] != "."}))
PATH = re.compile(rf"`((?:{OURS})/[\w./-]+)`")
SOURCE = re.compile(r"`((?:[\w-]+/)*[\w-]+\.(?:py|proto|lua|sh))`")


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_is_there(page: str) -> None:
    text = (ROOT / page).read_text()
    missing = [link for link in LINKED.findall(text) if not (ROOT / page).parent.joinpath(link).exists()]
    missing += [path for path in PATH.findall(text) if path.rstrip("/") not in PLACES]
    missing += [name for name in SOURCE.findall(text) if not any(f"/{kept}".endswith(f"/{name}") for kept in KEPT)]
    assert not missing


def test_there_is_something_to_look_for() -> None:
    whole = "".join((ROOT / page).read_text() for page in PAGES)
    assert all(len(kind.findall(whole)) > 10 for kind in (LINKED, PATH, SOURCE))
