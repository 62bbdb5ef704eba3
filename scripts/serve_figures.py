"""Draw docs/serve-*.webp: the page of `promptcl serve` in a browser, on phones and wide screens, light and dark.

Command: python scripts/serve_figures.py [--all FOLDER]     (needs `promptcl[dev]` and chromium)
With --all every section at 390, 768 and 1280 pixels in both colours is kept as a PNG in FOLDER, to be looked at.
"""

from __future__ import annotations

import argparse
import io
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Locator, Page, sync_playwright
from serve_digits import make

DOCS = Path(__file__).parents[1] / "docs"
KEPT = {
    ("ask", 1280, "light"),
    ("correct", 390, "dark"),
    ("learn", 768, "light"),
    ("classes", 1280, "dark"),
    ("history", 390, "light"),
}


class Camera:
    """Takes a section of the page at each width and in each colour."""

    def __init__(self, page: Page, everything: Path | None) -> None:
        """everything: the folder that gets all."""
        self.page, self.everything = page, everything

    def take(self, name: str, shown: Locator | None = None) -> None:
        """Draw the page as it is now; shown: what is scrolled to."""
        for width, height in ((390, 844), (768, 1024), (1280, 860)):
            for scheme in ("light", "dark"):
                if self.everything is None and (name, width, scheme) not in KEPT:
                    continue
                self.page.set_viewport_size({"width": width, "height": height})
                self.page.emulate_media(color_scheme="light" if scheme == "light" else "dark", reduced_motion="reduce")
                if shown is not None:
                    shown.evaluate("element => element.scrollIntoView({block: 'center'})")
                self.page.wait_for_timeout(150)
                image = Image.open(io.BytesIO(self.page.screenshot()))
                if self.everything is not None:
                    self.everything.mkdir(parents=True, exist_ok=True)
                    image.save(self.everything / f"{name}-{width}-{scheme}.png")
                if (name, width, scheme) in KEPT:
                    image.convert("RGB").save(DOCS / f"serve-{name}.webp", quality=80, method=6)


def visit(page: Page, url: str, images: Path, camera: Camera) -> None:
    """Ask, correct, learn, look at the classes and the history."""
    page.goto(url)
    page.wait_for_selector("#ask-body:not([hidden])")
    files = [sorted((images / digit).iterdir())[0] for digit in "3719"]
    with page.expect_file_chooser() as chooser:
        page.click("#ask-choose")
    chooser.value.set_files(files)
    page.locator(".card .answer").nth(3).wait_for()
    camera.take("ask")
    card = page.locator(".card").nth(2)
    card.locator(".other input").fill("slanted seven")
    card.locator(".other button").click()
    camera.take("correct", card.locator(".picked"))
    page.get_by_role("button", name="Discard").click()
    page.click("nav a[href='#learn']")
    with page.expect_file_chooser() as chooser:
        page.click("#learn-folder")
    chooser.value.set_files(images / "8")
    camera.take("learn")
    page.click("nav a[href='#classes']")
    camera.take("classes")
    page.get_by_role("button", name="Forget 4").click()
    camera.take("question")
    page.keyboard.press("Escape")
    page.click("nav a[href='#history']")
    camera.take("history")


def main() -> None:
    """Serve the digits of a folder of its own, and visit them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", type=Path, metavar="FOLDER")
    everything = parser.parse_args().all
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        store = make(place).rename(place / "digits")
        command = [sys.executable, "-m", "promptcl", "serve", str(store), "--port", "0"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            found = re.search(r"http\S+", server.stdout.readline() + server.stdout.readline())
            assert found is not None
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
                page = browser.new_page()
                visit(page, found[0], place / "images", Camera(page, everything))
                browser.close()
        finally:
            server.terminate()
            server.communicate()


if __name__ == "__main__":
    main()
