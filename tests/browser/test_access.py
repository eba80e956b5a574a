"""The page for everybody: by keyboard alone, by a screen reader, on a phone, in the dark, without motion."""

import pytest
from playwright.sync_api import Page, expect

PHONE = {"viewport": {"width": 360, "height": 640}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True}
WIDE = (
    "A-word-without-any-space-" * 20
    + "\n\n```\n"
    + "code " * 60
    + "\n```\n\n| a | b | c | d | e | f | g | h |\n|---|---|---|---|---|---|---|---|\n"
    + "| one hundred | two hundred | three hundred | four hundred | five | six | seven | eight |\n\n"
    + "https://example.org/"
    + "path/" * 40
)
TOUCH_PIXELS_MIN = 44

# The contrast of each text with its ground, by WCAG 2.2; what is see-through shows what is below.
CONTRASTS = """() => {
    const parse = (text) => text.match(/[\\d.]+/g).map(Number);
    const luminance = ([r, g, b]) => [r, g, b].map((each) => each / 255)
        .map((each) => each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4)
        .reduce((sum, each, at) => sum + each * [0.2126, 0.7152, 0.0722][at], 0);
    const ground = (element) => {
        for (let at = element; at; at = at.parentElement) {
            const [r, g, b, a = 1] = parse(getComputedStyle(at).backgroundColor);
            if (a === 1) return [r, g, b];
        }
        return [255, 255, 255];
    };
    const found = [];
    for (const element of document.querySelectorAll('body *')) {
        const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
        if (!own && element.tagName !== 'TEXTAREA' && element.tagName !== 'svg') continue;
        if (!element.checkVisibility() || element.closest('.unseen, noscript')) continue;
        const style = getComputedStyle(element);
        let opacity = 1;
        for (let at = element; at; at = at.parentElement) opacity *= Number(getComputedStyle(at).opacity);
        const below = ground(element);
        const ink = parse(style.color).slice(0, 3).map((each, at) => each * opacity + below[at] * (1 - opacity));
        const [light, dark] = [luminance(ink), luminance(below)].sort((a, b) => b - a);
        found.push([element.tagName + '.' + element.className + '#' + element.id, (light + 0.05) / (dark + 0.05)]);
    }
    return found;
}"""


def tree(page: Page) -> list[dict]:
    """What assistive technology is told: role, name and state of each node."""
    session = page.context.new_cdp_session(page)
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    session.detach()
    return [
        {
            "role": node["role"]["value"],
            "name": node.get("name", {}).get("value", ""),
            **{each["name"]: each["value"].get("value") for each in node.get("properties", ())},
        }
        for node in nodes
        if not node["ignored"]
    ]


def focused(page: Page) -> str:
    return page.evaluate(
        """() => {
            const { ariaLabel, id, textContent, tagName } = document.activeElement;
            return id === 'main' ? id : ariaLabel || id || (tagName === 'BODY' ? tagName : textContent);
        }"""
    )


def test_every_control_has_a_name_and_the_page_its_landmarks(page, ask, model):
    expect(ask(page, "# A heading\n\n[a link](https://example.org)")).to_have_attribute("data-state", "done")
    nodes = tree(page)
    for node in nodes:
        if node["role"] in {"button", "link", "textbox", "dialog"}:
            assert node["name"].strip(), node
    roles = [node["role"] for node in nodes]
    assert [roles.count(each) for each in ("banner", "main", "contentinfo")] == [1, 1, 1]
    headings = [(node["level"], node["name"]) for node in nodes if node["role"] == "heading"]
    assert headings == [(1, "AI Orchestra"), (2, "You"), (2, "Orchestra"), (3, "A heading")]
    (box,) = (node for node in nodes if node["role"] == "textbox")
    assert (box["name"], box["multiline"]) == ("Message", True)
    assert roles.count("article") == 2
    assert {node.get("live") for node in nodes if node["role"] == "status"} == {"polite"}
    page.get_by_role("button", name="Conversations").click()
    nodes = tree(page)
    assert [node["name"] for node in nodes if node["role"] == "dialog"] == ["Conversations"]
    names = {node["name"] for node in nodes if node["role"] == "navigation"}
    assert names == {"This conversation", "Earlier conversations"}
    assert all(node["name"] for node in nodes if node["role"] in {"button", "link"})
    assert page.evaluate("document.documentElement.lang") == "en"


def test_everything_can_be_done_by_keyboard(page, model):
    keys = page.keyboard
    assert focused(page) == "message"
    keys.type("wait: by")
    keys.press("Shift+Enter")
    keys.type("keyboard")
    expect(page.get_by_label("Message", exact=True)).to_have_value("wait: by\nkeyboard")
    keys.press("Enter")
    assert model.await_question() == "wait: by\nkeyboard"
    model.say("So ")
    expect(page.locator(".turn .text")).to_have_text("So ")
    keys.press("Tab")
    assert focused(page) == "Stop the answer"
    keys.press("Enter")
    expect(page.locator(".turn")).to_have_attribute("data-state", "stopped")
    assert focused(page) == "message"  # where the button went, the focus did not get lost
    keys.press("Shift+Tab")
    assert focused(page) == "Send again"
    keys.press("Space")
    model.await_question()
    expect(page.locator(".turn")).to_have_attribute("data-state", "running")
    assert focused(page) == "message"
    keys.press("Escape")
    expect(page.locator(".turn")).to_have_attribute("data-state", "stopped")
    page.get_by_label("Message", exact=True).focus()
    for name in ("Send again", "main", "New conversation", "Conversations"):  # back to the head of the page
        keys.press("Shift+Tab")
        assert focused(page) == name
    keys.press("Enter")
    drawer = page.get_by_role("dialog")
    expect(drawer).to_be_visible()
    for _ in range(12):  # the focus stays within
        keys.press("Tab")
        assert page.evaluate("document.activeElement === document.body || !!document.activeElement.closest('dialog')")
    keys.press("Escape")
    expect(drawer).to_be_hidden()
    assert focused(page) == "Conversations"
    keys.press("Tab")
    keys.press("Enter")
    expect(page.get_by_text("What is on your mind?")).to_be_visible()
    assert focused(page) == "message"


def test_the_focus_can_be_seen_wherever_it_is(page, ask):
    expect(ask(page, "hello")).to_have_attribute("data-state", "done")
    page.get_by_label("Message", exact=True).focus()
    seen = set()
    for _ in range(12):
        page.keyboard.press("Tab")
        seen.add(focused(page))
        width, style, frame = page.evaluate(
            """() => {
                const { outlineWidth, outlineStyle } = getComputedStyle(document.activeElement);
                const form = document.activeElement.closest('form');
                return [parseFloat(outlineWidth), outlineStyle, form && getComputedStyle(form).boxShadow];
            }"""
        )
        framed = focused(page) == "message" and frame not in (None, "none")  # the frame around the box shows it
        assert framed or focused(page) == "BODY" or (width >= 2 and style == "solid"), focused(page)
    assert {"Send", "Conversations", "New conversation", "main", "message", "Copy the answer"} <= seen


def test_an_answer_is_announced_once_and_not_word_by_word(page, ask, model, announced):
    expect(ask(page, "hello")).to_have_attribute("data-state", "done")
    announced(page)
    turn = ask(page, "wait: to be read out")
    model.await_question()
    for word in range(30):
        model.say(f"word{word} ")
        expect(turn.locator(".text")).to_contain_text(f"word{word} ")
    model.end()
    expect(turn).to_have_attribute("data-state", "done")
    words = " ".join(f"word{word}" for word in range(30))
    page.wait_for_function("words => window.announced.at(-1)?.trim() === words", arg=words)
    said = page.evaluate("window.announced")
    assert [each.strip() for each in said] == ["Answering", words]
    assert page.locator("#turns").evaluate("e => e.closest('[aria-live]')") is None


def test_a_phone_shows_all_of_it_without_scrolling_sideways(new_context, chat, ask):
    page = chat(new_context(**PHONE))
    expect(ask(page, WIDE)).to_have_attribute("data-state", "done")
    overflow = "e => e.scrollWidth - e.clientWidth"
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["viewport"]["width"]
    assert page.locator("#main").evaluate(overflow) == 0
    for wide in (".text pre", ".text .table"):  # are scrolled within themselves
        assert page.locator(wide).evaluate("e => { e.scrollLeft = 50; return e.scrollLeft }") == 50
    page.get_by_role("button", name="Conversations").tap()
    expect(page.get_by_role("dialog")).to_be_in_viewport(ratio=1)
    for control in page.locator("button:visible, a:visible, textarea:visible").all():
        if control.evaluate("e => !e.closest('.text')"):  # links within a text are as high as its lines
            box = control.bounding_box()
            assert min(box["width"], box["height"]) >= TOUCH_PIXELS_MIN, control
    page.get_by_role("button", name="Close").tap()


def test_what_is_written_is_never_covered(new_context, chat, ask):
    page = chat(new_context(**PHONE))
    for number in range(4):
        expect(ask(page, f"{number}\n" + "line\n" * 12)).to_have_attribute("data-state", "done")
    box = page.get_by_label("Message", exact=True)
    expect(box).to_be_in_viewport(ratio=1)
    page.set_viewport_size({"width": 360, "height": 300})  # as if a keyboard came up
    expect(box).to_be_in_viewport(ratio=1)
    box.fill("line\n" * 40)
    expect(box).to_be_in_viewport(ratio=1)
    expect(page.get_by_role("button", name="Send")).to_be_in_viewport(ratio=1)
    assert page.evaluate("document.scrollingElement.scrollHeight") == 300


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(new_context, chat, ask, stand, scheme):
    page = chat(new_context(color_scheme=scheme, reduced_motion="reduce"))
    ask(page, "NUL \0 fails")
    expect(page.locator(".turn").first).to_have_attribute("data-state", "failed")
    text = "# H\n\n`code` [link](https://example.org) **bold**\n\n> quote\n\n| a |\n|---|\n| b |\n\n```\ncode\n```"
    expect(ask(page, text)).to_have_attribute("data-state", "done")
    try:
        stand.latch("ESSENTIAL")
        expect(page.locator("#banner")).not_to_be_empty()
        expect(ask(page, "hello")).to_have_attribute("data-state", "done")
        found = page.evaluate(CONTRASTS)
        page.get_by_role("button", name="Conversations").click()
        found += page.evaluate(CONTRASTS)
    finally:
        stand.release()
    assert len(found) > 25
    assert [(what, round(ratio, 2)) for what, ratio in found if ratio < 4.5] == []


def test_nothing_moves_for_who_does_not_want_it(new_context, chat, ask, model):
    moves = "() => document.getAnimations({ subtree: true }).filter((each) => each.playState === 'running').length"
    for motion, expected in (("no-preference", True), ("reduce", False)):
        page = chat(new_context(reduced_motion=motion))
        ask(page, "wait: and see")
        model.await_question()
        model.say("Hm")
        expect(page.locator(".turn .text")).to_have_text("Hm")
        assert bool(page.evaluate(moves)) is expected
        model.end()
        expect(page.locator(".turn")).to_have_attribute("data-state", "done")
