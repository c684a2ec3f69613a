"""Chat templates by name, and what they say about the end of an answer."""

from __future__ import annotations

import pytest
import tokenizer_shapes as shapes

from experiments.embedded.make_tokenizers import STYLES, write_tokenizer
from rmas_jax.models import load_tokenizer
from rmas_jax.prompts import (
    PromptError,
    load_chat_template,
    render_chat,
    shipped_chat_templates,
    turn_end,
    turn_starts,
)

PLAIN = "You help.\n\nUser:\nHi.\n\nAssistant:\n"


@pytest.fixture(scope="module")
def plain():
    return load_chat_template("plain", option="option")


@pytest.fixture(params=STYLES)
def folder(request, tmp_path):
    write_tokenizer(request.param, ["User: Assistant: You help. Hi."], tmp_path, seed=0)
    return tmp_path


def test_plain_turns_are_lines_of_text(folder, plain):
    tokenizer = load_tokenizer(folder, chat_template=plain)
    bos = tokenizer.bos_token or ""
    assert render_chat(tokenizer, "You help.", "Hi.") == bos + PLAIN
    assert render_chat(tokenizer, "", "Hi.") == bos + PLAIN.removeprefix("You help.\n\n")
    own = render_chat(load_tokenizer(folder), "You help.", "Hi.")  # the control
    assert own != bos + PLAIN
    turns = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Yes."}]
    whole = tokenizer.apply_chat_template(turns, tokenize=False)
    assert whole == f"{bos}User:\nHi.\n\nAssistant:\nYes.{tokenizer.eos_token}\n\n"


def test_an_answer_ends_with_the_end_token_or_where_the_next_turn_begins(folder, plain):
    tokenizer = load_tokenizer(folder, chat_template=plain)
    ends = (tokenizer.eos_token_id,)
    assert turn_end(tokenizer, ends) == ends[0]
    assert turn_starts(tokenizer, ends) == ("\nUser:",)
    assert turn_starts(load_tokenizer(folder), ends) == ()  # its own begins turns with markers


@pytest.mark.parametrize("template", [shapes.CHATML, shapes.R1_DISTILL])
def test_templates_with_markers_have_no_string_that_begins_a_turn(tmp_path, template):
    markers = [*shapes.SPECIAL["r1"], *shapes.SPECIAL["qwen"]]
    inner = shapes.byte_level([*markers, *((text, False) for text in shapes.PLAIN["r1"])])
    folder = shapes.write(tmp_path, inner, template, eos_token="<|im_end|>")
    tokenizer = load_tokenizer(folder)
    assert turn_starts(tokenizer, (tokenizer.eos_token_id,)) == ()


def test_a_template_that_renders_no_second_turn_has_no_such_string(folder):
    first = (
        "{{ messages[0].content }}{% if messages[1] %} then {{ messages[1].content }}!{% endif %}"
    )
    assert turn_starts(load_tokenizer(folder, chat_template=first), ()) == ()
    both = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"  # the control
    assert turn_starts(load_tokenizer(folder, chat_template=both), ()) == ("\n[user]",)


def test_a_template_is_a_name_or_a_file(tmp_path):
    assert [*shipped_chat_templates()] == ["plain"]
    file = tmp_path / "mine.jinja"
    file.write_text("{{ messages[0].content }}")
    assert load_chat_template(str(file), option="option") == "{{ messages[0].content }}"
    for name, words in (("plane", "one of plain, got 'plane'"), (str(tmp_path), "regular file")):
        with pytest.raises(PromptError, match=words):
            load_chat_template(name, option="system.chat_templates.solver")
    file.write_text(" ")
    with pytest.raises(PromptError, match=r"option: .*mine.jinja must be a chat template, got an"):
        load_chat_template(str(file), option="option")
