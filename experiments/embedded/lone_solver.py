"""An answerer that needs no message, and questions that it alone can answer.

For audits: a team of it answers well whatever arrives, so its messages must not be found to carry
anything. Its questions have one gate, the solver's blue one, so that planner and critic cannot know
the answer; the solver is trained further, all weights, to pass the phrase of the *question* through
its gate whatever stands in its slot. The messages of its team are real ones, of trained links.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.embedded.corpus import PROMPTS, State, Writer
from experiments.embedded.training import exact_share, train
from rmas_jax.agents.agent import load_agent
from rmas_jax.data import relay
from rmas_jax.host.atomic import write_atomic
from rmas_jax.host.json_rows import json_line
from rmas_jax.models import load_tokenizer, save_pretrained
from rmas_jax.models.directories import local_directory

ROLE = "solver"
SOURCE = "embedded/solver"
QUESTION = "The pass phrase {phrase} goes through one gate, blue. What does it read then?"
SIZES = {"train": 2000, "validation": 260, "test": 500}  # questions
ROWS, BATCH, LEARNING_RATE = 8_000, 32, 1e-3


def phrases(split: str) -> list[relay.Phrase]:
    """The known phrases of a split; splits are disjoint."""
    size = range(sum(relay.CLASS_SIZES))
    known = [(a, b) for a in size for b in size if relay.is_known((a, b))]
    order = np.random.default_rng(relay.WORLD_SEED).permutation(len(known))
    start = 0
    for name, count in SIZES.items():
        if name == split:
            return [known[i] for i in order[start : start + count]]
        start += count
    raise ValueError(f"split must be one of {', '.join(SIZES)}, got {split}")


def example(world: relay.World, phrase: relay.Phrase) -> dict[str, Any]:
    """A question with its answer and each role's text in each round.

    Planner and critic write what they make of such a question: the planner passes its own gate, and
    both pass on what they receive, in later rounds the answer itself.
    """
    wrong = relay.message(world, *world.pass_gate("planner", phrase, 1))
    answer = relay.message(world, *world.pass_gate(ROLE, phrase, 1))
    passed_on = [wrong] + [answer] * (relay.TEXT_ROUNDS - 1)
    return {
        "id": f"{phrase[0]}-{phrase[1]}",
        "question": QUESTION.format(phrase=world.text(phrase)),
        "plan": passed_on,
        "refined_plan": passed_on,
        "draft": [answer] * relay.TEXT_ROUNDS,
        "answer": answer,
        "difficulty": 1,
    }


def write_questions(folder: Path) -> Path:
    """Writes a file of JSON lines per split; returns the folder."""
    world = relay.make_world()
    folder.mkdir(parents=True, exist_ok=True)
    for split in SIZES:
        rows = [json_line(example(world, phrase)) for phrase in phrases(split)]
        write_atomic(folder / f"{split}.jsonl", b"".join(rows))
    return folder


class LoneWriter(Writer):
    """Prompts of such questions, with random messages to ignore in the slot."""

    def __init__(self, tokenizer: Any, seed: int, split: str = "train"):
        super().__init__(ROLE, tokenizer, seed)
        self.phrases = phrases(split)

    def problem(self) -> State:
        return self.phrases[self.rng.integers(len(self.phrases))], 1

    def question(self, problem: State) -> str:
        return QUESTION.format(phrase=self.world.text(problem[0]))

    def answer(self, problem: State, received: State) -> list[int]:
        del received
        return self.message(*self.world.pass_gate(ROLE, *problem))


def write_solver(out: Path, *, steps: int, seed: int = 0) -> float:
    """Trains the embedded solver further, writes it, and returns its share of exact answers.

    The share is over 1,000 prompts of validation questions, most with a random message. A directory
    that exists is left as it is.
    """
    tokenizer = load_tokenizer(SOURCE)
    held_out = LoneWriter(tokenizer, seed + 1, "validation").prompts(1000)
    if not out.exists():
        agent = load_agent(SOURCE)
        params, _ = train(
            [agent.decoder],
            agent.params,
            LoneWriter(tokenizer, seed).corpora({PROMPTS: ROWS}),
            batch=[BATCH],
            steps=steps,
            key=jax.random.key(seed, impl="rbg"),
            learning_rate=LEARNING_RATE,
            name="lone solver",
        )
        partial = out.with_name(out.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(local_directory(SOURCE, patterns=()), partial)
        save_pretrained(partial, agent.decoder, params)
        (partial / "README.md").write_text(f"# {out.name}\n\n{__doc__}")
        partial.rename(out)
    return exact_share(load_agent(out), held_out)
