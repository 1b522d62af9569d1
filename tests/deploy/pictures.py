"""Draws the pictures of docs/dashboards: `python -m tests.deploy.pictures [--minutes 6] [OUT]`; `make pictures`.

A whole Signalbox on a simulated provider serves a small company's day while a real Prometheus reads its metrics; then
every panel's query is run, and Chromium takes a picture of the answers, laid out as the dashboards say.
"""

import argparse
import asyncio
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.support import office_day, workplace
from tests.support.dashboards import BOARDS, ROOT, Range, answers, board
from tests.support.drawing import WIDTH, page

MOST_BYTES = 150_000


def chromium() -> str:
    """Return the browser. Raises SystemExit where there is none."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not found or not shutil.which("prometheus") or not shutil.which("pngquant"):
        raise SystemExit("pictures: needs Chromium, Prometheus and pngquant (Debian: chromium prometheus pngquant)")
    return found


def photograph(browser: str, html: str, height: int, picture: Path) -> None:
    """Write a picture of a page. Raises AssertionError where none came, or one too large for a documentation."""
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "page.html").write_text(html)
        subprocess.run(
            [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={directory}/profile",
             f"--window-size={WIDTH},{height}", f"--screenshot={picture}", f"file://{directory}/page.html"],
            check=True, capture_output=True, timeout=120,
        )
    subprocess.run(["pngquant", "--force", "--strip", "--speed=1", f"--output={picture}", "96", str(picture)], check=True)
    assert picture.stat().st_size < MOST_BYTES, f"{picture} has {picture.stat().st_size} bytes"


def main() -> int:
    """Return the exit status."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("out", nargs="?", type=Path, default=ROOT / "docs/dashboards")
    arguments.add_argument("--minutes", type=float, default=6)
    wanted = arguments.parse_args()
    browser = chromium()
    wanted.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as directory, workplace.running(Path(directory)) as place:
        if place.ledger is None:
            raise SystemExit(f"pictures: {place.why_no_ledger}")
        began = time.time()
        asyncio.run(office_day.pass_by(place, wanted.minutes))
        shown = Range(began, time.time())
        for path in BOARDS:
            html, height = page(board(path.stem), lambda panel: answers(panel, shown, place.prometheus, place.ledger), shown)
            (Path(directory) / f"{path.stem}.html").write_text(html)
            photograph(browser, html, height, wanted.out / f"{path.stem}.png")
            print(wanted.out / f"{path.stem}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
