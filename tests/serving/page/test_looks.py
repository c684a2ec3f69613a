"""The looks of the page in Chromium: colours, motion, narrow screens, and pictures for the site.

RMAS_SCREENSHOTS=docs/figures/serving makes the pictures anew.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from scripted_server import ROUNDS, TEAM, Gate, Reply, answers, ending, stage, text

RECORDED = Path(__file__).parent / "recorded"  # of the quickstart: team, a stream per channel
QUESTION = (  # that was asked there
    "The pass phrase Fumes Dabil goes through five gates, red, green and blue in turn. "
    "What does it read then?"
)
SIX = {  # five specialists and a summariser: a role of each colour
    **TEAM,
    "topology": {
        "name": "six",
        "order": [*"abcde", "answerer"],
        "levels": [[*"abcde"], ["answerer"]],
        "edges": [f"{role}->answerer" for role in "abcde"],
        "feedback": [],
        "answerer": "answerer",
    },
    "agents": dict.fromkeys([*"abcde", "answerer"], "a model"),
}
CONTRASTS = """(() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const rgb = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const behind = (element) => {
    const rect = element.closest("[data-role]")?.querySelector("rect");
    if (rect) return rgb(getComputedStyle(rect).fill);
    for (; element; element = element.parentElement) {
      const colour = rgb(getComputedStyle(element).backgroundColor);
      if (colour[3] === 255) return colour;
    }
  };
  const is_text = (node) => node.nodeType === Node.TEXT_NODE && node.data.trim();
  const has_text = (element) => [...element.childNodes].some(is_text);
  const texts = [...document.querySelectorAll("body *")].filter(has_text)
    .filter((element) => element.checkVisibility() && !element.closest(":disabled, script, title"));
  return texts.map((element) => {
    const style = getComputedStyle(element);
    const front = rgb(element.closest("svg") ? style.fill : style.color);
    return [element.textContent, front, behind(element)];
  });
})()"""


def contrast(front: list[int], back: list[int]) -> float:
    """WCAG 2.2's contrast ratio of two colours."""

    def luminance(colour: list[int]) -> float:
        linear = [
            x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4
            for x in (part / 255 for part in colour[:3])
        ]
        return sum(w * x for w, x in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    dark, light = sorted([luminance(front), luminance(back)])
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_light_and_in_dark(open_page, server, scheme):
    assert contrast([255, 255, 255], [0, 0, 0]) == pytest.approx(21)
    assert contrast([119, 119, 119], [255, 255, 255]) == pytest.approx(4.48, abs=0.01)
    server.team = SIX
    latents = {
        f"{role}->answerer": [(1.0, [["a token", 1.0]]), (1.0, [["one", 0.5]])] for role in "abcde"
    }
    gate = Gate([stage(1, "a", latents), *(stage(1, role, {}) for role in "bcde"), text("So.")])
    server.answer = lambda _: Reply(gate)
    page = open_page()
    page.emulate(prefers_color_scheme=scheme, prefers_reduced_motion="reduce")
    page.ask()
    for active in [*"abcde", "answerer"]:  # each colour in each state
        page.until(lambda active=active: page.states()[active] == "active")
        found = page.script(CONTRASTS)
        assert len(found) > 15 and {"answerer", "a model"} <= {text for text, _, _ in found}
        low = [(text, contrast(front, back)) for text, front, back in found]
        assert not [(text, ratio) for text, ratio in low if ratio < 4.5]
        gate.let()


def test_the_theme_follows_the_system_until_it_is_chosen(open_page):
    page = open_page()

    def is_dark() -> bool:
        red = page.one("body").value_of_css_property("background-color").strip("rgba()")
        return int(red.split(",")[0]) < 128

    assert not is_dark()
    page.emulate(prefers_color_scheme="dark")
    assert is_dark()
    for label, dark in (("light", False), ("dark", True), ("system", True), ("light", False)):
        page.one("#theme").click()
        assert page.one("#theme").text == f"Theme: {label}" and is_dark() == dark
    page.emulate(prefers_color_scheme="light")
    assert not is_dark()


def test_nothing_moves_where_less_motion_is_wanted(open_page, server):
    gate = Gate(ROUNDS)
    server.answer = lambda _: Reply(gate)
    page = open_page()
    page.ask()
    page.until(lambda: "active" in page.states().values())
    assert page.script("document.getAnimations().length") == 0
    page.emulate(prefers_reduced_motion="no-preference")
    assert page.script("document.getAnimations().length") > 0


@pytest.mark.parametrize("width", [320, 700])
def test_a_narrow_screen_needs_no_scrolling_sideways(open_page, server, width):
    server.answer = answers(*ROUNDS, text("word" * 100), ending())
    page = open_page()
    page.one("#compare").click()
    page.size(width)
    page.ask_to_the_end()
    assert page.script("document.documentElement.scrollWidth") <= width
    tops = [run.rect["y"] for run in page.all(".run")]
    assert (tops[0] < tops[1]) == (width < 800)


def test_pictures_of_the_documentation(open_page, server, tmp_path):
    folder = Path(os.environ.get("RMAS_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    server.team = json.loads((RECORDED / "team.json").read_text())
    server.answer = lambda body: Reply([(RECORDED / f"{body['rmas']['channel']}.txt").read_bytes()])
    page = open_page()
    page.ask(QUESTION)
    page.until(lambda: not page.one("#stop").is_enabled())
    page.one("[name=temperature]").send_keys("")
    page.press("TAB", "TAB", "ARROW_RIGHT")  # to the second latent of the second edge
    for name, width, scheme in (
        ("light", 1000, "light"),
        ("dark", 1000, "dark"),
        ("narrow", 390, "light"),
    ):
        page.size(width)
        page.emulate(prefers_color_scheme=scheme, prefers_reduced_motion="reduce")
        page.screenshot(folder / f"{name}.png")
    page.size(1400)
    page.one("#compare").click()
    page.ask(QUESTION)
    page.until(lambda: not page.one("#stop").is_enabled())
    page.screenshot(folder / "compare.png")
    assert all(0 < path.stat().st_size < 150_000 for path in folder.glob("*.png"))
