"""Draws the README's picture: an episode of the Sokoban agent that comes with the package, with the credit under each step.

    python experiments/readme_picture.py --write    # docs/images/credit.png

It needs `pip install -e '.[browser]'` and Chromium. The seed is an example: the first of the agent's examples with eight steps.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import stepreward

PICTURE = Path(__file__).resolve().parent.parent / "docs" / "images" / "credit.png"
WIDTH = 1240  # CSS pixels, twice as many in the file
# A README shows less than a report: no notes, and the boards in one row.
STYLE = "body { margin: 0; padding: 0; max-width: none; } details, .episode .facts { display: none; } .episode { margin: 0; }"


def page(seed: int) -> str:
    """The episode as an HTML page."""
    episode = stepreward.load("sokoban").play(seed=seed)
    return f"<!doctype html><meta charset=utf-8>{episode._repr_html_()}<style>{STYLE}</style>"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=22)
    parser.add_argument("--out", default="credit.png")
    parser.add_argument("--write", action="store_true", help=f"write docs/images/{PICTURE.name}")
    options = parser.parse_args()
    from playwright.sync_api import sync_playwright

    out = PICTURE if options.write else Path(options.out)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": WIDTH, "height": 400}, device_scale_factor=2, color_scheme="light")
        tab.set_content(page(options.seed))
        tab.locator(".episode").screenshot(path=out)
        browser.close()
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
