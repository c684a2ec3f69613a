"""Split evidence: questions in natural language that need facts of two roles.

Facts form chains. Persons are in places, places have keepers (persons), and the last place of a
chain has a code, which is the answer:

    hop          1          2           3          4
    Anna    ->  kitchen ->  Carl    ->  office ->  418
    holder   planner     solver      planner    solver

The planner holds who is where, the solver who keeps which place, and the codes. So a planner sends
a place, as its sentence has it ("the kitchen"), a solver sends the keeper of that place (a person)
or its code, and every round covers two hops. With an odd number of hops a chain begins at a place,
which the planner passes on in the first round. An item has several chains of the same length, all
entities distinct; the question follows one of them. A place has either a keeper or a code: a role
looks up what it receives, and need not count rounds.

Items are functions of the seed, the split, their number and the dials, in any order and process.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any, NamedTuple

import numpy as np
import yaml

from rmas_jax.config import DataConfig, EvidenceConfig
from rmas_jax.data.examples import Example
from rmas_jax.data.rows import BadRow

WORDS = "evidence_words.yaml"
VERSION = "1.2.0"  # of the items: words, sentences and draws
PLANNER, SOLVER = ROLES = ("planner", "solver")
SPLITS = ("train", "validation", "test")
STREAMS = (None, *ROLES)  # of random numbers: of the team's questions, and of a role's own
COLUMNS = ("evidence_planner", "evidence_solver", "message")  # of examples

# A crossing -> a place in a sentence.
PHRASES = {"words": "the {}", "names": "{}", "numbers": "room {}", "codes": "{}"}
IS_IN = "{} is in {}."
KEEPER = "The keeper of {} is {}."
CODE = "The code of {} is {}."
LETTERS = "ABCDEFGHJKLMNPRSTUVWXYZ"  # of codes of places


class Fact(NamedTuple):
    """A sentence, and the two entities of it."""

    sentence: str
    subject: str
    found: str


class Item(NamedTuple):
    """Chains of facts, and the sentences of each role."""

    layers: tuple[tuple[str, ...], ...]  # hops + 1 rows, a column per pair; the first is asked
    evidence: Mapping[str, str]  # by role
    # Of the planner's facts in the order of its evidence: a person and its place.
    pairs: tuple[tuple[str, str], ...]

    @property
    def spoken(self) -> tuple[str, ...]:
        """The entities that planner and solver send in turn; the last one is the answer."""
        chain = tuple(layer[0] for layer in self.layers)
        return chain[1:] if len(chain) % 2 else chain

    @property
    def rounds(self) -> int:
        """Rounds up to the answer."""
        return len(self.spoken) // 2


def digest(config: DataConfig, roles: Sequence[str], rounds: int) -> str:
    """Identifies the examples of a configuration, for these roles and rounds."""
    dials = dataclasses.asdict(_dials(config))
    settings = [VERSION, config.seed, dials, list(roles), rounds]
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]


def read(
    config: DataConfig, roles: Sequence[str], rounds: int
) -> tuple[dict[str, list[Example]], Sequence[BadRow]]:
    """All examples by split.

    Args:
      config: of the data.
      roles: of the run; the last one answers, and has the answer as its text unless it is one of
        `ROLES`.
      rounds: number of texts of a role.
    """
    dials = _dials(config)
    splits = {}
    for split in SPLITS:
        numbers = range(_size(dials, split))
        made = (example(dials, config.seed, split, number, rounds) for number in numbers)
        splits[split] = [_with_answerer(one, roles) for one in made]
    return splits, ()


def _dials(config: DataConfig) -> EvidenceConfig:
    assert config.evidence is not None  # a conflict of the configuration otherwise
    return config.evidence


def _size(dials: EvidenceConfig, split: str) -> int:
    return {"train": dials.train, "validation": dials.validation, "test": dials.test}[split]


def _with_answerer(made: Example, roles: Sequence[str]) -> Example:
    """An example with a text of the answerer."""
    own = {role: (made.answer,) for role in roles[-1:]}
    return dataclasses.replace(made, texts=own | dict(made.texts))


def example(dials: EvidenceConfig, seed: int, split: str, index: int, rounds: int) -> Example:
    """One example: a question of the team, or one role's part of it."""
    rng = _generator(dials, seed, split, index)
    item = make_item(dials, rng, split)
    made = Example(
        id=f"{split}:{index}",
        question=question_of(dials, item),
        answer=item.spoken[-1],
        difficulty=dials.hops,
        texts=texts_of(dials, item, max(rounds, item.rounds)),
        fields={f"evidence_{role}": item.evidence[role] for role in ROLES},
    )
    if dials.role is None:
        return made
    return skill_of(made, dials.role, int(rng.integers(item.rounds)))


def skill_of(made: Example, role: str, number: int) -> Example:
    """One role's part of an example in the round of a number, from 0.

    Its evidence, the message that it receives, and its text as the answer.
    """
    answer = made.texts[role][number]
    if role == SOLVER:
        message = made.texts[PLANNER][number]
    else:  # the planner receives the solver's text of the round before
        message = made.texts[SOLVER][number - 1] if number else ""
    column = f"evidence_{role}"
    return dataclasses.replace(
        made,
        answer=answer,
        texts={role: (answer,)},
        fields={column: made.fields[column], "message": message},
    )


def _generator(dials: EvidenceConfig, seed: int, split: str, index: int) -> np.random.Generator:
    """Random numbers of one item."""
    return np.random.default_rng([seed, STREAMS.index(dials.role), SPLITS.index(split), index])


def make_item(dials: EvidenceConfig, rng: np.random.Generator, split: str) -> Item:
    """Draws the chains of an item, and the order of its facts."""
    layers = _layers(dials, rng, split)
    facts: dict[str, list[Fact]] = {role: [] for role in ROLES}
    for layer, (subjects, objects) in enumerate(itertools.pairwise(layers)):
        holder = SOLVER if _is_place(dials, layer) else PLANNER
        for subject, found in zip(subjects, objects, strict=True):
            facts[holder].append(_fact(dials, layer, subject, found))
    ordered = {
        role: [of_role[i] for i in rng.permutation(len(of_role))] for role, of_role in facts.items()
    }
    return Item(
        layers=layers,
        evidence={role: " ".join(fact.sentence for fact in of) for role, of in ordered.items()},
        pairs=tuple((fact.subject, fact.found) for fact in ordered[PLANNER]),
    )


def _fact(dials: EvidenceConfig, layer: int, subject: str, found: str) -> Fact:
    """The fact that leads from an entity of a layer to one of the next."""
    phrase = PHRASES[dials.crossing]
    if not _is_place(dials, layer):
        sentence = IS_IN.format(subject, phrase.format(found))
    elif layer == dials.hops - 1:
        sentence = CODE.format(phrase.format(subject), found)
    else:
        sentence = KEEPER.format(phrase.format(subject), found)
    return Fact(sentence, subject, found)


def _is_place(dials: EvidenceConfig, layer: int) -> bool:
    """Whether the entities of a layer are places, as those before the codes and every other one."""
    return (dials.hops - layer) % 2 == 1


def _layers(
    dials: EvidenceConfig, rng: np.random.Generator, split: str
) -> tuple[tuple[str, ...], ...]:
    """Entities of an item [hops + 1][pairs]: persons and places in turn, then codes."""
    of_places = [_is_place(dials, layer) for layer in range(dials.hops)]
    count, places = dials.pairs, dials.pairs * sum(of_places)
    persons = _draw(rng, pool("persons", split), count * dials.hops - places)
    numbers = _draw(rng, pool("numbers", split), count + places)  # rooms and codes are distinct
    codes, rooms = numbers[:count], numbers[count:]
    named = rooms
    if dials.crossing != "numbers":
        named = _draw(rng, pool(dials.crossing, split), places)
    left = {True: iter(named), False: iter(persons)}
    drawn = [tuple(itertools.islice(left[is_place], count)) for is_place in of_places]
    return (*drawn, codes)


def _draw(rng: np.random.Generator, entities: Sequence[str], count: int) -> tuple[str, ...]:
    """Distinct entities of a pool in random order."""
    return tuple(entities[i] for i in rng.permutation(len(entities))[:count])


@functools.cache
def pool(kind: str, split: str) -> tuple[str, ...]:
    """The entities of a split: every third one of persons, numbers or a crossing's places.

    The training split has more persons and places, so that what is trained on them carries others:
    a link that is aligned on some 70 persons carries no others at all.
    """
    more = _words()["training"].get(kind, ()) if split == "train" else ()
    return tuple(_entities(kind)[SPLITS.index(split) :: len(SPLITS)]) + tuple(more)


@functools.cache
def _words() -> Mapping[str, Any]:
    return yaml.safe_load(resources.files("rmas_jax.data").joinpath(WORDS).read_text())


def _entities(kind: str) -> Sequence[str]:
    """The entities that all splits share out."""
    if kind == "numbers":
        return [str(number) for number in range(100, 1000)]
    if kind == "codes":
        parts = itertools.product(LETTERS, LETTERS, range(10, 100))
        return [f"{first}{second}{number}" for first, second, number in parts]
    return _words()[kind]


def question_of(dials: EvidenceConfig, item: Item) -> str:
    """The question: the start of its chain, its way by keepers, and the code at its end."""
    start = item.layers[0][0]
    if _is_place(dials, 0):
        place = PHRASES[dials.crossing].format(start)
    else:
        place = f"the place where {start} is"
    further = (dials.hops - 1) // 2
    if not further:
        return f"What is the code of {place}?"
    way = place + ", then to where its keeper is" * further
    return f"Go to {way}. What is the code of that place?"


def texts_of(dials: EvidenceConfig, item: Item, rounds: int) -> dict[str, tuple[str, ...]]:
    """Role -> its text in each round; after the answer, the last ones are repeated."""
    shown = [min(number, item.rounds - 1) for number in range(rounds)]
    phrase = PHRASES[dials.crossing]
    planner = tuple(phrase.format(item.spoken[2 * number]) for number in shown)
    if not dials.asked:
        planner = (" ".join(itertools.chain.from_iterable(item.pairs)),) * rounds
    return {PLANNER: planner, SOLVER: tuple(item.spoken[2 * number + 1] for number in shown)}
