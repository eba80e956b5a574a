"""Renders docs/pictures/chat.png and chat-phone.png anew: the web chat in chromium, before a service of its own.

python -m tests.browser.pictures [FOLDER]
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

from orchestra.adapters.embedded import start
from tests.browser.stage import ARGUMENTS, Model, Stand, environ_of, find_chromium

FOLDER = Path("docs/pictures")
DESKTOP = {"viewport": {"width": 1000, "height": 640}, "device_scale_factor": 1.5}
PHONE = {
    "viewport": {"width": 390, "height": 770},
    "device_scale_factor": 1.5,
    "is_mobile": True,
    "has_touch": True,
    "color_scheme": "dark",
}

FIRST = "Ten wind players, one afternoon. What shall we play?"
SECOND = "And if nobody has practised?"
ANSWERS = (
    (
        "Something that breathes. Two that fit:\n\n",
        "- **Gounod**, *Petite Symphonie*: nine winds, and whoever is left conducts.\n",
        "- **Dvořák**, *Serenade in D minor*: ten winds, but you would have to borrow a cello and a bass.\n",
    ),
    (
        "Then the Gounod, and its slow movement first. Sight-reading goes well where the beat is ",
        "slow, and everybody likes to wait for the flute",
    ),
)


def picture(browser: Browser, stand: Stand, model: Model, path: Path, options: dict[str, Any]) -> None:
    """Hold a conversation, stop amid its second answer, and take the picture."""
    page = browser.new_context(base_url=stand.url, reduced_motion="reduce", **options).new_page()
    page.goto("/")
    page.wait_for_selector("body[data-link=ready]")
    say(page, model, FIRST, ANSWERS[0])
    model.end()
    page.wait_for_selector(".turn[data-state=done]")
    say(page, model, SECOND, ANSWERS[1])
    page.get_by_text(ANSWERS[1][-1]).wait_for()
    page.screenshot(path=path)
    model.end()
    page.wait_for_selector(".turn:last-child[data-state=done]")
    page.context.close()


def say(page: Page, model: Model, message: str, pieces: tuple[str, ...]) -> None:
    page.get_by_label("Message", exact=True).fill(message)
    page.keyboard.press("Enter")
    model.await_question()
    model.say(*pieces)


def main(folder: Path) -> None:
    """Write the pictures into `folder`."""
    with tempfile.TemporaryDirectory(prefix="orchestra-pictures-") as kept:
        stores, model = start(Path(kept)), Model(waits=lambda _: True)
        stand = Stand(Path(kept) / "service", environ_of(stores, model))
        try:
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=find_chromium(), args=list(ARGUMENTS))
                picture(browser, stand, model, folder / "chat.png", DESKTOP)
                picture(browser, stand, model, folder / "chat-phone.png", PHONE)
        finally:
            stand.stop()
            model.close()
            stores.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
