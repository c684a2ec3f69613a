"""Agents that exchange texts: Recursive-TextMAS, with the agents, prompts and rounds of the latent
system and decoded text on its edges, and other schedules.

    planner writes --> text --> critic's tokens in its slot --> critic writes --> ...

Between two agents the text leaves the device, because it changes vocabulary. The rest is as in
`recursion`: prefixes are read once per item, slots have the same places, and a program is compiled
once per role and length for all rounds.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from rmas_jax.agents.answers import write_texts
from rmas_jax.agents.member import Member
from rmas_jax.agents.reading import PromptInput, read_prefix
from rmas_jax.agents.sampling import GREEDY
from rmas_jax.host.generators import result_of
from rmas_jax.models import Cache
from rmas_jax.models.generation import SamplingConfig
from rmas_jax.models.plain_text import encode_plain
from rmas_jax.models.tokenizer import Tokenizer
from rmas_jax.prompts import FIRST, LATER, StagePrompt, left_pad
from rmas_jax.rounds.schedules import Schedule, TextStage, recursion
from rmas_jax.sharding import put_batch
from rmas_jax.topology import Topology


class Message(NamedTuple):
    """One agent's messages at one stage, and their cost."""

    round: int  # from 0; of drafts, their number
    role: str
    texts: list[str]  # B, without special tokens and outer whitespace
    tokens: np.ndarray  # [B] int32 tokens written, each a model step; the end token included
    seconds: float  # of the whole batch, host work included
    flops: np.ndarray  # [B] of the body and the text; `budget.prefix_flops` has the prefixes


_read_prefix = jax.jit(read_prefix)
stage_keys = jax.jit(jax.vmap(jax.random.fold_in, (0, None)))  # [B] keys of the n-th stage


def fill_slots(
    tokenizer: Tokenizer, prompt: StagePrompt, kind: int, messages: Mapping[str, Sequence[str]]
) -> tuple[np.ndarray, np.ndarray]:
    """Puts texts into a body's slots, each row padded on the left to the slot's width.

        l l | z z z z | s s      ->      l l | . m m m | s s

    Args:
      tokenizer: the reader's.
      prompt: B rows, with room for W tokens per slot; longer messages are cut at their end.
      kind: of the round, FIRST or LATER.
      messages: sender -> B texts; an empty one leaves its slot empty.

    Returns:
      ids [B, T] int32 and valid [B, T] bool.
    """
    ids, valid = prompt.body_ids[:, kind].copy(), prompt.body_valid[:, kind].copy()
    slots = np.flatnonzero(np.asarray(prompt.slot_index) >= 0)
    for at, sender in zip(np.split(slots, len(prompt.senders) or 1), prompt.senders, strict=False):
        rows = encode_plain(tokenizer, messages[sender])
        ids[:, at], message_valid = left_pad([row[: at.size] for row in rows], at.size)
        valid[:, at] &= message_valid  # a slot that this kind of round lacks stays invalid
    return ids, valid


def _prefix(member: Member, prompt: StagePrompt, mesh: Mesh | None) -> Cache:
    return _read_prefix(member.agent, *put_batch((prompt.prefix_ids, prompt.prefix_valid), mesh))


def read_messages(
    member: Member,
    prompt: StagePrompt,
    prefix: Cache,
    *,
    kind: int,
    messages: Mapping[str, Sequence[str]],
    mesh: Mesh | None = None,
) -> PromptInput:
    """A prompt of a FIRST or LATER round with messages (sender -> B texts) in its slots."""
    ids, valid = fill_slots(member.tokenizer, prompt, kind, messages)
    nothing = np.zeros((len(ids), 0, member.agent.width), np.float32)  # the slots hold tokens
    body: tuple[jax.Array, jax.Array, jax.Array] = put_batch((ids, valid, nothing), mesh)
    return PromptInput(prefix, *body, (-1,) * ids.shape[1])


def read_alone(
    member: Member,
    prompt: StagePrompt,
    *,
    kind: int = FIRST,
    prefix: Cache | None = None,
    mesh: Mesh | None = None,
) -> PromptInput:
    """The input of an agent alone: its prompt of a FIRST or LATER round with empty slots.

    `prefix` is the cache of its prefix; None: it is read here.
    """
    prefix = prefix or _prefix(member, prompt, mesh)
    nothing = {sender: [""] * len(prompt.body_ids) for sender in prompt.senders}
    return read_messages(member, prompt, prefix, kind=kind, messages=nothing, mesh=mesh)


def listen(
    topology: Topology,
    members: Mapping[str, Member],
    prompts: Mapping[str, StagePrompt],
    *,
    rounds: int,
    max_tokens: int,
    schedule: Schedule = recursion,
    sampling: SamplingConfig = GREEDY,
    keys: jax.Array | None = None,
    prefixes: Mapping[str, Cache] | None = None,
    written: Sequence[Message] = (),
    is_shuffled: bool = False,
    mesh: Mesh | None = None,
) -> tuple[PromptInput, list[Message]]:
    """All of `write_messages` at once: the input of the agent that answers, and the messages."""
    messages = list(written)
    writing = write_messages(
        topology,
        members,
        prompts,
        rounds=rounds,
        max_tokens=max_tokens,
        schedule=schedule,
        sampling=sampling,
        keys=keys,
        prefixes=prefixes,
        written=written,
        is_shuffled=is_shuffled,
        mesh=mesh,
    )
    return result_of(writing, into=messages), messages


def write_messages(
    topology: Topology,
    members: Mapping[str, Member],
    prompts: Mapping[str, StagePrompt],
    *,
    rounds: int,
    max_tokens: int,
    limits: np.ndarray | None = None,
    schedule: Schedule = recursion,
    sampling: SamplingConfig = GREEDY,
    keys: jax.Array | None = None,
    prefixes: Mapping[str, Cache] | None = None,
    written: Sequence[Message] = (),
    is_shuffled: bool = False,
    mesh: Mesh | None = None,
) -> Generator[Message, None, PromptInput]:
    """Yields the texts of a schedule as they are written, and returns the answerer's input.

    Do not jit: texts change vocabulary on the host. Rollouts share messages as they share latents.

    Args:
      topology: edges and order of the roles.
      members: by role.
      prompts: by role, batch B, as numpy arrays, laid out with W positions per slot.
      rounds: R, at least 1.
      max_tokens: maximum tokens of a message; M of them take as many model steps as M thoughts.
      limits: [B] the same for each item, at most `max_tokens`.
      schedule: who writes when; the default is Recursive-TextMAS.
      sampling: sampling rules of messages.
      keys: [B] PRNG keys; needed for sampling.
      prefixes: role -> cache of its prefix; None: they are read here.
      written: the first messages, such as those of fewer rounds, which are written already.
      is_shuffled: a null control: every reader gets the texts of the previous item in the batch.
      mesh: the agents' devices; splits the batch.

    Raises:
      ValueError: fewer than one round, or messages of less than one token.
      NonFiniteError: logits of an agent are NaN or infinite.
    """
    if rounds < 1 or max_tokens < 1:
        raise ValueError(
            f"rounds and max_tokens of a message must be at least 1, got {rounds} and {max_tokens}"
        )
    stages = schedule(topology, rounds)
    if prefixes is None:
        roles = dict.fromkeys(stage.role for stage in stages)
        prefixes = {role: _prefix(members[role], prompts[role], mesh) for role in roles}
    messages = list(written)

    def sent(texts: list[str]) -> list[str]:
        return texts[-1:] + texts[:-1] if is_shuffled else texts

    def read(stage: TextStage) -> PromptInput:
        """The prompt of a stage, with the texts that it reads; other slots are empty."""
        prompt = prompts[stage.role]
        texts = dict.fromkeys(prompt.senders, [""] * len(prompt.body_ids))
        texts |= {sender: sent(messages[i].texts) for sender, i in stage.reads.items()}
        member, prefix = members[stage.role], prefixes[stage.role]
        return read_messages(member, prompt, prefix, kind=stage.kind, messages=texts, mesh=mesh)

    for stage in stages[len(messages) : -1]:
        started = time.perf_counter()
        texts = write_texts(
            members[stage.role],
            read(stage),
            max_tokens=max_tokens,
            limits=limits,
            sampling=sampling,
            keys=None if keys is None else stage_keys(keys, len(messages)),
            stage=f"round {stage.round + 1}: message",
        )
        seconds = time.perf_counter() - started
        messages.append(
            Message(stage.round, stage.role, texts.texts, texts.tokens, seconds, texts.flops)
        )
        yield messages[-1]
    return read(stages[-1])


def refine(
    member: Member,
    prompt: StagePrompt,
    *,
    budget: int,
    max_tokens: int,
    prefix: Cache | None = None,
    mesh: Mesh | None = None,
) -> tuple[PromptInput, list[Message]]:
    """Drafts of an agent, each from the one before, up to its input for the answer.

    Every item writes drafts until it has taken `budget` steps, independently of its batch. The
    budget ends in the middle of a draft: what is written of it is read only if it is the first,
    since a fragment is no better draft than the whole one before it.

    Args:
      member: the agent; drafts are greedy.
      prompt: batch B, with a slot of W positions for its own text.
      budget: sequential steps before the answer; 0 leaves the agent alone with the question.
      max_tokens: maximum tokens of a draft.
      prefix: the cache of the prompt's prefix; None: it is read here.
      mesh: the agent's devices; splits the batch.

    Raises:
      NonFiniteError: logits of the agent are NaN or infinite.
    """
    prefix = prefix or _prefix(member, prompt, mesh)
    drafts = [""] * len(prompt.body_ids)
    left = np.full(len(drafts), budget)
    messages: list[Message] = []

    def read() -> PromptInput:
        texts = dict.fromkeys(prompt.senders, drafts)
        kind = LATER if messages else FIRST
        return read_messages(member, prompt, prefix, kind=kind, messages=texts, mesh=mesh)

    while left.any():
        started = time.perf_counter()
        written = write_texts(
            member,
            read(),
            max_tokens=max_tokens,
            limits=np.minimum(left, max_tokens),
            stage=f"draft {len(messages) + 1}",
        )
        seconds = time.perf_counter() - started
        cut = written.at_limit & (written.tokens < max_tokens)  # by the budget
        is_draft = (written.tokens > 0) & (~cut | (left == budget))
        drafts = [
            new if is_newer else old
            for new, old, is_newer in zip(written.texts, drafts, is_draft, strict=True)
        ]
        left -= written.tokens
        messages.append(
            Message(
                len(messages),
                member.role,
                written.texts,
                written.tokens,
                seconds,
                np.where(written.tokens > 0, written.flops, 0.0),  # other rows read nothing
            )
        )
    return read(), messages
