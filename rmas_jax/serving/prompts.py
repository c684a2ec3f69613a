"""Questions as arrays of a few declared shapes, so that no request needs a program of its own.

    start          prefix          body
    s s s s s s  | . . q q q q q | . l l | z z z z | . s s s     . padding, s shared, q question

The start of a role's prompts, which is the same for all questions, is read once. A block that holds
texts of the question has a width of the settings, one for all roles; the others fit what they hold.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import operator
import threading
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from rmas_jax.agents.answers import opening_of
from rmas_jax.host.errors import InputError
from rmas_jax.models.tokenizer import Tokenizer
from rmas_jax.prompts import (
    FIRST,
    LATER,
    Question,
    RolePrompt,
    StagePrompt,
    StageTokens,
    TokenRows,
    declared_width,
    stage_tokens,
)
from rmas_jax.prompts.columns import texts_of
from rmas_jax.serving.requests import RequestError
from rmas_jax.team import Team

PROBES = ("a", "Why is 7 x 8 = 56, and not 54?")  # texts that share neither start nor end
# Tokens by which a block outside the question may grow, as tokens may join across its border.
SPARE = 4
# Characters of a text that may become one of its normal form, as a tokenizer sees it.
NORMALISED = 4


class Asked(NamedTuple):
    """A question for all roles: a batch of one row."""

    width: int  # of the blocks that hold texts of the question
    prompts: Mapping[str, StagePrompt]  # by role, without their starts
    has_start: Mapping[str, bool]  # by role; False: the prompt begins in another way, see `prompts`
    openings: tuple[str, str]  # of the answer, after FIRST and LATER prompts, see `opening_of`
    once: int  # tokens that all roles read once
    by_kind: tuple[int, int]  # and in each FIRST and LATER round

    def tokens(self, rounds: int) -> int:
        """Prompt tokens that all agents read in so many rounds, without slots."""
        return self.once + self.by_kind[FIRST] + (rounds - 1) * self.by_kind[LATER]


@dataclasses.dataclass(frozen=True)
class _RoleLayout:
    """What the prompts of a role have in common."""

    start: tuple[int, ...]  # tokens
    widths: tuple[int | None, ...]  # of the prefix and of each block; None: one of the settings


class Layout:
    """Encodes the questions of a team; safe to use in any thread."""

    def __init__(self, team: Team, widths: Sequence[int], *, shares_starts: bool = True):
        """Takes the declared widths, ascending; without shared starts, prefixes are whole."""
        self.widths = tuple(widths)
        self._answerer = team.system.topology.answerer
        # A tokenizer serves one thread at a time: these are not those of the thread that writes.
        self._lock = threading.Lock()
        self._tokenizers: dict[str, Tokenizer] = {
            role: copy.deepcopy(member.tokenizer) for role, member in team.members.items()
        }
        self._templates = {role: member.template for role, member in team.members.items()}
        self._roles = {
            role: _layout(self._tokenizers[role], template, shares_starts)
            for role, template in self._templates.items()
        }
        longest = max(len(name) for of in self._tokenizers.values() for name in of.get_vocab())
        self._most_characters = NORMALISED * longest * self.widths[-1]

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the texts that a question has beside itself."""
        return tuple(sorted({name for of in self._templates.values() for name in of.columns}))

    @property
    def starts(self) -> dict[str, np.ndarray]:
        """Role -> tokens [1, P] with which its prompts begin; without roles that have none."""
        return {
            role: np.array([layout.start], np.int32)
            for role, layout in self._roles.items()
            if layout.start
        }

    def probe(self) -> Question:
        """A question that is as short as any."""
        return _probe(self.columns, PROBES[0])

    def encode(self, question: Question, *, slot_width: int, width: int | None = None) -> Asked:
        """Encodes a question.

        Args:
          question: any text, or texts by field.
          slot_width: positions of a slot.
          width: one of the declared; None: the least that is enough.

        Raises:
          RequestError: the question is too long, lacks a column, or is no text.
        """
        self._check_characters(question)
        try:
            with self._lock:
                found = {
                    role: stage_tokens(
                        self._tokenizers[role], template, [question], slot_width=slot_width
                    )
                    for role, template in self._templates.items()
                }
        except InputError as error:
            raise RequestError(str(error), "question") from None
        has_start = {role: self._has_start(role, tokens) for role, tokens in found.items()}
        rest = {
            role: _without(tokens, len(self._roles[role].start) if has_start[role] else 0)
            for role, tokens in found.items()
        }
        if width is None:
            width = self._least_width(rest)
        prompts = {
            role: tokens.padded(np.arange(1), self.block_widths(role, width))
            for role, tokens in rest.items()
        }
        return Asked(
            width,
            prompts,
            has_start,
            self._openings(prompts[self._answerer]),
            sum(len(tokens.prefix[0]) for tokens in found.values()),
            (_body_tokens(found, FIRST), _body_tokens(found, LATER)),
        )

    def _check_characters(self, question: Question) -> None:
        """Refuses texts that no number of tokens holds: to encode them would hold up all others."""
        for text in texts_of(question).values():
            if isinstance(text, str) and len(text) > self._most_characters:
                raise RequestError(
                    f"question must have at most {self.widths[-1]:,} tokens, got {len(text):,} "
                    "characters",
                    "question",
                )

    def _openings(self, prompt: StagePrompt) -> tuple[str, str]:
        def of_kind(kind: int) -> str:
            ids, valid = prompt.body_ids[:, kind], prompt.body_valid[:, kind]
            with self._lock:
                return opening_of(self._tokenizers[self._answerer], ids, valid)

        return of_kind(FIRST), of_kind(LATER)

    def block_widths(self, role: str, width: int) -> list[int]:
        """Widths of the prefix and of each block of a role, for questions of this width."""
        return [width if fixed is None else fixed for fixed in self._roles[role].widths]

    def _has_start(self, role: str, tokens: StageTokens) -> bool:
        start = self._roles[role].start
        return tuple(tokens.prefix[0][: len(start)].tolist()) == start

    def _least_width(self, found: Mapping[str, StageTokens]) -> int:
        needed, widest = 0, self.widths[-1]
        for role, tokens in found.items():
            of_role = zip(self._roles[role].widths, tokens.widths(np.arange(1)), strict=True)
            for fixed, count in of_role:
                most = widest if fixed is None else fixed
                if count > most:
                    raise RequestError(
                        f"question must have at most {most:,} tokens in each block of the prompt "
                        f"of {role}, got {count:,}",
                        "question",
                    )
                if fixed is None:
                    needed = max(needed, count)
        return next(width for width in self.widths if width >= needed)


def batch_of(
    asked: Sequence[Asked], size: int
) -> tuple[dict[str, StagePrompt], dict[str, np.ndarray]]:
    """Questions of one width as a batch, filled up with the last: prompts and has_start by role.

    Args:
      asked: at least one.
      size: of the batch.
    """
    filled = [*asked, *[asked[-1]] * (size - len(asked))]
    prompts = {
        role: jax.tree.map(
            lambda *rows: np.concatenate(rows), *(one.prompts[role] for one in filled)
        )
        for role in asked[0].prompts
    }
    has_start = {
        role: np.array([one.has_start[role] for one in filled]) for role in asked[0].prompts
    }
    return prompts, has_start


def _probe(columns: Sequence[str], text: str) -> Question:
    return {"question": text, **dict.fromkeys(columns, text)}


def _layout(tokenizer: Tokenizer, template: RolePrompt, shares_starts: bool) -> _RoleLayout:
    """The layout of a role, from prompts of questions that have nothing in common."""
    questions = [_probe(template.columns, text) for text in PROBES]
    tokens = stage_tokens(tokenizer, template, questions, slot_width=0)
    first, second = (tokens.prefix[i].tolist() for i in range(2))
    shared = sum(itertools.accumulate(map(operator.eq, first, second), operator.and_))
    start = first[: shared if shares_starts else 0]
    rest = _without(tokens, len(start))
    blocks: list[tuple[TokenRows, ...]] = [(rest.prefix,), *rest.blocks]
    return _RoleLayout(tuple(start), tuple(map(_fixed_width, blocks)))


def _fixed_width(of_kinds: tuple[TokenRows, ...]) -> int | None:
    """The width of a block that is alike for all questions; None of others."""
    if any(rows[0].tolist() != rows[1].tolist() for rows in of_kinds):
        return None
    longest = max(int(rows.lengths.max()) for rows in of_kinds)
    return declared_width(longest + SPARE) if longest else 0


def _without(tokens: StageTokens, count: int) -> StageTokens:
    """Prompts without their first tokens."""
    prefix = tokens.prefix
    return tokens.replace(
        prefix=TokenRows.of([prefix[i][count:].tolist() for i in range(len(prefix))])
    )


def _body_tokens(found: Mapping[str, StageTokens], kind: int) -> int:
    return sum(len(block[kind][0]) for tokens in found.values() for block in tokens.blocks)
