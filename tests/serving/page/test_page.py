"""The page in Chromium: what it asks, what it shows of an answer, its keys and its errors."""

from __future__ import annotations

import pytest
from page_browser import WAIT_S, Page
from scripted_server import ROUNDS, TEAM, Gate, Reply, answers, ending, event, refusal, stage, text

from rmas_jax.serving.page import load_page

MARKUP = "<img src=x onerror=alert(1)> & <b>Bison</b>"


def test_the_team_is_drawn_and_the_settings_are_those_of_the_server(open_page):
    page = open_page()
    assert page.texts("h1") == ["relay"]
    assert list(page.states()) == ["planner", "critic", "solver"]
    edges = [path.get_attribute("class") for path in page.all(".team path[data-from]")]
    assert edges == ["", "", "feedback"]
    places = [box.rect["x"] for box in page.all("[data-role] rect")]
    assert places == sorted(places) and len(set(places)) == 3
    assert page.texts(".choice[role=radiogroup] span") == ["Latent", "Text"]
    assert page.texts(".run output") == ["2", "0.7"]
    rounds = page.one("[name=rounds]")
    assert [rounds.get_attribute(name) for name in ("min", "max")] == ["1", "8"]


def test_a_question_is_asked_as_the_settings_say(open_page, server):
    server.team = {**TEAM, "columns": ["evidence"]}
    page = open_page()
    page.one("[name=evidence]").send_keys("A gate.")
    page.one("[value=text]").find_element("xpath", "..").click()
    page.set("rounds", 3)
    page.set("temperature", 0)
    page.ask_to_the_end()
    assert page.texts(".run output") == ["3", "0"]
    assert server.asked == [
        {
            "model": "relay",
            "messages": [{"role": "user", "content": "Where does it end?"}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 0,
            "rmas": {
                "channel": "text",
                "rounds": 3,
                "watch": True,
                "nearest": 3,
                "columns": {"evidence": "A gate."},
            },
        }
    ]


def test_stages_and_answer_appear_as_they_come(open_page, server):
    gate = Gate([*ROUNDS, text("Kenal "), text("Bïson"), ending()])
    server.answer = lambda _: Reply(gate)
    page = open_page()
    page.ask()
    active, done = "active", "done"
    for states, sent, status in [
        ([active, None, None], [], "Round 1 of 2: planner thinks."),
        ([done, active, None], ["planner"], "Round 1 of 2: critic thinks."),
        ([done, done, active], ["planner", "critic"], "Round 1 of 2: solver thinks."),
        ([active, None, None], [], "Round 2 of 2: planner thinks."),
        ([done, active, None], ["planner"], "Round 2 of 2: critic thinks."),
        ([done, done, active], ["planner", "critic"], "Round 2 of 2: solver answers."),
        ([done, done, active], ["planner", "critic"], "solver answers."),
    ]:
        page.until(lambda status=status: page.texts(".status") == [status])
        assert (list(page.states().values()), page.sent()) == (states, sent)
        assert page.one(".answer").get_attribute("aria-busy") == "true"
        gate.let()
    page.until(lambda: page.texts(".answer") == ["Kenal Bïson"])
    assert page.one("#stop").is_enabled()
    gate.let()
    page.until(lambda: not page.one("#stop").is_enabled())
    assert list(page.states().values()) == [done] * 3
    assert page.one(".answer").get_attribute("aria-busy") == "false"
    assert page.texts(".status") == [
        "2 rounds, 16 latents, 7 tokens of answer; queue 0 ms, rounds 1.50 s, answer 125 ms."
    ]
    assert page.texts(".round h3") == ["Round 1", "Round 2"]
    assert page.texts(".change") == ["what reaches solver moved by 0.133"]
    assert [len(strip.find_elements("css selector", ".cell")) for strip in page.all(".strip")] == (
        [4] * 5
    )


def test_a_byte_at_a_time_is_read_alike(open_page, server):
    whole = b"".join([b": ping\r\n\r\n", *ROUNDS, text("Bïson ␣ 🦬"), ending("length")])
    for ends in (b"\r\n", b"\n"):
        sent = whole.replace(b"\r\n", ends)
        server.answer = answers(*(sent[i : i + 1] for i in range(len(sent))))
        page = open_page()
        page.ask_to_the_end()
        assert page.texts(".answer") == ["Bïson ␣ 🦬"]
        assert "cut off" in page.texts(".status")[0] and len(page.all(".strip")) == 5


def test_text_messages_are_shown(open_page, server):
    server.answer = answers(
        stage(1, "planner", {}, text="First\n<i>north</i>", tokens=5), ending(messages=5)
    )
    page = open_page()
    page.ask_to_the_end()
    assert page.texts(".message") == ["First\n<i>north</i>"]
    assert page.texts(".who") == ["planner\n250 ms, 5 tokens"]
    assert "5 tokens of messages, 7 tokens of answer" in page.texts(".status")[0]


def lightness(page: Page) -> list[float]:
    """Of the cells of the first strip, OKLab's L."""
    cells = page.all(".strip")[0].find_elements("css selector", ".cell")
    colours = [cell.value_of_css_property("background-color") for cell in cells]
    return [float(colour.partition("oklab(")[2].split()[0]) for colour in colours]


def test_the_colour_of_a_latent_is_its_cosine_or_its_norm(open_page, server):
    server.answer = answers(*ROUNDS, ending())
    page = open_page()
    page.ask_to_the_end()
    near = lightness(page)
    assert near[0] < near[2] < near[1] < near[3]  # 0.98, 0.75, 0.5, 0.25
    page.one("[name=colour][value=norm]").find_element("xpath", "..").click()
    far = lightness(page)
    assert far[2] < far[0] < far[3] < far[1]  # 4, 3, 2, 1.5


def test_the_nearest_tokens_show_under_the_pointer_and_under_the_focus(open_page, server):
    from selenium.webdriver import ActionChains

    server.answer = answers(*ROUNDS, ending())
    page = open_page()
    page.ask_to_the_end()
    strip, other = page.all(".strip")[:2]
    cells = strip.find_elements("css selector", ".cell")
    detail = strip.find_element("xpath", "following-sibling::div")
    ActionChains(page.browser).move_to_element(cells[1]).perform()
    assert detail.text.split("\n") == ["Latent 2, norm 1.50", "␣Bison", "0.50", "↵", "0.25"]
    ActionChains(page.browser).move_to_element(page.one("h1")).perform()
    assert not detail.is_displayed()

    page.browser.execute_script("arguments[0].focus()", cells[0])
    assert detail.is_displayed() and "Kenal" in detail.text
    page.press("ARROW_RIGHT", "ARROW_RIGHT")
    page.until(lambda: "<b>,</b>" in detail.text and "∅" in detail.text)
    for key, index in (("ARROW_RIGHT", 3), ("ARROW_RIGHT", 3), ("END", 3), ("HOME", 0)):
        page.press(key)
        assert page.script("document.activeElement") == cells[index]
        assert cells[index].get_attribute("aria-selected") == "true"
    assert "Latent 4 of 4, norm 2.00; ␣no 0.25" in cells[3].get_attribute("aria-label")
    page.press("ESCAPE")
    assert not detail.is_displayed()
    page.press("TAB")  # a strip is one stop
    assert page.script("document.activeElement.parentElement") == other


def test_what_a_model_writes_stays_text(open_page, server):
    from selenium.common.exceptions import JavascriptException

    latents = {"planner->critic": [(1.0, [[MARKUP, 1.0]])]}
    server.answer = answers(
        stage(1, "planner", latents),
        stage(1, "critic", {}, text=MARKUP, tokens=3),
        text(MARKUP),
        ending(),
    )
    page = open_page()
    page.ask_to_the_end()
    assert page.texts(".answer") == page.texts(".message") == [MARKUP]
    assert not page.all("img, b")
    with pytest.raises(JavascriptException, match="TrustedHTML"):  # nor could it become markup
        page.script("document.body.innerHTML = arguments[0]", MARKUP)
    page.browser.get_log("browser")  # which tells of that


def test_a_stopped_question_frees_its_place(open_page, server):
    gate = Gate([*ROUNDS, ending()])
    server.answer = lambda _: Reply(gate)
    page = open_page()
    page.ask()
    gate.let()
    page.until(lambda: len(page.all(".strip")) == 1)
    page.one("#stop").click()
    assert server.left.wait(WAIT_S)
    assert page.texts(".status") == ["Stopped."] and "active" not in page.states().values()
    assert page.script("document.activeElement.id") == "question"
    gate.let(9)
    server.answer = answers(text("next"), ending())
    page.ask_to_the_end()
    assert page.texts(".answer") == ["next"] and not page.all(".strip")


def test_two_runs_side_by_side(open_page, server):
    server.answer = lambda body: Reply([text(body["rmas"]["channel"]), ending()])
    page = open_page()
    assert not page.one(".run h2").is_displayed()
    page.one("#compare").click()
    page.until(lambda: page.texts(".run h2") == ["Run A", "Run B"])
    page.set("rounds", 5, run=2)
    page.ask_to_the_end()
    assert page.texts(".answer") == ["latent", "text"]
    settings = {body["rmas"]["channel"]: body["rmas"]["rounds"] for body in server.asked}
    assert settings == {"latent": 2, "text": 5}
    first, second = (run.rect for run in page.all(".run"))
    assert first["y"] == second["y"] and first["x"] + first["width"] < second["x"]
    page.one("#compare").click()
    assert len(page.all(".run")) == 1 and page.texts(".answer") == ["latent"]


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (refusal(400, "rmas.rounds must be 1 to 8, got 9"), "rmas.rounds must be 1 to 8, got 9"),
        (refusal(401, "no key"), "The server asks for an API key."),
        (refusal(429, "full", Retry_After="3"), "The server is busy. Try again in 3 s."),
        (refusal(503, "The server is closing", Retry_After="9"), "The server is closing (503)."),
        (Reply([b"<html>Bad gateway"], 502), "(502)"),
        (Reply([*ROUNDS, text("Ke")]), "The connection broke off before the answer was complete."),
        (Reply([ROUNDS[0], event(error={"message": "critic: NaN"})]), "critic: NaN"),
    ],
    ids=["400", "401", "429", "503", "502", "broken off", "in the stream"],
)
def test_errors_are_shown_in_words_and_the_next_question_is_asked(open_page, server, reply, said):
    server.answer = lambda _: reply
    page = open_page()
    page.ask_to_the_end()
    alarm = page.one(".run [role=alert]")
    assert said in alarm.text and page.texts(".status") == ["Failed."]
    assert "active" not in page.states().values()
    server.answer = answers(text("fine"), ending())
    page.ask_to_the_end()
    assert page.texts(".answer") == ["fine"] and not alarm.is_displayed()


def test_a_server_that_has_gone_is_named(open_page, server):
    page = open_page()
    server.close()
    page.ask_to_the_end()
    assert page.texts(".run [role=alert]") == ["The server does not answer. Is it still running?"]


def test_the_key_is_sent_and_kept_nowhere(open_page, server):
    good = server.team_reply
    server.team_reply = lambda: (
        good() if server.keys[-1] == "Bearer sesame" else refusal(401, "wrong key")
    )
    page = open_page()
    assert page.texts("#notice") == ["The server asks for an API key."] and not page.all(".run")
    page.one("#key").send_keys("wrong")
    page.press("TAB")
    page.until(lambda: page.texts("#notice") == ["The server does not accept this API key."])
    page.one("#question").send_keys("Where?")
    page.one("#key").clear()
    page.one("#key").send_keys("sesame")
    page.one("#ask [type=submit]").click()  # leaves the field, which asks for the team, too
    page.until(lambda: len(server.asked) == 1)
    assert len(page.all(".run")) == 1 and not page.one("#notice").is_displayed()
    assert server.keys[-1] == "Bearer sesame" and server.keys[0] is None
    kept = page.script(
        "[localStorage.length, sessionStorage.length, document.cookie, location.href]"
    )
    assert kept == [0, 0, "", server.address]
    page.one("#key").clear()
    page.one("#key").send_keys("naïve")
    page.ask_to_the_end()
    assert page.texts(".run [role=alert]") == ["An API key has visible ASCII characters only."]
    page.browser.refresh()
    assert page.one("#key").get_attribute("value") == ""


def test_the_keyboard_is_enough(open_page, server):
    from selenium.webdriver.common.keys import Keys

    server.answer = answers(text("by key"), ending())
    page = open_page()
    seen = []
    for _ in range(9):
        page.press("TAB")
        focused = page.script("document.activeElement")
        seen.append(focused.get_attribute("id") or focused.get_attribute("name"))
        ring = page.script(
            "getComputedStyle(arguments[0].closest('.choice label') ?? arguments[0]).outlineStyle",
            focused,
        )
        assert ring == "solid", seen
    assert seen == [
        *("key", "compare", "theme", "question"),
        "",  # Ask
        *("colour", "channel-A", "rounds", "temperature"),
    ]
    page.one("#question").send_keys("Where?", Keys.CONTROL, Keys.ENTER)
    page.until(lambda: page.texts(".answer") == ["by key"])


def test_the_page_needs_nothing_else():
    page = load_page()
    assert page.html.count(b"<script") == page.html.count(b"<style") == 1
    rest = page.html.replace(b"http://www.w3.org/2000/svg", b"")  # a name, not an address
    assert not [word for word in (b"://", b"innerHTML", b"@import", b"src=") if word in rest]
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
