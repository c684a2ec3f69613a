"""The driver on a tiny team: what it writes, that it resumes, that its controls are controls."""

import json
import re

import jax
import numpy as np
import pytest
from teams import broken, build_team, with_agents

from rmas_jax.agents.answers import AnswerRetry
from rmas_jax.config import ConfigError
from rmas_jax.data import Example
from rmas_jax.evaluation import answerer, driver, graders
from rmas_jax.evaluation import methods as method_table
from rmas_jax.evaluation.answerer import Answerer
from rmas_jax.evaluation.graders.verdict import compared
from rmas_jax.evaluation.methods import METHODS
from rmas_jax.evaluation.metrics import wilson_interval
from rmas_jax.evaluation.record import KEY
from rmas_jax.host.checksums import unseal
from rmas_jax.host.compilations import compilations
from rmas_jax.host.errors import InputError
from rmas_jax.host.nonfinite import NonFiniteError
from rmas_jax.models.generation import SamplingConfig
from rmas_jax.reporting.results import Results, Split
from rmas_jax.reporting.run_directory import read_run
from rmas_jax.rounds import recursion, text_channel
from rmas_jax.rounds.channels import LatentChannel
from rmas_jax.sharding import make_mesh, put_whole
from rmas_jax.topology import load_topology

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


@pytest.fixture(scope="module")
def contest(tmp_path_factory):
    """Function that evaluates the tiny team into a directory and returns the rows of both files."""
    team, links = build_team(tmp_path_factory.mktemp("team"), LATENT_STEPS)
    other_links = jax.tree.map(lambda p: -p, links)

    def run(
        directory,
        methods,
        *,
        rounds=ROUNDS,
        links=links,
        seed=7,
        examples=EXAMPLES,
        name="words",
        version="1",
        metric="accuracy",
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
                    graders.Grader("lengths", "lengths of texts", grade),
                    examples,
                    {role: member.template for role, member in team.members.items()},
                    answerer.Answering(max_tokens=MAX_TOKENS, **answering),
                    "Words, two by two.",
                    metric,
                )
            ],
            directory,
            methods=methods,
            rounds=rounds,
            batch_size=BATCH,
            seed=seed,
            progress=False,
        )
        return rows, lines(directory)

    run.team, run.links, run.other_links = team, links, other_links
    return run


@pytest.fixture(scope="module")
def finished(contest, tmp_path_factory):
    directory = tmp_path_factory.mktemp("run")
    return directory, *contest(directory, METHODS)


def lines(directory):
    return [json.loads(line) for line in (directory / "items.jsonl").read_text().splitlines()]


def results(directory):
    rows = json.loads((directory / "results.json").read_text())
    return [unseal(row, source="results.json", error=InputError) for row in rows]


def of(rows, method, rounds=None):
    return [r for r in rows if r["method"] == method and rounds in (None, r["rounds"])]


def said(items):
    return {(r["split"], r["id"]): r["text"] for r in items}


def test_every_method_is_measured_at_every_round_on_every_split(finished):
    _, rows, items = finished
    singles = {f"single_{role}" for role in load_topology("sequential").order}
    expected = {(m, r) for m in METHODS for r in ROUNDS if m != "single_agents"}
    expected |= {(m, 1) for m in singles}
    order = load_topology("sequential").order
    names = method_table.planned_methods(METHODS, ROUNDS, order=order, latent_steps=LATENT_STEPS)
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
    with pytest.raises(ConfigError, match="others has changed since it was measured"):
        contest(tmp_path, ["no_latents"], name="others", version="2", **how)


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
        else:
            assert r["steps"] == r["tokens"]
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


def test_on_a_mesh_batches_are_split_and_answers_stay(contest, finished, tmp_path, monkeypatch):
    mesh = make_mesh(BATCH, devices=jax.devices()[:BATCH])
    team = with_agents(contest.team, put_whole(contest.team.agents, mesh), mesh)
    monkeypatch.setattr(contest, "team", team)
    put, rows_here = answerer.put_batch, []

    def put_batch(tree, mesh):
        placed = put(tree, mesh)
        rows_here.extend(x.addressable_shards[0].data.shape[0] for x in jax.tree.leaves(placed))
        return placed

    for module in (answerer, text_channel):
        monkeypatch.setattr(module, "put_batch", put_batch)
    methods = ("single_agents", "recursive_text", "recursive_mas")
    _, items = contest(tmp_path, methods, rounds=(2,))
    assert set(rows_here) == {1}  # a device holds its own row
    for method in {item["method"] for item in items}:
        assert of(items, method) == of(finished[2], method, None if "single" in method else 2)


def test_controls_answer_differently_and_without_latents_links_do_not_count(
    contest, finished, tmp_path
):
    _, _, items = finished
    trained = said(of(items, "recursive_mas", 2))
    for method in ("aligned_links", "shuffled_latents", "no_latents", "recursive_text"):
        assert said(of(items, method, 2)) != trained, method
    assert said(of(items, "truncated_text", 2)) != said(of(items, "recursive_text", 2))
    # Nothing passed, in a first round: that is the solver alone.
    assert said(of(items, "no_latents", 1)) == said(of(items, "single_solver"))
    _, again = contest(tmp_path, ["no_latents"], links=contest.other_links)
    assert again == of(items, "no_latents")


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
    assert set(run) == {"planner", "critic", "solver"}

    run.clear()
    assert contest(tmp_path, methods, rounds=(1,)) == (resumed, found)
    assert not run


def test_rollouts_of_an_answer_for_pass_at_k(contest, tmp_path):
    drawn = {"sampling": SamplingConfig(temperature=3.0), "rollouts": 4}
    methods = ["recursive_mas", "recursive_text", "single_agents"]
    rows, items = contest(tmp_path / "a", methods, rounds=(1,), metric="pass_at_k", **drawn)
    for row in rows:
        assert (row["metric"], row["description"]) == ("pass_at_k", "Words, two by two.")
        own = [r for r in items if all(r[column] == row[column] for column in KEY)]
        right = np.array([[x["correct"] for x in r["rollouts"]] for r in own])
        assert right.shape == (row["n"], 4)
        assert row["correct"] == right[:, 0].sum()
        assert row["pass_at_k"] == right.any(axis=1).mean() >= row["accuracy"]
        assert row["rollout_accuracy"] == pytest.approx(right.mean())
        assert [r["text"] for r in own] == [r["rollouts"][0]["text"] for r in own]
    assert len({x["text"] for x in items[0]["rollouts"]}) > 1
    again, same = contest(tmp_path / "b", methods, rounds=(1,), **drawn)
    assert same == items
    for row in again:  # rollouts alone are no other metric
        assert row["metric"] == "accuracy" and "pass_at_k" not in row and row["rollouts"] == 4
    assert contest(tmp_path / "c", methods, rounds=(1,), seed=8, **drawn)[1] != items
    run = read_run(tmp_path / "a")
    results = Results(run.results, run.items)
    for row in rows:
        split = Split("words", row["split"])
        result = results.get(split, row["method"], 1)
        assert results.metric(split) == "pass@4" and result.by_item
        assert result.accuracy == pytest.approx(row["pass_at_k"])
        interval = wilson_interval(result.correct, result.n)
        assert result.interval == pytest.approx(interval)


def test_a_batch_that_compiles_runs_again_for_its_time(contest, tmp_path, monkeypatch):
    how = {"rounds": (2,), "examples": {"test": EXAMPLES["test"]}}  # two batches
    _, items = contest(tmp_path / "first", ["recursive_mas"], **how)
    first, second = ({r["text"] for r in part} for part in (items[:BATCH], items[BATCH:]))
    assert second - first  # there is one in the second batch that the first batch lacks
    known = "|".join(map(re.escape, sorted(first)))
    answer_retry = AnswerRetry(rf"^\s*(?:{known})\s*$", " it is", max_tokens=1)

    runs = []
    listen = Answerer.listen
    monkeypatch.setattr(Answerer, "listen", lambda *a: (runs.append(compilations()), listen(*a))[1])
    how["answer_retry"] = answer_retry
    jax.clear_caches()
    rows, _ = contest(tmp_path / "compiling", ["recursive_mas"], **how)
    # The first batch compiles and runs again; the second one does so for its answer retry.
    assert len(runs) == 4 and runs[0] < runs[1] == runs[2] < runs[3] == compilations()
    runs.clear()
    contest(tmp_path / "again", ["recursive_mas"], **how)
    assert len(runs) == 2
    assert rows[0]["seconds_per_item"] > 0


def test_endings_of_answers_are_counted(contest, tmp_path):
    examples = {"test": EXAMPLES["test"]}
    how = {"rounds": (1,), "examples": examples, "answer_retry": AnswerRetry("$^", " it is", 1)}
    (row,), items = contest(tmp_path, ["no_latents"], **how)
    assert row["answer_retry"] == row["n"] and all(item["answer_retry"] for item in items)
    for item in items:
        assert item["at_limit"] is (
            item["tokens"] == MAX_TOKENS + 1
        )  # and that of the answer retry
    assert row["at_limit"] == sum(item["at_limit"] for item in items) > 0
    assert row["unparsed"] == 0


def test_another_seed_is_another_measurement(contest, tmp_path):
    for seed in (1, 2):
        rows, items = contest(tmp_path, ["no_latents"], rounds=(1,), seed=seed)
    assert [row["seed"] for row in rows] == [1, 1, 2, 2]
    assert len(items) == 2 * sum(map(len, EXAMPLES.values()))


def test_impossible_evaluations_end_before_anything_is_written(contest, tmp_path):
    directory = tmp_path / "run"
    twice = {"test": [item(0, "ab"), item(1, "ab")]}
    for methods, examples, message in (
        (["telepathy"], EXAMPLES, "telepathy"),
        (["no_latents"], {"test": []}, "test"),
        (["shuffled_latents"], twice, "own question"),
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
