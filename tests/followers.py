"""An agent whose next token follows from the last one, by a table; the row's key draws the first.

It is a real decoder, whose weights hold the table.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from systems import CONFIGS, random_params

from experiments.embedded.make_tokenizers import write_tokenizer
from rmas_jax.agents.agent import Agent
from rmas_jax.agents.answers import write_texts
from rmas_jax.agents.member import Member
from rmas_jax.agents.reading import PromptInput, read_prefix
from rmas_jax.models import Decoder, load_tokenizer
from rmas_jax.models.generation import SamplingConfig
from rmas_jax.prompts import RolePrompt, left_pad
from rmas_jax.tools import SearchResult

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
MAX_TOKENS = 8
PASSAGE = "ends at the red gate <|eot_id|>"


class Library:
    """A search provider that knows one thing."""

    def search(self, query: str) -> list[SearchResult]:
        return [SearchResult(query, "library:1", PASSAGE)]


class Follower:
    """A member of a team whose agent follows a table, from a draw after the end of a prompt."""

    def __init__(self, folder, follows, more=(), special=(), end="ask"):
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
        scores[self.token(end), [self.token(start) for start in STARTS]] = 1e3
        params |= {
            "embedding": jnp.eye(size),
            "final_norm": {"weight": jnp.ones(size)},
            "unembed_kernel": jnp.asarray(scores).T,
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
