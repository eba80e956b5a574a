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
DESKTOP = {"viewport": {"width": 1000, "height": 720}, "device_scale_factor": 2}
PHONE = {
    "viewport": {"width": 390, "height": 760},
    "device_scale_factor": 2,
    "is_mobile": True,
    "has_touch": True,
    "color_scheme": "dark",
}

FIRST = "We have ten people and one afternoon. What shall we play?"
SECOND = "And if nobody has practised?"
ANSWERS = (
    (
        "With ten players an **octet** leaves two people to turn pages, so take something that breathes:\n\n",
        "1. *Gounod*, Petite Symphonie: nine winds, and whoever is left conducts.\n",
        "2. *Dvořák*, Serenade in D minor: ten winds, a cello and a bass; borrow the basses.\n\n",
        "| | minutes | hardest part |\n|---|---|---|\n| Gounod | 20 | the flute's |\n| Dvořák | 24 | everybody's |\n",
    ),
    (
        "Then the Gounod, without its scherzo. Sight-reading goes well where the beat is slow:\n\n",
        "> Play the *Andante cantabile* twice, and go home ",
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
    page.wait_for_function(
        "text => document.querySelector('.turn:last-child .text').textContent.includes(text)", arg="home"
    )
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
