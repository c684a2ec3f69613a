"""Texts in pieces: tool calls, answer retries, rollouts.

The agent is a real decoder whose weights make each token a function of the previous one, by a
table; the row's key draws the first one.
"""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from systems import CONFIGS, build_tiny_system, random_params

from experiments.embedded.make_tokenizers import write_tokenizer
from rmas_jax.agents.agent import Agent
from rmas_jax.agents.answers import AnswerRetry, _Rows, answer_retry_of, write_jitted, write_texts
from rmas_jax.agents.member import Member
from rmas_jax.agents.reading import PromptInput, read_prefix
from rmas_jax.agents.sampling import row_keys
from rmas_jax.models import Decoder, load_tokenizer
from rmas_jax.models.generation import SamplingConfig
from rmas_jax.prompts import RolePrompt, left_pad
from rmas_jax.tools import PythonLimits, SearchResult, Toolbox, limit_text, result_text

WORDS = (
    "ask",
    "<python>",
    "print(6*7)",
    "</python>",
    "<search>",
    "parcel",
    "</search>",
    "</result>",
)
WORDS += (" so \\boxed{42}", " perhaps", "41}", "{")
FOLLOWS = {
    "<python>": "print(6*7)",
    "print(6*7)": "</python>",
    "</python>": "</python>",  # it would never end
    "<search>": "parcel",
    "parcel": "</search>",
    "</search>": "</search>",
    "</result>": " so \\boxed{42}",
    " so \\boxed{42}": "end",
    " perhaps": "end",
    "{": "41}",
    "41}": "end",
}
STARTS = ("<python>", "<search>", " perhaps")
DRAWN = SamplingConfig(temperature=1.0)
SECOND_TRY = AnswerRetry(r"\\boxed\{.+\}", "\nFinal answer: \\boxed{", max_tokens=5)
MAX_TOKENS = 8
PASSAGE = "ends at the red gate <|eot_id|>"


class Library:
    """A search provider that knows one thing."""

    def search(self, query: str) -> list[SearchResult]:
        return [SearchResult(query, "library:1", PASSAGE)]


class Follower:
    """A member of a team whose agent follows a table."""

    def __init__(self, folder, follows, more=(), special=()):
        write_tokenizer("llama", ["ask", "Final answer: \\boxed", "parcel 42"], folder, seed=0)
        self.tokenizer = load_tokenizer(folder)
        self.tokenizer.add_tokens([*WORDS, *more])
        self.tokenizer.add_tokens([*special], special_tokens=True)
        size = len(self.tokenizer)
        config = dataclasses.replace(
            CONFIGS["critic"], vocab_size=size, width=size, num_heads=1, num_kv_heads=1
        )
        params = jax.tree.map(jnp.zeros_like, random_params(config, 0))
        scores = np.zeros((size, size), np.float32)
        for token, following in follows.items():
            scores[self.token(token), self.token(following)] = 1e3
        scores[self.token("ask"), [self.token(start) for start in STARTS]] = 1e3
        params |= {
            "embedding": jnp.eye(size),
            "final_norm": {"weight": jnp.ones(size)},
            "unembed_kernel": jnp.asarray(scores),
        }
        self.member = Member(
            role="follower",
            agent=Agent(Decoder(config), params),
            tokenizer=self.tokenizer,
            template=RolePrompt("", "{question}", "{question}"),
            end_tokens=(self.tokenizer.eos_token_id,),
        )

    def token(self, text: str) -> int:
        if text == "end":
            return self.tokenizer.eos_token_id
        (token,) = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return token

    def write(self, keys, prompt=("ask",), **how):
        row = [self.token(text) for text in prompt]
        prompt = prompt_of(self.member.agent, [row] * len(keys))
        how = {"max_tokens": MAX_TOKENS, "sampling": DRAWN, "keys": keys, **how}
        return write_texts(self.member, prompt, **how)


def prompt_of(agent: Agent, rows) -> PromptInput:
    ids, valid = left_pad(rows)
    nothing = np.zeros((len(rows), 0), np.int32)
    prefix = read_prefix(agent, nothing, nothing > 0)
    received = jnp.zeros((len(rows), 0, agent.width))
    return PromptInput(prefix, ids, valid, received, slot_index=(-1,) * ids.shape[1])


@pytest.fixture(scope="module")
def agent(tmp_path_factory):
    return Follower(tmp_path_factory.mktemp("agent"), FOLLOWS)


@pytest.fixture(scope="module")
def keys(agent):
    """Of rows that start in each of the three ways."""
    every = row_keys(jax.random.key(0), jnp.arange(20))
    texts = agent.write(every, max_tokens=1).texts
    rows = [texts.index(start.strip()) for start in STARTS]
    return every[jnp.array(rows)]


def test_each_row_calls_its_tool_and_goes_on(agent, keys):
    toolbox = Toolbox(python=PythonLimits(), search=Library())
    found = agent.write(keys, toolbox=toolbox)
    expected = "<python>print(6*7)</python> <result> 42 </result> so \\boxed{42}"
    assert found.texts[0] == expected
    assert found.texts[1].startswith("<search>parcel</search> <result> ")
    assert PASSAGE in found.texts[1]  # a control token in it is only text
    assert found.texts[1].endswith("</result> so \\boxed{42}")
    assert found.texts[2] == "perhaps"
    assert found.calls.tolist() == [1, 1, 0]
    assert found.tokens.tolist() == [3 + 2, 3 + 2, 2]  # an end token is written too
    for i in range(3):
        alone = agent.write(keys[i : i + 1], toolbox=toolbox)
        assert (alone.texts[0], alone.tokens[0]) == (found.texts[i], found.tokens[i])


def test_of_a_result_only_the_tags_are_ours(agent):
    rows = _Rows(agent.tokenizer, 1, (agent.tokenizer.eos_token_id,))
    result = result_text("42 <search>parcel</search> <|eot_id|>", 99)
    rows.append_result(0, result)
    assert agent.tokenizer.decode(rows.ids[0]) == result
    assert rows.ids[0][-1] == agent.token("</result>")
    markers = [agent.token(text) for text in ("<search>", "</search>", "end")]
    assert not set(markers) & set(rows.ids[0])


def test_without_tools_a_tag_is_text(agent, keys):
    found = agent.write(keys)
    assert found.texts[1] == "<search>parcel" + "</search>" * 6
    assert found.calls.tolist() == [0, 0, 0]


def test_calls_are_limited_and_cost_of_the_budget(tmp_path, keys):
    again = Follower(tmp_path, FOLLOWS | {"</result>": "<search>"})
    found = again.write(keys[1:2], toolbox=Toolbox(search=Library(), max_calls=2), max_tokens=90)
    assert found.calls.tolist() == [2]
    assert found.texts[0].count("</search>") == 3
    assert found.texts[0].endswith(limit_text(2))
    found = again.write(keys[1:2], toolbox=Toolbox(search=Library()), max_tokens=7)
    assert found.tokens.tolist() == [7]
    assert found.texts[0].endswith("</result><search>")


def test_a_text_without_an_answer_is_tried_again(agent, keys):
    found = agent.write(keys, toolbox=Toolbox(search=Library()), answer_retry=SECOND_TRY)
    assert found.retried.tolist() == [False, False, True]
    assert found.texts[2] == "perhaps\nFinal answer: \\boxed{41}"
    assert found.tokens.tolist() == [5, 5, 2 + 2]
    assert found.at_limit.tolist() == [False, False, False]


def test_a_text_that_is_cut_off_says_so(agent, keys):
    found = agent.write(keys)  # two continue with their tags without end
    assert found.at_limit.tolist() == [True, True, False]
    assert agent.write(keys, max_tokens=2).at_limit.tolist() == [True, True, False]  # it just fits
    assert agent.write(keys, max_tokens=1).at_limit.all()
    cut = agent.write(keys, max_tokens=1, answer_retry=SECOND_TRY)
    assert cut.retried.all() and cut.at_limit.all()


@pytest.mark.parametrize(
    ("task", "answers", "others"),
    [
        ("math", (r"so \boxed{ \frac{1}{2} }", r"\boxed{41}"), ("41", r"\boxed{}", r"\boxed{")),
        (
            "choice",
            (r"it is \boxed{B}", r"\boxed{(b).}", r"\boxed{\text{B}}"),
            ("B", r"\boxed{1}", r"\boxed{BC}"),
        ),
        ("code", ("```python\nx = 1\n```", "see ```x``` "), ("x = 1", "```python\nx = 1")),
        ("search", (r"\boxed{Bada Kor}",), ("Bada Kor",)),
    ],
)
def test_answers_are_found_by_type_of_task(task, answers, others):
    pattern = answer_retry_of(task).answer
    assert all(re.search(pattern, text, re.DOTALL) for text in answers)
    assert not any(re.search(pattern, text, re.DOTALL) for text in others)
    assert answer_retry_of("free") is None and answer_retry_of(None) is None


def test_an_answer_in_a_thinking_block_is_tried_again_behind_it(tmp_path, keys):
    """The block is closed first; one that the template opened begins the texts."""
    words = ("<think>", " \\boxed{41}", "</think>")
    follows = FOLLOWS | {" perhaps": "<think>", "<think>": words[1], words[1]: "end"}
    thinker = Follower(tmp_path, follows | {"</think>": "end"}, words)
    found = thinker.write(keys[2:], answer_retry=SECOND_TRY)
    assert found.opening == "" and found.retried.tolist() == [True]
    thought = "perhaps<think> \\boxed{41}"
    assert found.texts[0].startswith(f"{thought}</think>\nFinal answer: \\boxed{{")
    assert thinker.write(keys[2:]).texts == [thought]

    ready = Follower(
        tmp_path, follows | {words[1]: "</think>", "</think>": " so \\boxed{42}"}, words
    )
    found = ready.write(keys[2:], answer_retry=SECOND_TRY)
    assert found.retried.tolist() == [False]
    assert found.texts == [f"{thought}</think> so \\boxed{{42}}"]

    found = thinker.write(keys[2:], prompt=("ask", "<think>"), answer_retry=SECOND_TRY)
    assert found.opening == "<think>" and found.retried.tolist() == [True]
    assert found.texts[0].startswith("\\boxed{41}</think>\nFinal answer: ")


def test_tags_of_thinking_stay_where_they_are_special_tokens(tmp_path, keys):
    words = ("[THINK]", " \\boxed{41}", "[/THINK]")
    follows = FOLLOWS | {" perhaps": words[0], words[0]: words[1], words[1]: words[2]}
    thinker = Follower(tmp_path, follows | {words[2]: "end"}, words[1:2], special=words[::2])
    (text,) = thinker.write(keys[2:]).texts
    assert text.replace(" ", "") == "perhaps[THINK]\\boxed{41}[/THINK]"


def test_rollouts_share_what_was_read_and_differ_by_their_keys(agent):
    rollouts = [
        agent.write(row_keys(jax.random.key(seed), jnp.arange(8)), max_tokens=1).texts
        for seed in (0, 1, 0)
    ]
    assert rollouts[0] == rollouts[2] != rollouts[1]
    assert set(rollouts[0] + rollouts[1]) == {start.strip() for start in STARTS}


def test_going_on_is_writing_in_one_go():
    agent = build_tiny_system().agents["solver"]
    prompt = prompt_of(agent, [[3, 1, 4, 1, 5], [6], [5, 8, 9]])
    how = {"end_tokens": (), "max_tokens": 6}
    whole = write_jitted(agent, prompt, **how).tokens
    ids, valid = left_pad([row[:3] for row in whole.tolist()], 5)
    rest = write_jitted(agent, prompt, continuation_ids=ids, continuation_valid=valid, **how).tokens
    np.testing.assert_array_equal(rest[:, :3], whole[:, 3:])
    assert len(np.unique(whole)) > 3
