"""The inner loop as a whole."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest
from inner_worker import CONFIG, EXAMPLES, ROLES, never_read, team_on, train
from teams import broken, build_team, with_agents

from rmas_jax import team as team_module
from rmas_jax.config import ConfigError
from rmas_jax.host.nonfinite import NonFiniteError
from rmas_jax.sharding import make_mesh
from rmas_jax.training.divergence import DivergedError
from rmas_jax.training.inner import loop as inner_loop
from rmas_jax.training.states import cache as state_cache
from rmas_jax.training.states import token_states


@pytest.fixture(scope="module")
def team_and_links(tmp_path_factory):
    return build_team(tmp_path_factory.mktemp("team"))


def same(a, b):
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


def test_all_links_are_trained_and_curves_say_how(team_and_links, tmp_path):
    team, links = team_and_links
    trained = train(team, links, tmp_path / "all")
    for part in ("inner", "outer"):
        for name, params in getattr(links, part).items():
            assert not same(params, getattr(trained, part)[name]), name
    rows = [json.loads(line) for line in (tmp_path / "all").read_text().splitlines()]
    for name in (*links.inner, *links.outer):
        assert [row["step"] for row in rows if row["series"] == name] == [0, 2, 4, 5, 7, 9]
    config = dataclasses.replace(CONFIG, repeats=1)
    kept = train(team, links, tmp_path / "inner", config, align_outer=False)
    assert same(kept.outer, links.outer) and not same(kept.inner, links.inner)


def test_a_later_repeat_reads_thoughts_as_well(team_and_links, tmp_path, monkeypatch):
    team, links = team_and_links
    seen = []

    def thoughts(number):
        """This many for each role, none of which random agents would have."""

        def rollout_states(team, links, data, *, rounds, **options):
            seen.append(links.inner)
            return {
                role: (np.ones((number, agent.width), np.float32), np.ones(number, np.int32))
                for role, agent in team.agents.items()
            }

        monkeypatch.setattr(inner_loop, "rollout_states", rollout_states)
        return train(team, links, tmp_path / "metrics", align_outer=False).inner

    none, many = thoughts(0), thoughts(100)
    assert len(seen) == 2 and not same(seen[0], links.inner)  # of the first repeat's links
    for role in ROLES:
        assert not same(none[role], many[role])


def test_an_outer_link_reads_what_is_sent(team_and_links, tmp_path):
    team, links = team_and_links
    config = dataclasses.replace(CONFIG, repeats=1)
    system = team.system.replace(sent_vectors="outer_of_hidden")
    hidden = dataclasses.replace(team, system=system)
    one, other = (train(t, links, tmp_path / str(i), config) for i, t in enumerate((team, hidden)))
    assert same(one.inner, other.inner)
    assert not same(one.outer, other.outer)


def test_no_steps_leave_all_links_as_they_are(team_and_links, tmp_path):
    team, links = team_and_links
    config = dataclasses.replace(CONFIG, steps=0, warmup_steps=0)
    assert same(train(team, links, tmp_path / "metrics", config), links)


def test_an_edge_whose_ends_share_no_token_is_refused(team_and_links, tmp_path, monkeypatch):
    team, links = team_and_links
    monkeypatch.setattr(inner_loop, "shared_tokens", lambda *_: (np.zeros(0, int),) * 2)
    with pytest.raises(ValueError, match=r"outer links planner->critic, .*: the sender's texts"):
        train(team, links, tmp_path / "metrics")


def test_an_aligned_start_needs_tokens_that_both_ends_have(team_and_links, monkeypatch):
    team, _ = team_and_links
    key, texts = jax.random.key(0), {role: ["to a"] for role in team.system.topology.order}
    monkeypatch.setattr(team_module, "shared_tokens", lambda *_: (np.zeros(0, int),) * 2)
    with pytest.raises(ConfigError, match="share no token, got aligned for planner->critic"):
        team_module.start_links(team, start="aligned", key=key)
    with pytest.raises(ConfigError, match="share no token of the texts, got "):
        team_module.start_links(team, start="aligned", key=key, texts=texts)


def test_an_aligned_start_is_of_all_tokens_or_of_those_of_texts(team_and_links):
    team, _ = team_and_links
    texts = {role: ["to a"] for role in team.system.topology.order}
    of_all, of_texts = (
        team_module.start_links(team, start="aligned", key=jax.random.key(0), texts=x).outer
        for x in (None, texts)
    )
    assert not same(of_all, of_texts)


def test_cached_states_are_not_read_again_and_make_the_same_links(
    team_and_links, tmp_path, monkeypatch
):
    team, links = team_and_links
    config, batches = dataclasses.replace(CONFIG, repeats=1), []
    put_batch = token_states.put_batch

    def counted(batch, mesh):
        batches.append(batch)
        return put_batch(batch, mesh)

    monkeypatch.setattr(token_states, "put_batch", counted)

    def run(name, **options):
        """The links, and whether an agent read."""
        batches.clear()
        trained = train(team, links, tmp_path / name, config, **options)
        return trained, bool(batches)

    folder = tmp_path / "states"
    without, reads = run("without")
    assert reads
    cold, reads = run("cold", states=folder)
    assert reads and same(cold, without)
    warm, reads = run("warm", states=folder)
    assert not reads and same(warm, without)
    _, reads = run("fewer", states=folder, examples=EXAMPLES[:2])
    assert reads
    assert len(list(folder.glob("*/states.npy"))) == 2 * len(ROLES)


def test_states_that_no_memory_holds_are_refused_before_any_are_read(
    team_and_links, tmp_path, monkeypatch
):
    team, links = team_and_links
    monkeypatch.setattr(state_cache, "physical_memory", lambda: 1000)
    monkeypatch.setattr(token_states, "read_texts", never_read)
    with pytest.raises(ConfigError, match=r"planner: .*inner.items.*inner.cache_gib"):
        train(team, links, tmp_path / "metrics")


@pytest.mark.long  # tests/multiprocess/test_run.py trains on eight
def test_links_are_the_same_on_one_device_and_on_eight(tmp_path):
    """From the same states bit for bit, and where those are read on eight devices, nearly."""
    config = dataclasses.replace(CONFIG, repeats=1)
    (one, start), (eight, _) = (
        team_on(make_mesh(size, devices=jax.devices()[:size]), tmp_path / "team") for size in (1, 8)
    )
    on_one = train(one, start, tmp_path / "one", config, states=tmp_path / "states")
    on_eight = train(eight, start, tmp_path / "eight", config, states=tmp_path / "states")
    assert same(on_one, on_eight)
    read_on_eight = train(eight, start, tmp_path / "read")
    both_repeats = train(one, start, tmp_path / "both", states=tmp_path / "states")
    for ours, expected, begun in zip(
        *map(jax.tree.leaves, (read_on_eight, both_repeats, start)), strict=True
    ):
        assert np.abs(expected - begun).max() > 1e-3
        np.testing.assert_allclose(ours, expected, atol=1e-5)


def with_broken_critic(team, token=None):
    """The team, with NaN in its critic, or in what that has for a token alone."""
    return with_agents(team, {"critic": broken(team.agents["critic"], token)})


@pytest.mark.parametrize("cached", [False, True])
def test_states_that_are_not_finite_name_their_agent_and_are_not_kept(
    team_and_links, tmp_path, cached
):
    team, links = team_and_links
    kept = {"states": tmp_path / "states"} if cached else {}
    with pytest.raises(NonFiniteError, match="agent critic, states of the role texts"):
        train(with_broken_critic(team), links, tmp_path / "metrics", **kept)
    entries = [] if not cached else [e for e in (tmp_path / "states").iterdir() if e.is_dir()]
    assert len(entries) == cached  # the planner's


def test_embeddings_that_are_not_finite_name_their_agent(team_and_links, tmp_path, monkeypatch):
    """Texts that no agent reads: only the links have the token, as a target."""
    team, links = team_and_links
    tokenizer = team.members["critic"].tokenizer
    token = tokenizer("plan about", add_special_tokens=False)["input_ids"][-1]
    healthy = {role: token_states.text_states for role in ROLES}
    monkeypatch.setattr(
        inner_loop,
        "text_states",
        lambda _, role, *rest, **options: healthy[role](team, role, *rest),
    )
    message = f"repeat 1, .* link .*critic: agent critic, input embeddings: .*'token {token}'"
    with pytest.raises(NonFiniteError, match=message):
        config = dataclasses.replace(CONFIG, batch_size=64)  # large enough to draw every token
        train(with_broken_critic(team, token), links, tmp_path / "metrics", config)


def test_a_link_that_diverges_is_named(team_and_links, tmp_path):
    team, links = team_and_links
    config = dataclasses.replace(CONFIG, learning_rate=1e38, warmup_steps=0, noise=0.0)
    message = r"inner loop, repeat 1, inner link planner, step \d: loss (nan|inf), gradient norm"
    with pytest.raises(DivergedError, match=message):
        train(team, links, tmp_path / "metrics", config)
    assert not (tmp_path / "metrics").exists()
