"""Trials of training links for the capacity curve."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blind_pair import AGENTS, SET, dials, links_of, saved, team_of

from experiments.real_agents import messages, trials
from experiments.real_agents.free_vectors import questions
from experiments.real_agents.messages import EDGE, Params
from experiments.real_agents.options import CONFIG
from experiments.real_agents.text_states import (
    first_tokens,
    states_loss,
    text_states,
    words_loss,
)
from experiments.real_agents.trials import TRIALS, Trial
from rmas_jax.config import load_config
from rmas_jax.host.errors import BAD_INPUT
from rmas_jax.sharding import to_host
from rmas_jax.training.outer.step import outer_loss

COUNT = 3
PHASE = (
    "{name: on_policy, latents: on_policy, rounds: 1, steps: 20, batch_size: 2, "
    "learning_rate: 1e-4}"
)


@pytest.fixture(scope="module")
def team():
    return team_of(COUNT)


@pytest.fixture(scope="module")
def links(team):
    return links_of(team, 1)


@pytest.fixture(scope="module")
def known(team):
    return {
        split: messages.read_all(team, questions(dials(), seed=0, items=4, split=split), 2)
        for split in ("train", "validation")
    }


def test_answers_are_those_of_the_outer_loop(team, links, known):
    """To the same questions, each with a turn of its own; not with the vectors of another M."""
    batch = known["train"].batches(team)[0]
    params = Params(links, None)
    vectors = messages.sent_vectors(team.system, team.agents, params, batch)
    assert vectors.shape == (2, COUNT, team.agents["solver"].width)
    loss = messages.answered(team.agents, vectors, batch).loss.mean()
    [phase] = load_config(CONFIG, [AGENTS, f"outer.phases=[{PHASE}]"]).outer.phases
    expected, _ = outer_loss(team.system, phase, team.agents, links, batch.asked.batch)
    np.testing.assert_allclose(loss, expected, rtol=2e-5)
    others = messages.answered(team.agents, vectors[:, ::-1], batch).loss.mean()
    assert abs(float(others - expected)) > 1e-3


@pytest.mark.parametrize("name", ["answers", "states_adapter"])
def test_training_changes_what_the_message_passes_and_nothing_else(team, links, known, name):
    """Without an adapter the sender is as it was."""
    rank = TRIALS[name].rank and 2
    trial = TRIALS[name]._replace(steps=6, rate=1e-2, rank=rank)
    key = jax.random.key(0)
    start = trials.started(team, trial, links, key)
    batches = known["train"].batches(team)
    texts = text_states(team, known["train"], COUNT) if rank else [None] * len(batches)
    trained, _ = trials.train(team, trial, start, batches, key, texts)
    again, _ = trials.train(team, trial, start, batches, key, texts)
    before, after = to_host((start, trained))
    jax.tree.map(np.testing.assert_array_equal, after, to_host(again))

    def moved(a, b):
        return any(
            not np.array_equal(*pair) for pair in zip(*map(jax.tree.leaves, (a, b)), strict=True)
        )

    assert moved(before.links.inner["planner"], after.links.inner["planner"])
    assert moved(before.links.outer[EDGE], after.links.outer[EDGE])
    assert not moved(before.links.inner["solver"], after.links.inner["solver"])
    assert not moved(before.links.outer["solver->planner"], after.links.outer["solver->planner"])
    assert moved(before.adapter, after.adapter) == bool(rank)
    if rank:  # as training wants it
        losses = [loss_of_states(team, params, batches, texts) for params in (start, trained)]
        assert losses[1] < losses[0]
        back = trained.replace(adapter=start.adapter)  # the adapter has its part in what is sent
        vectors = [messages.sent(team, params, batches) for params in (trained, back)]
        assert np.abs(vectors[0] - vectors[1]).max() > 1e-3


def test_trained_thoughts_come_closer_to_words(team, links, known):
    """The first words, of which a message of M thoughts has M."""
    trial = Trial("words", 30, "words", rate=1e-2)
    start = Params(links, None)
    trained, _ = trials.trained(team, trial, links, known["train"], count=COUNT, seed=0)
    words = first_tokens(team, known["train"].asked, COUNT)
    batches = known["train"].batches(team)
    before, after = (
        float(words_loss(messages.sent(team, params, batches), words))
        for params in (start, trained)
    )
    assert after < 0.9 * before


def loss_of_states(team, params, batches, texts):
    """The sum over batches."""
    sent = [messages.sent(team, params, [batch]) for batch in batches]
    losses = [
        states_loss(team.agents["solver"], *of) for of in zip(sent, batches, texts, strict=True)
    ]
    return float(sum(losses))


def test_a_choice_is_among_the_answers_to_the_same_message(monkeypatch):
    """Two of the first message's three answers begin with one token, which counts once."""
    first = np.array([[1, 2, 2], [0, 4, 3]])
    logits = np.random.default_rng(0).standard_normal((6, 1, 5)).astype(np.float32)
    answer = SimpleNamespace(ids=jnp.asarray(first.reshape(6, 1)))
    monkeypatch.setattr(trials, "answer_states", lambda *_: (answer, jnp.asarray(logits)))
    monkeypatch.setattr(trials, "by_row", lambda *_: None)
    monkeypatch.setattr(trials, "by_question", lambda *_: None)
    agents = {"solver": SimpleNamespace(unembed=lambda states: states)}
    batch = SimpleNamespace(asked=SimpleNamespace(batch=None))
    found = trials.choice_loss(agents, np.zeros((2, 1, 1)), batch, 2.0)
    for message, of in enumerate(first):
        for question, own in enumerate(of):
            known = {token: logits[3 * message + question, 0, token] / 2 for token in of}
            expected = np.log(sum(np.exp([*known.values()]))) - known[own]
            np.testing.assert_allclose(found[message, question], expected, rtol=1e-5)


def test_an_interval_is_over_messages():
    """With answers that agree within a message, it is that of half as many of them."""
    alike = messages.summary(np.repeat(np.arange(40) < 30, 2).reshape(40, 2))
    apart = messages.summary(np.tile([True, True, True, False], 20).reshape(40, 2))
    assert alike["accuracy"] == apart["accuracy"] == 0.75 and alike["n"] == 40
    widths = [np.diff(of["interval"])[0] for of in (alike, apart)]
    assert widths[0] > 1.2 * widths[1]


def test_a_report_has_every_trial_once(team, links, tmp_path, monkeypatch, capsys):
    [path] = saved(tmp_path, links)
    some = {
        "aligned": Trial("aligned", 0),
        "shrunk": Trial("shrunk", 2, path=(4,)),
        "adapter": Trial("noise and an adapter", 2, "choice", noise=0.5, rank=2),
        "states": Trial("states", 2, "states"),
        "words": Trial("words", 2, "words", path=(1,)),
    }
    monkeypatch.setattr(trials, "TRIALS", some)
    options = ["--out", str(tmp_path / "page"), "--links", path, *SET, "--count", "2"]
    options += ["--items", "4", "--held-out", "2", "--batch", "2", "--trials", *some]
    assert trials.main(options) == 0
    report = json.loads((tmp_path / "page" / trials.REPORT).read_text())
    assert [*report["rows"]] == ["text", *some]
    for row in report["rows"].values():
        assert row["n"] == 2 and 0 <= row["accuracy"] <= 1
    assert report["rows"]["adapter"]["parameters"] > report["rows"]["shrunk"]["parameters"] > 0
    some["shrunk"] = some["shrunk"]._replace(rate=1e-3)  # the others are there already
    assert trials.main(options) == 0
    again = json.loads((tmp_path / "page" / trials.REPORT).read_text())
    same = [name for name in some if again["rows"][name] == report["rows"][name]]
    assert same == ["aligned", "adapter", "states", "words"]
    old = {**again["rows"]["words"]["trial"]}
    assert trials.defined(old) == some["words"]
    del old["temperature"]  # a report from before there was a choice
    assert trials.defined(old) == some["words"]
    saved(tmp_path, jax.tree.map(lambda x: 2 * x, links))
    assert trials.main([*options[: -len(some)], "aligned"]) == BAD_INPUT
    assert "made with other links; --out must be another folder" in capsys.readouterr().err
    assert json.loads((tmp_path / "page" / trials.REPORT).read_text()) == again
    with pytest.raises(SystemExit):
        trials.main([*options, "--items", "5"])
    assert "--batch must divide --items (5), got 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("path", "count", "parts"),
    [
        ((2, 4), 8, [2, 4, 8]),
        ((2, 4), 4, [2, 4]),
        ((2, 4), 2, [2]),
        ((2, 4), 1, [1]),
        ((2, 4), 3, [2, 3]),
        ((11, 8, 6), 8, [11, 8]),
        ((11, 8, 6), 4, [11, 8, 6, 4]),
        ((2,), 4, [2, 4]),
        ((), 4, [4]),
    ],
)
def test_a_path_ends_where_the_count_is_reached_or_passed(path, count, parts):
    assert trials.parts_of(Trial("", 2, path=path), count) == parts
    assert trials.parts_of(Trial("", 0, path=path), count) == []
