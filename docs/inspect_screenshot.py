"""Make docs/images/inspect.png: the page on the completions of a run of the demo's kind, in a headless Chromium.

    python docs/inspect_screenshot.py

Needs the extras train and browser, and a Chromium. The completions of step 51 were written by the policy of checkpoint
50, so that the page scores them with the very policy that sampled them.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from entropy_theory import cli


@dataclass(frozen=True)
class ScreenshotConfig:
    """Train for 51 steps, inspect the last, photograph the page.

    Attributes:
        run: Folder of the run; one that is finished is not repeated.
        scheme: Colour scheme.
        width: Of the window, in pixels.
        chromium: The browser.
        out: The picture.
    """

    run: Path = Path("runs/inspect")
    scheme: Literal["light", "dark"] = "light"
    width: int = 1240
    chromium: str = shutil.which("chromium") or "chromium"
    out: Path = Path("docs/images/inspect.png")


def main(config: ScreenshotConfig) -> int:
    """Make the picture."""
    from playwright.sync_api import sync_playwright

    page_path = config.run / "inspect.html"
    train = ["train", "--steps", "51", "--save-every", "50", "--log-completions", "--out", str(config.run)]
    inspect = ["inspect", str(config.run), "--model", str(config.run / "trainer" / "checkpoint-50")]
    inspect += ["--max-completion-length", "8", "--out", str(page_path)]
    for words in (train, inspect):
        if status := cli.main(words):
            return status
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=config.chromium, args=["--no-sandbox"])
        options = {"viewport": {"width": config.width, "height": 880}, "color_scheme": config.scheme}
        page = browser.new_page(**options)
        page.goto(page_path.resolve().as_uri())
        page.wait_for_selector("html[data-ready]")
        page.select_option("#rule", "clip-b(mu=1)")
        page.select_option("#order", "moves")
        page.locator("#list .tok.dropped").first.click()
        page.evaluate("document.getElementById('completions').scrollIntoView()")
        page.mouse.move(0, 0)
        page.screenshot(path=config.out)
        browser.close()
    print(f"{config.out}: {config.out.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(ScreenshotConfig, description=__doc__)))
