"""Evaluations of a tiny team, for tests of the driver."""

import json

import jax
from teams import METHOD_PROMPTS, build_team

from rmas_jax.data import Example
from rmas_jax.evaluation import driver
from rmas_jax.evaluation.answering import Answering
from rmas_jax.evaluation.graders import Grader
from rmas_jax.evaluation.graders.verdict import compared
from rmas_jax.evaluation.shared import SHARED_BYTES

LATENT_STEPS, MAX_TOKENS, BATCH, ROUNDS = 2, 3, 3, (1, 2)
WORDS = ("a", "b", "the", "parcel", "from", "to", "does", "where")


def item(i, words):
    question = " ".join(words)
    return Example(f"{question}?", question, words[0], difficulty=1 + i)


EXAMPLES = {
    "test": [item(i, WORDS[i : i + 2]) for i in range(5)],  # the second batch has one row too few
    "unseen": [item(i, WORDS[i::-1]) for i in range(3)],
}


def grade(text, example):
    """Right or wrong, as good as at random but the same every time."""
    return compared(text or None, (len(text) + len(example.answer)) % 2 == 0)


GRADER = Grader("lengths", "lengths of texts", grade, equates=False)


def open_contest(folder):
    """Function that evaluates the tiny team into a directory and returns the rows of both files."""
    team, links = build_team(folder, LATENT_STEPS)
    other_links = jax.tree.map(lambda p: -p, links)

    def run(
        directory,
        methods,
        *,
        rounds=ROUNDS,
        links=links,
        seeds=(7,),
        examples=EXAMPLES,
        name="words",
        version="1",
        metric="accuracy",
        grader=GRADER,
        tuned=None,
        shared_bytes=SHARED_BYTES,
        **answering,
    ):
        rows = driver.evaluate(
            run.team,
            links,
            other_links,
            [
                driver.LoadedBenchmark(
                    name,
                    version,
                    grader,
                    examples,
                    {role: member.template for role, member in team.members.items()},
                    Answering(max_tokens=MAX_TOKENS, **answering),
                    "Words, two by two.",
                    metric,
                    METHOD_PROMPTS,
                )
            ],
            directory,
            methods=methods,
            rounds=rounds,
            batch_size=BATCH,
            seeds=seeds,
            tuned=tuned,
            shared_bytes=shared_bytes,
            progress=False,
        )
        return rows, lines(directory)

    run.team, run.links, run.other_links = team, links, other_links
    return run


def lines(directory):
    return [json.loads(line) for line in (directory / "items.jsonl").read_text().splitlines()]


def of(rows, method, rounds=None):
    return [r for r in rows if r["method"] == method and rounds in (None, r["rounds"])]


def said(items):
    return {(r["split"], r["id"]): r["text"] for r in items}
