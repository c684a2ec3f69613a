"""The programs that write answers; they may come from a file, see `planning.executables`."""

from __future__ import annotations

import jax
import numpy as np

from rmas_jax.agents import pool
from rmas_jax.agents.answers import Piece, stops_of, write_jitted
from rmas_jax.agents.member import Member
from rmas_jax.agents.reading import PromptInput
from rmas_jax.evaluation.answering import Answering
from rmas_jax.planning.executables import ahead_of_time
from rmas_jax.sharding import to_host

SETTINGS = ("end_tokens", "max_tokens", "sampling")  # static arguments
read_prompts = ahead_of_time(pool.read_prompts)
begin = ahead_of_time(pool.begin, static=SETTINGS)
fill = ahead_of_time(pool.fill, static=("decoder",))
run = ahead_of_time(pool.run, static=SETTINGS)
_write = ahead_of_time(write_jitted, static=SETTINGS)


def write_first(
    member: Member,
    prompt: PromptInput,
    how: Answering,
    *,
    keys: jax.Array | None,
) -> Piece:
    """The texts of B prompts up to their first tool call or end, as `write_texts` takes them."""
    state = _write(
        member.agent,
        prompt,
        end_tokens=member.end_tokens,
        max_tokens=how.max_tokens,
        sampling=how.sampling,
        keys=keys,
        limits=np.full(prompt.ids.shape[0], how.max_tokens, np.int32),
        stops=stops_of(member, how.toolbox),
    )
    return Piece(*to_host((state.tokens, state.lengths, state.finite)))
