"""The page in a real browser: it learns, answers, is corrected and mended, also by keyboard and screen reader."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from helpers import SMALL
from playwright.sync_api import Browser, Dialog, Page, expect, sync_playwright
from serving import busy, copied, served

from promptcl.learner.learner import Learner
from promptcl.recipes import load_config

pytestmark = pytest.mark.slow
ODD = "<img src=x onerror=alert(1)> Größe"
expect.set_options(timeout=20_000)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no chromium here; on Debian: apt-get install chromium")
    camera = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with sync_playwright() as playwright:
        one = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", *camera])
        yield one
        one.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page on which nothing may go wrong that its console would tell: scripts, the policy, what is not found."""
    one = browser.new_page(viewport={"width": 1280, "height": 900})
    told: list[str] = []

    def alerted(dialog: Dialog) -> None:
        told.append(f"alert {dialog.message}")
        dialog.dismiss()

    one.on("pageerror", lambda error: told.append(str(error)))
    one.on("console", lambda message: told.append(message.text) if message.type == "error" else None)
    one.on("dialog", alerted)
    yield one
    one.close()
    # The browser tells each answer of 4xx; those are tested below.
    assert [text for text in told if not re.search("status of 4|ERR_CONNECTION", text)] == []


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """A store that has learned nothing."""
    Learner(load_config("grow-demo", SMALL)).save(tmp_path / "shop")
    return tmp_path / "shop"


def faults(page: Page, schemes: tuple[Any, ...] = ("light", "dark")) -> list[str]:
    """What axe-core finds wrong, and whether the page scrolls sideways, on a phone and on a wide screen."""
    found = []
    for scheme, width in zip(schemes, (390, 1280), strict=False):
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        page.set_viewport_size({"width": width, "height": 900})
        violations = Axe().run(page).response["violations"]
        found += [f"{one['id']}: {one['nodes'][0]['html'][:200]}" for one in violations]
        if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
            found.append(f"it scrolls sideways at {width}")
        tall = "[...document.querySelectorAll('.quiet')].filter(one => one.offsetHeight > 50)"
        texts = page.evaluate(f"{tall}.map(one => one.textContent)")
        found += [f"{text} is broken into lines at {width}" for text in texts]
    return found


def choose(page: Page, button: str, files: Any) -> None:
    with page.expect_file_chooser() as chooser:
        page.click(button)
    chooser.value.set_files(files)


def images(folder: Path, most: int) -> list[Path]:
    return sorted(folder.iterdir())[:most]


def test_a_visit(page: Page, empty: Path, folders: Path, tmp_path: Path) -> None:
    """From nothing to a learner that was corrected and mended."""
    with served(empty) as (client, _):
        page.goto(f"http://localhost:{client.port}/")
        expect(page.locator("#ask-empty")).to_contain_text("It knows no class yet")
        assert faults(page) == []
        page.click("#ask-empty a")
        expect(page.locator("#learn-title")).to_be_focused()
        choose(page, "#learn-folder", folders / "first" / "0")  # a folder names its class
        expect(page.get_by_role("combobox", name="Class")).to_have_value("0")
        choose(page, "#learn-choose", images(folders / "first" / "1", 20))
        page.click("#learn-now")
        expect(page.locator("#learn-fault")).to_contain_text("Write the name of the class")
        expect(page.locator("input[aria-invalid]")).to_be_focused()
        page.keyboard.type(ODD)
        page.locator(".group").nth(1).get_by_role("button", name=re.compile("Take out ")).first.click()
        expect(page.locator("#learn-bar")).to_contain_text("39 images of 2 classes")
        assert faults(page) == []
        page.click("#learn-now")
        expect(page.locator("#learn-result")).to_contain_text("Learned 39 images; 2 new classes")
        expect(page.locator("#learn-result")).to_contain_text("of 39")
        expect(page.locator("#summary")).to_contain_text("2 classes · 39 images")
        assert faults(page) == []

        page.get_by_role("link", name="Ask").click()
        (tmp_path / "broken.png").write_bytes(b"no image")
        asked = [
            folders / "test" / "2" / name for name in sorted(p.name for p in (folders / "test" / "2").iterdir())[:2]
        ]
        (tmp_path / "notes.txt").write_text("no image either")
        choose(page, "#ask-choose", [*asked, tmp_path / "broken.png", tmp_path / "notes.txt"])
        cards = page.locator(".card")
        expect(page.locator("#ask-note")).to_contain_text("1 file left out: no image")
        expect(cards.filter(has_text="does not decode")).to_have_count(1)
        expect(cards.locator(".answer")).to_have_count(2)
        assert client.get("/v1/learner").json["images"] == 39  # to ask is not to learn
        right = [card for card in cards.all() if "does not decode" not in card.inner_text()]
        right[0].get_by_role("button", name=re.compile("this is right")).filter(has_text=ODD).click()
        right[1].locator(".other input").fill("two")
        right[1].locator(".other input").press("Enter")
        expect(page.locator("#tray")).to_contain_text("2 corrections")
        assert faults(page) == []
        page.click("#correct")
        expect(page.locator("#tray")).to_contain_text("Learned 2 images; 1 new class: two")
        expect(page.locator("#tray")).to_contain_text("Right before")
        expect(right[1].locator(".answer")).to_contain_text("two")  # it was asked again
        mended(page)


def mended(page: Page) -> None:
    """Forget, rename, join and undo, each with a question that may be answered with no."""
    page.get_by_role("link", name="Classes").click()
    rows = page.locator("#class-rows tr")
    expect(rows).to_have_count(3)
    expect(rows.filter(has=page.get_by_role("rowheader", name=ODD, exact=True))).to_contain_text("20")
    assert faults(page) == []
    question = page.get_by_role("dialog")
    page.get_by_role("button", name="Forget two").click()
    expect(question).to_contain_text("Forget two?")
    expect(question.get_by_role("button", name="Cancel")).to_be_focused()
    assert faults(page) == []
    page.keyboard.press("Escape")
    expect(rows).to_have_count(3)
    page.get_by_role("button", name="Forget two").click()
    question.get_by_role("button", name="Forget").click()
    expect(rows).to_have_count(2)
    expect(page.locator("#classes-message")).to_contain_text("Forgot two")
    page.get_by_role("button", name=f"Rename {ODD}").click()
    page.get_by_label("New name").fill("unknown")
    expect(question.get_by_role("button", name="Rename")).to_be_disabled()
    page.get_by_label("New name").fill("0")
    expect(question).to_contain_text("0 is a class too, of 20 images")
    page.get_by_label("New name").fill("single")
    page.keyboard.press("Enter")
    expect(rows.get_by_role("rowheader", name="single")).to_have_count(1)
    page.click("#undo")
    expect(question).to_contain_text("Undo correction?")
    question.get_by_role("button", name="Undo").click()
    expect(page.locator("#summary")).to_contain_text("2 classes · 39 images")
    page.get_by_role("link", name="History").click()
    events = page.locator("#events li")
    expect(events).to_have_count(4)
    for text in ("Learned task 1", "Forgot two", "to single", "Undid correction"):
        expect(events.filter(has_text=text)).to_have_count(1)
    assert faults(page) == []


def test_a_server_that_goes_away_and_comes_back(page: Page, store: Path, folders: Path, tmp_path: Path) -> None:
    shop = copied(store, tmp_path / "shop")
    with served(shop) as (client, _):
        page.goto(f"http://localhost:{client.port}/")
        expect(page.locator("#summary")).to_contain_text("5 classes")
    expect(page.locator("#offline")).to_be_visible()
    assert faults(page) == []
    choose(page, "#ask-choose", images(folders / "test" / "3", 1))
    expect(page.locator(".card")).to_contain_text("does not answer")
    with served(shop, port=client.port):
        expect(page.locator("#offline")).to_be_hidden()
        page.get_by_role("button", name="Ask again").click()
        expect(page.locator(".card .answer")).to_have_count(1)


def test_a_server_that_ends_while_it_learns(page: Page, store: Path, folders: Path, tmp_path: Path) -> None:
    shop = copied(store, tmp_path / "shop")
    with served(shop) as (client, house):
        page.goto(f"http://localhost:{client.port}/#learn")
        choose(page, "#learn-folder", folders / "test" / "3")
        hold = busy(house)
        page.click("#learn-now")
        expect(page.get_by_role("progressbar")).to_be_visible()
        house.worker.stop()
        hold.set()
        expect(page.locator("#learn-result")).to_contain_text("given up")
    expect(page.locator(".group")).to_have_count(1)  # the images are still there, to be sent again
    with served(shop, port=client.port):
        expect(page.locator("#offline")).to_be_hidden()
        page.click("#learn-now")
        expect(page.locator("#learn-result")).to_contain_text("Learned 10 images")


def test_a_token_a_camera_and_a_server_that_only_answers(page: Page, store: Path) -> None:
    token = "t" * 20
    with served(store, token=token, read_only=True) as (client, _):
        page.goto(f"http://localhost:{client.port}/")
        expect(page.get_by_role("textbox", name="Token")).to_be_focused()
        assert faults(page) == []
        page.keyboard.type("wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#sign-in-error")).to_contain_text("not the token")
        page.get_by_role("textbox", name="Token").fill(token)
        page.keyboard.press("Enter")
        expect(page.locator("#summary")).to_contain_text("answers only")
        page.click("#ask-photo")
        expect(page.locator("#shutter")).to_be_enabled()
        assert faults(page) == []
        page.click("#shutter")
        expect(page.locator(".card .answer")).to_have_count(1)
        expect(page.locator(".card button")).to_have_count(0)  # nothing to correct with
        page.goto(f"http://localhost:{client.port}/#token={token}")
        page.reload()
        expect(page.locator("#summary")).to_contain_text("5 classes")
        page.get_by_role("link", name="Learn").click()
        expect(page.locator("#learn-read-only")).to_be_visible()


def test_by_keyboard_and_by_drop(page: Page, store: Path, folders: Path) -> None:
    with served(store, read_only=True) as (client, _):
        page.goto(f"http://localhost:{client.port}/")
        expect(page.locator("#ask-body")).to_be_visible()
        seen = []
        for _ in range(7):
            page.keyboard.press("Tab")
            seen.append(page.evaluate("document.activeElement.textContent"))
        assert seen == ["Skip to content", "Ask", "Learn", "Classes", "History", "Choose images", "Take a photo"]
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid"
        content = list(images(folders / "test" / "3", 1)[0].read_bytes())
        page.evaluate(
            """content => {
                const transfer = new DataTransfer();
                transfer.items.add(new File([new Uint8Array(content)], "dropped.png", {type: "image/png"}));
                for (const kind of ["dragenter", "drop"])
                    document.getElementById("ask-drop").dispatchEvent(
                        new DragEvent(kind, {dataTransfer: transfer, bubbles: true, cancelable: true}));
            }""",
            content,
        )
        expect(page.locator(".card .file")).to_have_text("dropped.png")
        expect(page.locator(".card .answer")).to_have_count(1)


def test_what_is_wrong_is_found(page: Page, store: Path) -> None:
    """Otherwise the checks of accessibility would prove nothing."""
    with served(store, read_only=True) as (client, _):
        page.goto(f"http://localhost:{client.port}/")
        expect(page.locator("#ask-body")).to_be_visible()
        page.evaluate("document.getElementById('ask-choose').textContent = ''")
        page.evaluate("document.getElementById('ask-note').style.color = '#ddd'")
        page.evaluate("document.getElementById('ask-drop').style.width = '2000px'")
        page.evaluate(
            """const one = document.createElement("button");
            one.className = "quiet"; one.textContent = "Take back"; one.style.width = "4rem";
            document.getElementById("ask-drop").append(one)"""
        )
        found = faults(page, ("light",))
        assert {one.partition(":")[0] for one in found} == {
            "button-name",
            "color-contrast",
            "it scrolls sideways at 390",
            "Take back is broken into lines at 390",
        }
