"""What was given to a chat template comes out of it, or is refused by name."""

from __future__ import annotations

import datetime

import pytest
import tokenizer_shapes as shapes
from tokenizer_shapes import PLAIN, PUBLISHED, SPECIAL, byte_level

from rmas_jax.models import load_tokenizer
from rmas_jax.prompts import (
    SENTINEL,
    PromptError,
    RolePrompt,
    render_chat,
    split_template,
    template_of,
    turn_end,
)
from rmas_jax.prompts import chat as module

SYSTEM_TEXT, USER_TEXT = (
    "You are <b>kind</b> & brief.\n  Indent:\t2.",
    "What's 2 < 3?\n\n  Say {so}, then stop.",
)
MARKERS = [*SPECIAL["qwen"], *((content, False) for content in [*PLAIN["qwen"], *PLAIN["r1"]])]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Its template is replaced in every test."""
    folder = tmp_path_factory.mktemp("tokenizer")
    return load_tokenizer(
        shapes.write(folder, byte_level(MARKERS), bos_token="<|endoftext|>", eos_token="<|im_end|>")
    )


def with_template(tokenizer, template, date=None):
    tokenizer.chat_template, tokenizer.chat_date = template, date


def theirs(tokenizer, system, user, **options):
    """What transformers renders, with system and user in one turn where the template wants that."""
    options |= {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
    turns = [{"role": "user", "content": user}]
    if system:
        try:
            given = [{"role": "system", "content": system}, *turns]
            return tokenizer.apply_chat_template(given, **options)
        except Exception:
            turns[0]["content"] = f"{system}\n\n{user}"
    return tokenizer.apply_chat_template(turns, **options)


@pytest.mark.parametrize("system", [SYSTEM_TEXT, ""])
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_templates_are_rendered_as_transformers_renders_them(tokenizer, name, system):
    with_template(tokenizer, PUBLISHED[name])
    assert render_chat(tokenizer, system, USER_TEXT) == theirs(tokenizer, system, USER_TEXT)
    with_template(tokenizer, PUBLISHED[name], "2001-02-03")
    dated = render_chat(tokenizer, system, USER_TEXT)
    has_clock = "strftime_now" in PUBLISHED[name]
    spoken = {"date_string": "03 Feb 2001"} if has_clock else {}
    assert dated == theirs(tokenizer, system, USER_TEXT, **spoken)
    assert ("03 Feb 2001" in dated) == has_clock


def turns(*given):
    return "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in given)


MERGED = ("user", f"{SYSTEM_TEXT}\n\n{USER_TEXT}")
APART = ("system", SYSTEM_TEXT), ("user", USER_TEXT)
PARTS_OF_USERS = shapes.VISION.replace(
    "for message in messages", "for message in messages if message.role == 'user'"
)
OTHER_WORDS = "{% if messages[0].role == 'system' %}{{ raise_exception('Nope!') }}{% endif %}"
NO_STRING = (  # breaks on what it does not expect, instead of raising
    "{% if messages[0].role == 'system' %}{{ messages[0].content.missing.deeper }}{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "given"),
    [
        (shapes.SKIPS_SYSTEM, [MERGED]),
        (OTHER_WORDS + shapes.CHATML, [MERGED]),
        (NO_STRING + shapes.CHATML, [MERGED]),
        (shapes.CHATML.replace("messages", "messages[::-1]"), [MERGED]),  # system behind the user
        (shapes.CHATML.replace("in messages", "in messages[-1:]"), [MERGED]),
        (shapes.VISION, APART),
        (PARTS_OF_USERS, [MERGED]),
        ("{% if messages[0].content is string %}{{ raise_exception('parts!') }}{% endif %}"
         + shapes.VISION, APART),
    ],
)  # fmt: skip
def test_a_system_text_or_a_string_that_is_left_out_is_given_otherwise(tokenizer, template, given):
    with_template(tokenizer, template)
    expected = turns(*given) + "<|im_start|>assistant\n"
    assert render_chat(tokenizer, SYSTEM_TEXT, USER_TEXT) == expected
    alone = turns(("user", USER_TEXT)) + "<|im_start|>assistant\n"
    assert render_chat(tokenizer, "", USER_TEXT) == alone


def content(filters):
    return shapes.CHATML.replace("message['content']", f"message['content'] {filters}")


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (content("| upper"), "changes"),
        (content("| title"), "changes"),
        (content("| e"), "changes"),
        (content("| replace('\\n', ' ')"), "changes"),
        (content("| replace('  ', '')"), "changes"),
        (content("| truncate(20)"), "changes"),
        (content("| striptags"), "changes"),
        (content("[:20]"), "changes"),
        (content(".split('\\n')[0]"), "changes"),
        (content("| tojson"), "changes"),
        (content("+ message['content']"), "renders 2 times"),
        (shapes.CHATML + shapes.CHATML, "renders 2 times"),
        ("{% for m in messages %}{{ m.role }}{% endfor %}", "leaves out"),
        ("nothing", "leaves out"),
        ("{{ messages[0].content }}{{ messages[0].content[:0] }}" * 2, "renders 2 times"),
        ("{{ messages }}", "leaves out"),
        ("{{ messages | tojson }}", "prints parts instead of their text"),
        (shapes.VISION.replace("part.text", "part.text | upper"), "changes"),
        ("{{ raise_exception('only on Sundays') }}", "only on Sundays"),
        ("{% for m in messages %}", "Unexpected end of template"),
    ],
)
def test_texts_that_do_not_come_out_unchanged_are_refused(tokenizer, template, words):
    with_template(tokenizer, template)
    for system in (SYSTEM_TEXT, ""):
        with pytest.raises(PromptError, match="once each, in this order, unchanged") as error:
            render_chat(tokenizer, system, USER_TEXT)
        assert words in str(error.value) and tokenizer.name_or_path in str(error.value)


def test_blanks_around_a_text_may_be_trimmed(tokenizer):
    with_template(tokenizer, content("| trim"))
    expected = turns(("system", "You help."), ("user", "Hi.")) + "<|im_start|>assistant\n"
    assert render_chat(tokenizer, " You help.\n", "\nHi.  ") == expected


def test_a_slot_in_capitals_is_refused_and_not_read_as_text(tokenizer):
    prompt = RolePrompt("You help.", "{question}", "{question} {a} Go.")
    with_template(tokenizer, shapes.CHATML)
    assert split_template(tokenizer, prompt, prompt.later)[1::2] == ["a"]
    with_template(tokenizer, content("| upper"))
    with pytest.raises(PromptError, match="changes one of the texts"):
        split_template(tokenizer, prompt, prompt.later)


def test_one_date_whatever_the_clock_says(tokenizer, monkeypatch):
    template = "{{ strftime_now('%Y-%m-%d %H:%M:%S') }} {{ messages[0].content }}"
    with_template(tokenizer, template, "2024-12-31")
    prompt = RolePrompt("", "{question}", "{question}")
    [first] = split_template(tokenizer, prompt, prompt.first)
    assert first == f"2024-12-31 00:00:00 {SENTINEL.format('question')}"
    monkeypatch.setattr(module, "today", lambda: "2025-01-01")  # midnight has passed
    module._render_once.cache_clear()
    assert split_template(tokenizer, prompt, prompt.first) == [first]
    with_template(tokenizer, template)
    assert render_chat(tokenizer, "", "Hi.") == "2025-01-01 00:00:00 Hi."  # none is set: today's


def test_without_a_date_it_is_today(tokenizer):
    with_template(tokenizer, "{{ strftime_now('%Y-%m-%d') }} {{ messages[0].content }}")
    before = datetime.date.today()
    shown = render_chat(tokenizer, "", "Hi.").split()[0]
    assert before.isoformat() <= shown <= datetime.date.today().isoformat()


def test_chance_in_a_template_is_the_same_in_every_rendering(tokenizer):
    template = "{{ range(1000) | random }} {{ {'a': 1} | string }} {{ messages[0].content }}"
    with_template(tokenizer, template)
    first = render_chat(tokenizer, "", "Hi.")
    module._render_once.cache_clear()
    assert render_chat(tokenizer, "", "Hi.") == first


@pytest.mark.parametrize("name", [*PUBLISHED, "vision"])
def test_the_end_of_a_turn_is_found_in_published_templates(tokenizer, name):
    with_template(tokenizer, (PUBLISHED | {"vision": shapes.VISION})[name])
    ids = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert turn_end(tokenizer, (ids[1], ids[0])) == ids[0]


def test_a_template_that_renders_no_answer_ends_it_with_the_token_of_the_tokenizer(tokenizer):
    # What stands behind the question is no end of an answer.
    with_template(tokenizer, "{{ messages[0].content }}<think>")
    ids = tokenizer.convert_tokens_to_ids(["<think>", "<|im_end|>"])
    assert turn_end(tokenizer, ids) == ids[1]


@pytest.mark.parametrize(
    "template", [5, ["a"], {"tool_use": "x"}, {"default": 3}, True, "", "a \ud800"]
)
def test_a_template_must_be_text(tokenizer, template):
    with_template(tokenizer, template)
    with pytest.raises(PromptError, match=f"{tokenizer.name_or_path}.*(must be text|surrogates)"):
        template_of(tokenizer)


def test_of_several_templates_it_is_the_default(tokenizer):
    with_template(tokenizer, {"tool_use": "no", "default": "{{ messages[0].content }}!"})
    assert render_chat(tokenizer, "", "Hi.") == "Hi.!"
