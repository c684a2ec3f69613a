"""Role templates to arrays, with tokenizers in the manner of three families."""

from __future__ import annotations

import copy
import os

import numpy as np
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from experiments.embedded.make_tokenizers import STYLES, write_tokenizer
from rmas_jax.models import load_tokenizer
from rmas_jax.models.plain_text import encode_plain
from rmas_jax.prompts import (
    FIELD,
    FIRST,
    LATER,
    PromptError,
    RolePrompt,
    encode_stage,
    left_pad,
    load_prompts,
    render_chat,
    split_template,
    take,
    task_types,
    turn_end,
)
from rmas_jax.topology import load_topology

M = 3
QUESTIONS = ("Who?", "Where does the parcel end, and why?", "")
PROMPTS = {
    "same in both": RolePrompt(
        "You help.", "{question}\nPlan: {a}.\nGo.", "{question}\nPlan: {a}.\nGo."
    ),
    "none in the first": RolePrompt(
        "You help.", "{question}\nGo.", "{question}\nSeen: {a}\nGo on."
    ),
    "slot before question": RolePrompt("", "Solve {question}", "{a} helps with {question} now"),
    "two slots": RolePrompt("You help.", "{question} Go.", "{question} one {b}, other {a} end"),
    "two slots in both": RolePrompt("", "{b}{a}{question}", "{b} {question} {a}"),
    "no slot": RolePrompt("You help.", "{question} Go.", "{question} Go on."),
    "question twice": RolePrompt("", "{question} {question}", "{question} {a} {question}"),
}
# Tokens around fields, so that the vocabulary has whole words.
TEXTS = [*QUESTIONS, "You help. Plan: Go. Seen: Solve helps with now one other end", "Go on."]
MARKERS = ["{question}", "{a}", "{b}", "{planner}", "\ue000a\ue001", "\ue000question\ue001"]
MARKERS += ["\ue000", "\ue001", "{", "}", "{{a}}", "{0}", "%s", "\\1", "\\g<0>", "\n", " "]
nasty_text = st.lists(st.text(max_size=5) | st.sampled_from(MARKERS), max_size=6).map("".join)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """One tokenizer in the manner of each family; Gemma's template refuses a system role."""
    folder = tmp_path_factory.mktemp("tokenizers")
    for seed, family in enumerate(STYLES):
        write_tokenizer(family, TEXTS, folder / family, seed=seed)
    return {family: load_tokenizer(folder / family) for family in STYLES}


def pieces_of(tokenizer, prompt: RolePrompt, template: str, question: str) -> list[list[int]]:
    """Token ids between slots, found by letters that no template and no question here contains."""
    for field, letters in (("{question}", "QQQ"), ("{a}", "ZAZ"), ("{b}", "ZBZ")):
        template = template.replace(field, letters)
    turns = [{"role": "user", "content": template}]
    if "System role" in tokenizer.chat_template and prompt.system:
        turns[0]["content"] = f"{prompt.system}\n\n{template}"
    elif prompt.system:
        turns.insert(0, {"role": "system", "content": prompt.system})
    rendered = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    texts = rendered.replace("ZBZ", "ZAZ").split("ZAZ")
    filled = [question.join(text.split("QQQ")) for text in texts]
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in filled]


def read_back(stage, row: int, kind: int) -> list[list[int]]:
    """Valid tokens of prefix and body, cut at slots; each slot must be whole and in order."""
    pieces = [stage.prefix_ids[row][stage.prefix_valid[row]].tolist()]
    body = zip(
        stage.body_ids[row, kind], stage.body_valid[row, kind], stage.slot_index, strict=True
    )
    seen = []
    for token, valid, slot in body:
        if slot < 0 and valid:
            pieces[-1].append(int(token))
        elif slot >= 0 and valid:
            assert token == 0
            seen.append(slot)
            if slot % M == M - 1:
                pieces.append([])
    assert seen == list(range((len(pieces) - 1) * M))
    return pieces


def assert_is_direct_tokenisation(tokenizer, prompt, questions):
    stage = encode_stage(tokenizer, prompt, questions, slot_width=M)
    for row, question in enumerate(questions):
        for kind, template in ((FIRST, prompt.first), (LATER, prompt.later)):
            expected = pieces_of(tokenizer, prompt, template, question)
            assert read_back(stage, row, kind) == expected
    assert np.all(stage.body_valid[..., -1])  # the last position is always a real token
    return stage


@pytest.mark.parametrize("family", STYLES)
@pytest.mark.parametrize("name", PROMPTS)
def test_prefix_and_body_are_the_tokens_of_the_pieces(tokenizers, family, name):
    stage = assert_is_direct_tokenisation(tokenizers[family], PROMPTS[name], QUESTIONS)
    slots = np.asarray(stage.slot_index)
    np.testing.assert_array_equal(slots[slots >= 0], np.arange(M * len(stage.senders)))
    assert stage.body_ids.shape == stage.body_valid.shape == (len(QUESTIONS), 2, len(slots))
    for array in (stage.prefix_ids, stage.body_ids):
        assert array.dtype == np.int32


@pytest.mark.parametrize("family", STYLES)
def test_special_tokens_in_a_question_are_only_letters(tokenizers, family):
    tokenizer = tokenizers[family]
    end = tokenizer.eos_token
    nasty = f"Who? {end} Where {end}"
    for prompt in PROMPTS.values():
        stage = encode_stage(tokenizer, prompt, [nasty, QUESTIONS[0]], slot_width=M)
        ends = [
            sum((piece.count(tokenizer.eos_token_id)) for piece in read_back(stage, row, LATER))
            for row in (0, 1)
        ]
        assert ends[0] == ends[1]  # those of the template
        row = [token for piece in read_back(stage, 0, LATER) for token in piece]
        assert nasty in tokenizer.decode(row)
        alone = encode_stage(tokenizer, prompt, QUESTIONS[:1], slot_width=M)
        assert read_back(stage, 1, LATER) == read_back(alone, 0, LATER)
    plain = encode_plain(tokenizer, [end, "Who?"])
    assert tokenizer.eos_token_id not in plain[0] and tokenizer.decode(plain[0]) == end
    assert plain[1] == tokenizer("Who?", add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("family", STYLES)
def test_an_answer_ends_in_what_the_chat_template_puts_behind_it(tokenizers, family):
    tokenizer = copy.deepcopy(tokenizers[family])
    end, other = tokenizer.eos_token_id, tokenizer("Go", add_special_tokens=False)["input_ids"][0]
    assert turn_end(tokenizer, (other, end)) == end
    tokenizer.eos_token = "Go"  # as Gemma's, which ends a document
    assert tokenizer.eos_token_id == other
    assert turn_end(tokenizer, (other, end)) == end
    assert turn_end(tokenizer, (other,)) == other  # of those that the model ends with
    tokenizer.eos_token = None
    assert turn_end(tokenizer, (end,)) == end
    with pytest.raises(PromptError, match="must end an answer with an end token"):
        turn_end(tokenizer, (other,))


def test_senders_stand_in_the_order_of_the_slots(tokenizers):
    for name, senders in (("two slots", ("b", "a")), ("no slot", ()), ("same in both", ("a",))):
        stage = encode_stage(tokenizers["qwen3"], PROMPTS[name], QUESTIONS, slot_width=M)
        assert stage.senders == senders


@settings(max_examples=60, deadline=None, database=None, derandomize=True)
@given(question=nasty_text, other=nasty_text)
@example(question="{a} {question}", other="\ue000a\ue001 \ue000question\ue001")
@example(question="\ue000question\ue001", other="{b}{a}")
@example(question="", other="\ue001{a}\ue000")
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_no_question_can_move_a_slot(tokenizers, family, question, other):
    for name in ("none in the first", "two slots", "two slots in both", "question twice"):
        assert_is_direct_tokenisation(tokenizers[family], PROMPTS[name], (question, other))


def test_prefix_is_what_both_forms_begin_with(tokenizers):
    tokenizer, prompt = tokenizers["qwen3"], PROMPTS["none in the first"]
    stage = encode_stage(tokenizer, prompt, QUESTIONS[:1], slot_width=M)
    assert np.all(stage.prefix_valid)
    prefix = tokenizer.decode(stage.prefix_ids[0])
    start = "<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user\nWho?\n"
    assert prefix == start
    # A prefix that could have been longer would be read again in every round.
    firsts = [read_back(stage, 0, kind)[0][stage.prefix_ids.shape[1]] for kind in (FIRST, LATER)]
    assert firsts[0] != firsts[1]


def test_where_both_forms_begin_with_the_slot_the_lead_is_empty(tokenizers):
    stage = encode_stage(tokenizers["llama"], PROMPTS["same in both"], QUESTIONS, slot_width=M)
    assert stage.slot_index[:M] == tuple(range(M))
    np.testing.assert_array_equal(stage.body_ids[:, FIRST], stage.body_ids[:, LATER])


def test_a_form_without_slot_keeps_a_token_to_read(tokenizers):
    """Equal templates without slots share everything but the last token."""
    prompt = RolePrompt("", "{question}", "{question}")
    stage = encode_stage(tokenizers["qwen3"], prompt, QUESTIONS, slot_width=M)
    assert stage.body_ids.shape == (len(QUESTIONS), 2, 1) and np.all(stage.body_valid)


def test_a_slot_that_the_first_form_lacks_is_invalid(tokenizers):
    stage = encode_stage(tokenizers["qwen3"], PROMPTS["none in the first"], QUESTIONS, slot_width=M)
    at_slot = np.asarray(stage.slot_index) >= 0
    assert not np.any(stage.body_valid[:, FIRST, at_slot])
    assert np.all(stage.body_valid[:, LATER, at_slot])


def test_first_form_with_other_slots_is_refused(tokenizers):
    prompt = RolePrompt("", "{question} {a}", "{question} {b} {a}")
    with pytest.raises(PromptError, match=r"\['b', 'a'\], got \['a'\]"):
        encode_stage(tokenizers["qwen3"], prompt, QUESTIONS, slot_width=M)


def test_without_latent_steps_there_are_no_slots(tokenizers):
    stage = encode_stage(tokenizers["qwen3"], PROMPTS["same in both"], QUESTIONS, slot_width=0)
    assert set(stage.slot_index) == {-1}


def test_system_text_has_a_turn_of_its_own_or_opens_the_user_turn(tokenizers):
    rendered = {family: render_chat(t, "You help.", "Hi.") for family, t in tokenizers.items()}
    assert rendered["qwen3"] == (
        "<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user\nHi.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert rendered["gemma3_text"] == (
        "<bos><start_of_turn>user\nYou help.\n\nHi.<end_of_turn>\n<start_of_turn>model\n"
    )
    alone = render_chat(tokenizers["gemma3_text"], "", "Hi.")
    assert alone == "<bos><start_of_turn>user\nHi.<end_of_turn>\n<start_of_turn>model\n"


def test_a_chat_template_that_fails_is_named():
    class Broken:
        name_or_path = "some/model"
        chat_template = (
            "{% if messages | length < 2 %}{{ raise_exception('roles must alternate') }}{% endif %}"
            "{{ raise_exception('no date given') }}"
        )

    with pytest.raises(PromptError, match=r"some/model.*no date given.*roles must alternate"):
        render_chat(Broken(), "You help.", "Hi.")
    with pytest.raises(PromptError, match=r"some/model.*alternate"):
        render_chat(Broken(), "", "Hi.")


def test_pieces_keep_the_question_marked_until_it_is_filled_in(tokenizers):
    prompt = RolePrompt("", "", "x {a} y {question} z {b}")
    pieces = split_template(tokenizers["qwen3"], prompt, prompt.later)
    assert pieces[1::2] == ["a", "b"]
    assert pieces[0].endswith("x ") and pieces[2] == " y \ue000question\ue001 z "


def test_left_pad_puts_pads_on_the_left():
    ids, valid = left_pad([[1, 2, 3], [], [4]], 4)
    np.testing.assert_array_equal(ids, [[0, 1, 2, 3], [0] * 4, [0, 0, 0, 4]])
    np.testing.assert_array_equal(valid, [[0, 1, 1, 1], [0] * 4, [0, 0, 0, 1]])
    assert left_pad([[], []])[0].shape == (2, 0)


def test_taken_rows_are_those_rows(tokenizers):
    stage = encode_stage(tokenizers["qwen3"], PROMPTS["two slots"], QUESTIONS, slot_width=M)
    taken = take({"role": stage}, np.array([2, 0]))["role"]
    np.testing.assert_array_equal(taken.body_ids, stage.body_ids[[2, 0]])
    np.testing.assert_array_equal(taken.prefix_valid, stage.prefix_valid[[2, 0]])
    assert taken.slot_index == stage.slot_index


EDGES = (("a", "b"), ("b", "a"))
GOOD = {
    "a": {"system": "You plan.", "first": "{question}", "later": "{question} {b}"},
    "b": {"first": "{question} {a}"},
}


def write(path, content) -> str:
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return str(path)


def test_shipped_prompts_fit_the_sequential_loop(tokenizers):
    prompts = load_prompts("relay", load_topology("sequential").edges)
    assert set(prompts) == set(load_topology("sequential").order)
    stage = encode_stage(tokenizers["gemma3_text"], prompts["planner"], QUESTIONS, slot_width=M)
    assert stage.senders == ("solver",)
    assert prompts["critic"].later == prompts["critic"].first


@pytest.mark.parametrize("task_type", ["math", "choice", "code", "search", "free"])
@pytest.mark.parametrize("name", ["sequential", "mixture", "distillation", "deliberation"])
def test_every_pattern_has_prompts_for_every_task_type(name, task_type):
    topology = load_topology(name)
    prompts = load_prompts(name, topology.edges, task_type)
    assert set(prompts) == set(topology.order)
    for role, prompt in prompts.items():
        fields = set(FIELD.findall(prompt.later))
        assert fields == {"question", *topology.senders(role)}
        assert task_types()[task_type]["problem"] in prompt.first
    assert task_types()[task_type]["finish"] in prompts[topology.answerer].later


def test_a_field_of_task_types_needs_one(tmp_path):
    edges = load_topology("distillation").edges
    with pytest.raises(
        PromptError, match=r"expert: task_type must be .* for \['plan', 'problem'\], got none"
    ):
        load_prompts("distillation", edges)
    with pytest.raises(PromptError, match=r"task_type must be one of .*'math'.*, got 'maths'"):
        load_prompts("distillation", edges, "maths")
    # A role may have the name of such a field, which is then its slot.
    file = write(tmp_path / "mine.yaml", {"plan": GOOD["a"], "b": {"first": "{question} {plan}"}})
    edges = (("b", "plan"), ("plan", "b"))
    assert load_prompts(file, edges, "math")["b"].first == "{question} {plan}"


def test_prompts_come_from_a_path_of_the_user(tmp_path):
    prompts = load_prompts(write(tmp_path / "mine.yaml", GOOD), EDGES)
    assert prompts == {
        "a": RolePrompt("You plan.", "{question}", "{question} {b}"),
        "b": RolePrompt("", "{question} {a}", "{question} {a}"),
    }


def test_a_template_may_have_a_column_in_place_of_the_question(tmp_path):
    content = changed("a", first="{known} go", later="{known} {b}")
    prompts = load_prompts(write(tmp_path / "mine.yaml", content), EDGES)
    assert prompts["a"] == RolePrompt("You plan.", "{known} go", "{known} {b}", ("known",))


def changed(role, **fields) -> dict:
    entry = {**GOOD[role], **fields}
    return GOOD | {role: {key: value for key, value in entry.items() if value is not None}}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"a": GOOD["a"]}, ["must have the roles a, b, got ['a']"]),
        ("just text", ["must have the roles a, b, got 'just text'"]),
        ("a: [", ["must be YAML"]),
        (changed("b", first=None), ["b must have a text first, ", "got {"]),
        (changed("b", frist="x"), ["b must have a text first, ", "'frist': 'x'"]),
        (changed("b", first="{question}"), ["b must have ['a'], got '{question}'"]),
        (changed("a", later="{question}"), ["a must have ['b'], got '{question}'"]),
        (
            changed("a", first="Go."),
            ["a must have {question} or a column of the data, got 'Go.'"],
        ),
        (
            changed("a", later="{b}"),
            ["a must have {question} or a column of the data, got '{b}'"],
        ),
        (
            changed("b", first="{a} {b}"),
            ["b must have {question} or a column of the data, got '{a} {b}'"],
        ),
        (
            changed("b", first="{question} {a} {b}"),
            ["b must have slots of", "['a'] only, got ['b']"],
        ),
        (
            changed("b", first="{question} {a} {answer}"),
            ["b must have columns other than the gold {answer}"],
        ),
        (GOOD | {"b": "text"}, ["b must have a text first, ", "got 'text'"]),
        (GOOD | {"b": None}, ["b must have a text first, ", "got None"]),
        (changed("b", first=3), ["b must have a text first, ", "got {'first': 3}"]),
    ],
)
def test_a_bad_file_is_named_with_role_and_field(tmp_path, content, words):
    path = write(tmp_path / "mine.yaml", content)
    with pytest.raises(PromptError) as error:
        load_prompts(path, EDGES)
    for word in [path, *words]:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('a: {first: "{question} \\ud800"}\nb: {first: x}', "without lone surrogates"),
        ('a: {first: "{question} \\ue001"}\nb: {first: x}', "private characters U+E000 to U+E003"),
        ("a: " + "[" * 5000, "too deep nesting"),
        ("a: \x00", "must be YAML"),
        ("a: {first: " + "1" * 6000 + "}\nb: {first: x}", "4300 digits"),
        ("a: {first: 2026-13-45}\nb: {first: x}", "must have {question} or a column of the data"),
    ],
)
def test_texts_that_no_prompt_can_hold_are_named(tmp_path, text, words):
    path = write(tmp_path / "mine.yaml", text)
    with pytest.raises(PromptError) as error:
        load_prompts(path, EDGES)
    assert path in str(error.value) and words in str(error.value)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("name", ["/dev/zero", "/dev", "folder", "pipe"])
def test_a_path_that_is_no_file_is_refused(tmp_path, name):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(PromptError, match="must be a regular file"):
        load_prompts(str(tmp_path / name), EDGES)  # an absolute name stays as it is


@pytest.mark.parametrize(
    "name",
    [
        "nowhere",
        "nowhere.yaml",
        "/tmp/no/such/file.yaml",
        "task_types",
        "../relay",
        "a\0b",
        "\udcff",
    ],
)
def test_an_unknown_file_is_answered_with_what_is_shipped(name):
    with pytest.raises(PromptError) as error:
        load_prompts(name, EDGES)
    assert repr(name) in str(error.value) and "'relay'" in str(error.value)


def test_a_file_that_is_not_utf8_is_named(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes("a: é".encode("latin-1"))
    with pytest.raises(PromptError) as error:
        load_prompts(str(path), EDGES)
    assert str(error.value).startswith(f"{path}: must be text in UTF-8")
