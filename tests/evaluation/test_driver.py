"""The driver on a tiny team: what it writes, that it resumes, that its controls are controls."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from contest import BATCH, EXAMPLES, LATENT_STEPS, MAX_TOKENS, ROUNDS, of, said
from teams import broken, with_agents

from rmas_jax.agents.adapters import Tuned
from rmas_jax.config import ConfigError
from rmas_jax.data import Example
from rmas_jax.evaluation import listening
from rmas_jax.evaluation import methods as method_table
from rmas_jax.evaluation.answerer import Answerer
from rmas_jax.evaluation.methods import chosen_methods
from rmas_jax.evaluation.metrics import wilson_interval
from rmas_jax.evaluation.record import KEY
from rmas_jax.host.checksums import unseal
from rmas_jax.host.errors import InputError
from rmas_jax.host.nonfinite import NonFiniteError
from rmas_jax.reporting.run_directory import read_run
from rmas_jax.rounds import recursion, text_channel
from rmas_jax.rounds.channels import LatentChannel
from rmas_jax.sharding import make_mesh, put_whole
from rmas_jax.topology import load_topology

SIDE_BY_SIDE = ("mixture_of_agents", "textgrad", "majority_vote", "best_of_agents")
SERVED = chosen_methods(None, loop_lm="ouro")  # the tiny team has a looped language model


@pytest.fixture(scope="module")
def finished(contest, tmp_path_factory):
    directory = tmp_path_factory.mktemp("run")
    return directory, *contest(directory, SERVED)


def results(directory):
    rows = json.loads((directory / "results.json").read_text())
    return [unseal(row, source="results.json", error=InputError) for row in rows]


def test_every_method_is_measured_at_every_round_on_every_split(finished):
    _, rows, items = finished
    order = load_topology("sequential").order
    once = {"majority_vote", "best_of_agents", *(f"single_{role}" for role in order)}
    expected = {(m, r) for m in {*SERVED} - once - {"single_agents"} for r in ROUNDS}
    expected -= {("mixture_of_agents", 1), ("textgrad", 1)}  # that is the answerer alone
    expected |= {(m, 1) for m in once}
    names = method_table.planned_methods(SERVED, ROUNDS, order=order, latent_steps=LATENT_STEPS)
    assert len(names) == len(expected) and set(names) == expected
    assert {r["benchmark"] for r in rows} == {r["benchmark"] for r in items} == {"words"}
    assert {(r["method"], r["rounds"], r["split"]) for r in rows} == {
        (*key, split) for key in expected for split in EXAMPLES
    }
    for row in rows:
        ids = [r["id"] for r in items if all(r[column] == row[column] for column in KEY)]
        assert sorted(ids) == sorted(e.id for e in EXAMPLES[row["split"]])


def test_another_benchmark_is_added_and_a_changed_one_refused(contest, tmp_path):
    how = {"rounds": (1,), "examples": {"test": EXAMPLES["test"]}}
    rows, _ = contest(tmp_path, ["no_latents"], **how)
    more, items = contest(tmp_path, ["no_latents"], name="others", **how)
    assert more[:1] == rows and [row["benchmark"] for row in more] == ["words", "others"]
    assert [item["benchmark"] for item in items] == ["words"] * 5 + ["others"] * 5
    with pytest.raises(ConfigError, match="others test has changed since it was measured"):
        contest(tmp_path, ["no_latents"], name="others", version="2", **how)
    with pytest.raises(ConfigError, match=r"sampling must be '.*rollouts 1', got '.*rollouts 2'"):
        contest(tmp_path, ["no_latents"], rollouts=2, **how)


def test_rows_agree_with_items_and_the_report_takes_both(contest, finished):
    directory, rows, items = finished
    run = read_run(directory)  # checks columns, types and counts
    assert results(directory) == rows == run.results and run.items == items
    assert set(items[0]) >= {"question", "prediction", "gold", "tokens", "steps"}
    in_links = sum(np.size(array) for array in jax.tree.leaves(contest.links))
    for row in rows:
        own = [r for r in items if all(r[column] == row[column] for column in KEY)]
        assert (row["n"], row["grader"]) == (len(own), "lengths")
        assert row["correct"] == sum(r["correct"] for r in own)
        assert (row["ci_low"], row["ci_high"]) == wilson_interval(row["correct"], row["n"])
        assert row["unparsed"] == sum(r["prediction"] is None for r in own)
        assert row["at_limit"] == sum(r["at_limit"] for r in own) and row["answer_retry"] == 0
        for cost in ("tokens", "steps", "flops"):
            assert row[f"{cost}_per_item"] == pytest.approx(np.mean([r[cost] for r in own]))
        assert row["seconds_per_item"] > 0
        is_latent = row["method"] in ("recursive_mas", "aligned_links", "shuffled_latents")
        used = (row["latent_steps"], row["trained_parameters"])
        assert used == ((LATENT_STEPS, in_links) if is_latent else (0, 0))


def test_an_item_costs_its_thoughts_and_its_tokens(finished):
    _, _, items = finished
    stages = {r: 3 * r - 1 for r in ROUNDS}  # before the answer
    for r in items:
        if r["method"] in ("recursive_mas", "aligned_links", "shuffled_latents"):
            assert r["steps"] == stages[r["rounds"]] * LATENT_STEPS + r["tokens"]
            assert 1 <= r["tokens"] <= MAX_TOKENS
        else:  # agents may write side by side
            assert (r["steps"] < r["tokens"]) == (r["method"] in SIDE_BY_SIDE)
        if r["method"] == "truncated_text":
            assert r["tokens"] <= stages[r["rounds"]] * LATENT_STEPS + MAX_TOKENS
        if r["method"] == "recursive_text":
            assert stages[r["rounds"]] < r["tokens"] <= (stages[r["rounds"]] + 1) * MAX_TOKENS


def test_latent_answers_are_those_of_recursion(contest, finished):
    """One item by itself, without the driver's batches, order and filling."""
    team, example = contest.team, EXAMPLES["unseen"][2]
    tokenizer = team.members["solver"].tokenizer

    @jax.jit
    def solve(links):
        return recursion.solve(
            team.system,
            team.agents,
            LatentChannel(team.system, links),
            team.encode([example.question]),
            rounds=2,
            end_tokens=(tokenizer.eos_token_id,),
            max_tokens=MAX_TOKENS,
        )

    for method, links in (("recursive_mas", contest.links), ("aligned_links", contest.other_links)):
        speech = solve(links)
        text = tokenizer.decode(speech.tokens[0, : speech.lengths[0]], skip_special_tokens=True)
        assert said(of(finished[2], method, 2))["unseen", example.id] == text.strip()


@pytest.mark.long  # tests/multiprocess/test_run.py evaluates on a mesh
def test_on_a_mesh_batches_are_split_and_answers_stay(contest, finished, tmp_path, monkeypatch):
    mesh = make_mesh(BATCH, devices=jax.devices()[:BATCH])
    team = with_agents(contest.team, put_whole(contest.team.agents, mesh), mesh)
    monkeypatch.setattr(contest, "team", team)
    put, rows_here = listening.put_batch, []

    def put_batch(tree, mesh):
        placed = put(tree, mesh)
        rows_here.extend(x.addressable_shards[0].data.shape[0] for x in jax.tree.leaves(placed))
        return placed

    for module in (listening, text_channel):
        monkeypatch.setattr(module, "put_batch", put_batch)
    methods = ("recursive_text", "recursive_mas")
    _, items = contest(tmp_path, methods, rounds=(2,))
    assert set(rows_here) == {1}  # a device holds its own row
    for method in {item["method"] for item in items}:
        assert of(items, method) == of(finished[2], method, 2)
    _, refilled = contest(tmp_path / "pool", ["recursive_mas"], rounds=(2,), refills=True)
    assert refilled == of(items, "recursive_mas")


def test_controls_answer_differently_and_without_latents_links_do_not_count(
    contest, finished, tmp_path
):
    _, _, items = finished
    trained = of(items, "recursive_mas")
    for method in ("aligned_links", "shuffled_latents", "no_latents", "recursive_text"):
        assert [r["text"] for r in of(items, method)] != [r["text"] for r in trained], method
    assert said(of(items, "truncated_text", 2)) != said(of(items, "recursive_text", 2))
    # Nothing passed, in a first round: that is the solver alone.
    assert said(of(items, "no_latents", 1)) == said(of(items, "single_solver"))
    _, again = contest(tmp_path, ["no_latents"], links=contest.other_links)
    assert again == of(items, "no_latents")


def test_a_tuned_answerer_answers_alone(contest, finished, tmp_path):
    """With the agent itself in place of a tuned one it is the solver alone."""
    tuned = {"answerer_full": Tuned(contest.team.agents["solver"], 7)}
    rows, items = contest(tmp_path, ["answerer_full"], tuned=tuned)
    assert {row["trained_parameters"] for row in rows} == {7}
    assert said(items) == said(of(finished[2], "single_solver"))
    assert {(row["method"], row["rounds"], row["latent_steps"]) for row in rows} == {
        ("answerer_full", 1, 0)
    }


def test_it_resumes_without_repeating_or_losing_anything(contest, tmp_path, monkeypatch):
    methods = ["no_latents", "single_agents"]
    rows, items = contest(tmp_path, methods, rounds=(1,))
    kept = rows[:3]  # the fourth measurement is cut off within a line, the rest never happened
    text = (tmp_path / "items.jsonl").read_text()
    n = sum(row["n"] for row in kept)
    cut = len("".join(text.splitlines(keepends=True)[: n + 2])) - 5
    (tmp_path / "items.jsonl").write_text(text[:cut])
    (tmp_path / "results.json").write_text(json.dumps(kept))

    run = []
    listen = Answerer.listen
    monkeypatch.setattr(
        Answerer, "listen", lambda own, prompts: (run.append(own.role), listen(own, prompts))[1]
    )
    resumed, found = contest(tmp_path, methods, rounds=(1,))
    assert resumed[:3] == kept
    assert found == items
    assert [{**r, "seconds_per_item": 0} for r in resumed] == [
        {**r, "seconds_per_item": 0} for r in rows
    ]
    # Two batches of what is left of one split, and one of the other.
    assert run == ["solver", "solver", None, "planner", "critic", "solver"]

    run.clear()
    assert contest(tmp_path, methods, rounds=(1,)) == (resumed, found)
    assert not run


def test_impossible_evaluations_end_before_anything_is_written(contest, tmp_path):
    directory = tmp_path / "run"
    question = Example("first", "a b", "a")
    twice = {"test": [question, dataclasses.replace(question, id="second")]}
    same_id = {"test": [question, dataclasses.replace(question, question="b a")]}
    for methods, examples, message in (
        (["telepathy"], EXAMPLES, "telepathy"),
        (["no_latents"], {"test": []}, "test"),
        (["shuffled_latents"], twice, "own question"),
        (["no_latents"], same_id, "ids of items must be distinct, got 'first' more than once"),
    ):
        with pytest.raises(ValueError, match=message):
            contest(directory, methods, examples=examples)
    assert not directory.exists()


@pytest.mark.parametrize(
    ("method", "role", "token", "message"),
    [
        (
            "recursive_mas",
            "critic",
            None,
            "rounds 2, words test, seed 7: agent critic, round 1: latents",
        ),
        (
            "shuffled_latents",
            "solver",
            None,
            "rounds 2, words test, seed 7: agent solver, round 1: latents",
        ),
        (
            "no_latents",
            "solver",
            None,
            "rounds 2, words test, seed 7: agent solver, answer: logits",
        ),
        ("recursive_text", "planner", None, "agent planner, round 1: message: logits"),
        (
            "single_agents",
            "critic",
            None,
            "evaluation of single_critic, rounds 1, words test, seed 7: agent",
        ),
        ("recursive_mas", "planner", " to", r"agent planner, round 1: latents: .*\(items 'from to"),
    ],
)
def test_numbers_that_are_not_finite_are_no_results(
    contest, tmp_path, monkeypatch, method, role, token, message
):
    member = contest.team.members[role]
    if token is not None:
        (token,) = member.tokenizer(token, add_special_tokens=False)["input_ids"]
    agents = {role: broken(member.agent, token)}
    monkeypatch.setattr(contest, "team", with_agents(contest.team, agents))
    examples = {"test": EXAMPLES["test"]}  # " to" stands in the last of its five items alone
    with pytest.raises(NonFiniteError, match=message):
        contest(tmp_path, [method], rounds=(2,), examples=examples)
    results = json.loads((tmp_path / "results.json").read_text())
    assert [row["method"] for row in results] == ["single_planner"] * (method == "single_agents")
