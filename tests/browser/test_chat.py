"""The web chat as people use it: they send, stop, lose the line, come back, and are not alone."""

import json
import urllib.request

import pytest
from playwright.sync_api import Locator, expect

FIRST = "What is the weather on the lake?"


def state(turn: Locator, name: str) -> None:
    expect(turn).to_have_attribute("data-state", name)


def texts(page, part: str) -> list[str]:
    return page.locator(f".turn {part}").all_text_contents()


def history(stand, page) -> list[tuple[str, str]]:
    """What is durable of the page's conversation."""
    session_id = page.evaluate("location.hash.slice(2)")
    with urllib.request.urlopen(f"{stand.url}/chat/v2/sessions/{session_id}") as answer:
        return [(turn["message"], turn["reply"]) for turn in json.loads(answer.read())["turns"]]


def say_by_http(stand, session_id: str, message: str) -> None:
    body = json.dumps({"message": message, "session_id": session_id}).encode()
    request = urllib.request.Request(f"{stand.url}/chat/v2/chat", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request):
        pass


def create(stand, session_id: str, method: str = "POST") -> None:
    path = "/chat/v2/sessions" + ("" if method == "POST" else f"/{session_id}")
    body = json.dumps({"session_id": session_id}).encode() if method == "POST" else None
    headers = {"Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(stand.url + path, body, headers, method=method)):
        pass


def test_an_answer_is_shown_as_it_comes_and_is_there_after_a_reload(page, model, ask, stand):
    expect(page.get_by_text("What is on your mind?")).to_be_visible()
    turn = ask(page, "wait: the weather")
    model.await_question()
    model.say("**Fog", ", ")
    expect(turn.locator(".text")).to_have_text("**Fog, ")
    expect(turn.locator(".answer")).to_have_attribute("aria-busy", "true")
    expect(page.get_by_role("button", name="Stop the answer")).to_be_visible()
    expect(page.get_by_role("button", name="Send")).to_be_hidden()
    expect(page.locator("#keys")).to_have_text("You can send when the answer is there; Esc stops it.")
    model.say("then** sun.")
    expect(turn.locator(".text strong")).to_have_text("Fog, then")
    model.end()
    state(turn, "done")
    expect(turn.locator(".answer")).to_have_attribute("aria-busy", "false")
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    expect(page).to_have_title("wait: the weather · AI Orchestra")
    page.reload()
    expect(page.locator(".turn .text")).to_have_text("Fog, then sun.")
    expect(page.locator(".turn .said")).to_have_text("wait: the weather")
    assert history(stand, page) == [("wait: the weather", "**Fog, then** sun.")]


@pytest.mark.parametrize("how", ["button", "key"])
def test_an_answer_that_is_stopped_ends_at_the_model_and_is_not_kept(page, model, ask, stand, how):
    state(ask(page, FIRST), "done")
    turn = ask(page, f"wait: to be stopped by {how}")
    model.await_question()
    model.say("Let me ")
    expect(turn.locator(".text")).to_have_text("Let me ")
    if how == "key":
        page.keyboard.press("Escape")
    else:
        page.get_by_role("button", name="Stop the answer").click()
    state(turn, "stopped")
    assert model.aborted.get(timeout=15) == f"wait: to be stopped by {how}"
    expect(turn.locator(".note")).to_have_text("Stopped: this is not part of the conversation.")
    expect(page.get_by_label("Message", exact=True)).to_be_focused()
    assert history(stand, page) == [(FIRST, FIRST)]
    turn.get_by_role("button", name="Send again").click()
    model.await_question()
    model.say("Well.")
    model.end()
    state(turn, "done")
    expect(turn.locator(".text")).to_have_text("Well.")
    assert len(history(stand, page)) == 2


def test_a_message_waits_for_a_service_that_restarts(page, ask, stand, announced):
    state(ask(page, FIRST), "done")
    announced(page)
    stand.stop()
    status = page.locator("#status")
    expect(status).to_contain_text("Connection lost: reconnecting in")
    expect(page.get_by_role("button", name="Reconnect now")).to_be_visible()
    turn = ask(page, "Are you there?")
    expect(turn.locator(".note")).to_have_text("Will be sent when there is a connection.")
    stand.start()
    state(turn, "done")
    expect(status).to_be_empty()
    assert history(stand, page) == [(FIRST, FIRST), ("Are you there?", "Are you there?")]
    # whoever hears the page hears of the line once, not second by second
    said = page.evaluate("window.announced")
    assert said[0] == "Connection lost, reconnecting"
    assert said.count("Connected") == said.count("Connection lost, reconnecting") == 1
    assert status.evaluate("e => e.closest('[aria-live], [role=status]')") is None


def test_an_answer_that_its_service_dies_with_is_begun_again_and_said_once(page, model, ask, stand):
    turn = ask(page, "wait: for the end")
    model.await_question()
    model.say("First half ")
    expect(turn.locator(".text")).to_have_text("First half ")
    stand.kill()
    expect(page.locator("#status")).to_contain_text("Connection lost")
    stand.start()
    model.await_question()
    model.say("A new ")
    expect(turn.locator(".text")).to_have_text("A new ")
    model.say("answer")
    model.end()
    state(turn, "done")
    assert texts(page, ".text") == ["A new answer"]
    assert history(stand, page) == [("wait: for the end", "A new answer")]


def test_a_line_that_is_cut_is_taken_up_behind_the_last_piece(new_context, chat, model, ask, stand):
    context = new_context()
    sockets, sent = [], []

    def between(socket):
        server = socket.connect_to_server()
        sockets.append(socket)
        socket.on_message(lambda data: (sent.append(json.loads(data)), server.send(data)))

    context.route_web_socket("**/chat/ws/**", between)
    page = chat(context)
    turn = ask(page, "wait: for the line")
    model.await_question()
    model.say("one ", "two ")
    expect(turn.locator(".text")).to_have_text("one two ")
    sockets[-1].close(code=4000, reason="cut")
    model.say("three ")
    expect(turn.locator(".text")).to_have_text("one two three ")
    model.say("four")
    model.end()
    state(turn, "done")
    expect(turn.locator(".text")).to_have_text("one two three four")
    assert [frame["type"] for frame in sent] == ["message", "resume"]
    assert sent[1]["after"] == 3  # `started` and two pieces
    assert history(stand, page) == [("wait: for the line", "one two three four")]


def test_a_lost_line_is_tried_again_by_itself_and_at_once_by_hand(new_context):
    """Time stands still here but where the test lets it go on."""
    context = new_context()
    sockets = []

    def between(socket):
        sockets.append(socket)
        socket.connect_to_server()

    context.route_web_socket("**/chat/ws/**", between)
    page = context.new_page()
    page.clock.install(time=0)
    page.goto("/")
    page.wait_for_selector("body[data-link=ready]")
    page.clock.pause_at(60_000)
    sockets[-1].close(code=4000, reason="cut")
    expect(page.locator("#status")).to_have_text("Connection lost: reconnecting in 1 s.")
    page.get_by_role("button", name="Reconnect now").click()
    page.wait_for_selector("body[data-link=ready]")
    assert len(sockets) == 2
    sockets[-1].close(code=4000, reason="cut")
    page.wait_for_selector("body[data-link=waiting]")
    page.clock.run_for(1000)  # the longest that a second wait can be
    page.wait_for_selector("body[data-link=ready]")
    assert len(sockets) == 3


def test_a_page_that_is_loaded_again_amid_an_answer_joins_it(page, model, ask, stand):
    ask(page, "wait: for the reload")
    model.await_question()
    model.say("still ")
    expect(page.locator(".turn .text")).to_have_text("still ")
    page.reload()
    turn = page.locator(".turn")
    expect(turn.locator(".text")).to_have_text("still ")
    expect(page.get_by_role("button", name="Stop the answer")).to_be_visible()
    model.say("here")
    model.end()
    state(turn, "done")
    expect(turn.locator(".text")).to_have_text("still here")
    assert len(history(stand, page)) == 1


def test_two_windows_and_a_guest_see_each_others_turns_live(new_context, chat, model, ask):
    context = new_context()
    one = chat(context)
    two = chat(context, one.url)
    guest = chat(new_context(), one.url)
    ask(one, "wait: all of you")
    model.await_question()
    model.say("I am ")
    for page in (one, two, guest):
        expect(page.locator(".turn .text")).to_have_text("I am ")
    model.say("heard")
    model.end()
    state(ask(guest, "By me, too"), "done")
    for page in (one, two, guest):
        expect(page.locator(".turn")).to_have_count(2)
        expect(page.locator(".turn .text")).to_have_text(["I am heard", "By me, too"])
    expect(guest.get_by_role("heading", name="Another guest")).to_be_visible()
    expect(two.locator(".turn").nth(1).get_by_role("heading", name="Another guest")).to_be_visible()


def test_the_page_says_what_the_level_is_and_what_an_answer_had_to_do_without(page, ask, stand):
    banner = page.locator("#banner")
    expect(banner).to_be_empty()
    try:
        stand.latch("LIMITED")
        expect(banner).to_have_text(
            "The service is busy and runs with limits. For now without: seeing what others write as they do."
        )
        state(ask(page, "With limits"), "done")
        stand.latch("ESSENTIAL")
        expect(banner).to_contain_text("recalling what was said long before, answers word by word")
        turn = ask(page, "Essentially")
        state(turn, "done")
        expect(turn.locator(".note")).to_have_text(
            "Answered without recalling what was said long before. Answered in one piece, not word by word."
        )
        stand.latch("MAINTENANCE")
        expect(banner).to_contain_text("you can read, but nothing can be sent now")
        page.get_by_label("Message", exact=True).fill("Not now")
        page.keyboard.press("Enter")
        expect(page.get_by_label("Message", exact=True)).to_have_value("Not now")
        expect(page.locator(".turn")).to_have_count(2)
        page.reload()  # reading goes on, and what is written is kept
        expect(page.locator(".turn .note").nth(1)).to_contain_text("Answered without recalling")
        expect(page.get_by_label("Message", exact=True)).to_have_value("Not now")
        expect(banner).to_contain_text("maintenance")
    finally:
        stand.release()
    expect(banner).to_be_empty()
    page.get_by_label("Message", exact=True).press("Enter")
    state(page.locator(".turn").nth(2), "done")


def test_what_is_not_sent_is_there_after_a_reload(page):
    box = page.get_by_label("Message", exact=True)
    box.fill("A thought\nin two lines")
    page.reload()
    expect(box).to_have_value("A thought\nin two lines")
    page.get_by_role("button", name="New conversation").click()
    expect(box).to_have_value("")
    page.go_back()
    expect(box).to_have_value("A thought\nin two lines")


def test_a_refused_message_says_why_and_can_be_sent_again(page, ask, stand):
    turn = ask(page, "NUL \0 is no text")
    state(turn, "failed")
    expect(turn.locator(".note")).to_contain_text("NUL")
    expect(turn.get_by_role("button", name="Send again")).to_be_visible()
    page.reload()
    state(page.locator(".turn"), "failed")
    box = page.get_by_label("Message", exact=True)
    box.fill("x" * 100_001)
    page.keyboard.press("Enter")
    assert box.evaluate("box => box.validationMessage") == "The message is too long by 1 characters: shorten it."
    assert len(box.input_value()) == 100_001


def test_conversations_of_this_browser_are_found_again(page, ask):
    state(ask(page, "The first one"), "done")
    first = page.url
    page.get_by_role("button", name="New conversation").click()
    expect(page.get_by_text("What is on your mind?")).to_be_visible()
    assert page.url != first
    state(ask(page, "The second one"), "done")
    page.get_by_role("button", name="Conversations").click()
    drawer = page.get_by_role("dialog", name="Conversations")
    listed = drawer.get_by_role("navigation", name="Earlier conversations").get_by_role("link")
    expect(listed).to_have_text(["The second one", "The first one"])
    expect(listed.first).to_have_attribute("aria-current", "page")
    listed.nth(1).click()
    expect(drawer).to_be_hidden()
    expect(page.locator(".turn .said")).to_have_text("The first one")
    assert page.url == first
    page.get_by_role("button", name="Conversations").click()
    page.get_by_role("button", name="Forget this list").click()
    expect(drawer.get_by_text("None yet.")).to_be_visible()


def test_the_link_is_copied_and_the_conversation_exported(new_context, chat, ask):
    page = chat(new_context(permissions=["clipboard-read", "clipboard-write"]))
    turn = ask(page, "*Keep* me")
    state(turn, "done")
    turn.get_by_role("button", name="Copy the answer").click()
    expect(turn.get_by_role("button", name="Copy the answer")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == "*Keep* me"
    page.get_by_role("button", name="Conversations").click()
    page.get_by_role("button", name="Copy its link").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == page.url
    for name, suffix in (("Export as Markdown", ".md"), ("Export as JSON", ".json")):
        with page.expect_download() as download:
            page.get_by_role("link", name=name).click()
        assert download.value.suggested_filename.endswith(suffix)
        assert "*Keep* me" in download.value.path().read_text()


def test_earlier_messages_are_fetched_when_they_are_asked_for(new_context, chat, stand):
    session_id = "a-long-conversation"
    create(stand, session_id)
    for number in range(25):
        say_by_http(stand, session_id, f"Number {number}")
    page = chat(new_context(), f"/#/{session_id}")
    expect(page.locator(".turn")).to_have_count(20)
    main = page.locator("#main")
    assert main.evaluate("e => e.scrollHeight - e.scrollTop - e.clientHeight") <= 1
    page.keyboard.press("Shift+Tab")  # to the last answer's button; then up where the earlier ones are
    main.evaluate("e => { e.scrollTop = 0 }")
    expect(page.get_by_role("button", name="Latest message")).to_be_visible()
    top = page.locator(".turn").first.bounding_box()["y"]
    page.get_by_role("button", name="Show earlier messages").click()
    expect(page.locator(".turn")).to_have_count(25)
    assert texts(page, ".said") == [f"Number {number}" for number in range(25)]
    expect(page.get_by_role("button", name="Show earlier messages")).to_be_hidden()
    assert abs(page.locator(".turn").nth(5).bounding_box()["y"] - top) < 60  # what was read stays in its place
    page.get_by_role("button", name="Latest message").click()
    expect(page.get_by_role("button", name="Latest message")).to_be_hidden()


def test_a_conversation_that_was_deleted_says_so_and_is_not_tried_for_ever(new_context, stand):
    create(stand, "soon-gone")
    create(stand, "soon-gone", "DELETE")
    page = new_context().new_page()
    page.goto("/#/soon-gone")
    status = page.locator("body[data-link=closed] #status")
    expect(status).to_have_text("This conversation was deleted, or has expired.")
    page.get_by_label("Message", exact=True).fill("What now?")
    page.locator("#fresh").click()
    page.wait_for_selector("body[data-link=ready]")
    expect(page.get_by_label("Message", exact=True)).to_have_value("What now?")
    assert "soon-gone" not in page.url


def test_a_message_in_a_conversation_that_was_deleted_can_be_said_in_a_new_one(page, ask, stand):
    state(ask(page, FIRST), "done")
    create(stand, page.evaluate("location.hash.slice(2)"), "DELETE")
    turn = ask(page, "Still there?")
    expect(turn.locator(".note")).to_have_text(
        "This conversation was deleted, or has expired: nothing can be said in it."
    )
    turn.get_by_role("button", name="New conversation").click()
    expect(page.get_by_label("Message", exact=True)).to_have_value("Still there?")
    expect(page.locator(".turn")).to_have_count(0)


def test_a_connection_that_is_refused_says_why(new_context):
    context = new_context()
    context.add_init_script(
        "window.WebSocket = class { constructor() { setTimeout(() => this.onclose({ code: 1006 })); } close() {} }"
    )
    problem = {"title": "Too many connections", "detail": "close a window", "status": 503}
    context.route("**/chat/ws/**", lambda route: route.fulfill(status=503, json=problem))
    page = context.new_page()
    page.goto("/")
    expect(page.locator("#status")).to_contain_text("Too many connections: close a window: reconnecting in")


def test_a_link_that_names_no_conversation_begins_one(new_context, chat):
    page = chat(new_context(), "/#/no/such%20id")
    assert page.evaluate("/^#\\/[0-9a-f]{32}$/.test(location.hash)")
