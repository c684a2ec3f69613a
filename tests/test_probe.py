"""A linear probe of the planner's thoughts."""

import json

import jax
import numpy as np
import pytest
from blind_pair import PERSONS, SET, links_of, saved, team_of

from experiments.real_agents import probe
from experiments.real_agents.curve_tables import probe_table
from experiments.real_agents.options import digests


def test_a_probe_finds_what_lies_in_thoughts_and_nothing_else():
    """Thoughts that hold the first person and the second place, of other entities in test."""
    rng = np.random.default_rng(0)
    spread = rng.standard_normal((10, 14))

    def split(n):
        entities = rng.standard_normal((n, 3, 2, 5))
        told = np.concatenate([entities[:, 0, 0], entities[:, 1, 1]], axis=1)
        noise = 0.01 * rng.standard_normal((n, 2, 7))
        return probe.Probed((told @ spread).reshape(n, 2, 7) + noise, entities)

    shares = probe.found_shares(split(400), split(100), split(100), [0, 1])
    found = np.zeros((3, 2), bool)
    found[0, 0] = found[1, 1] = True
    assert (shares[found] > 0.9).all() and (shares[~found] < 0.55).all()


def test_a_probe_reads_the_thoughts_with_the_links_of_each_seed(tmp_path, capsys, monkeypatch):
    """The first thought is there before any link; the others are those of the links."""
    team = team_of(2)
    links = links_of(team, 0)
    paths = saved(tmp_path, links, jax.tree.map(lambda x: 2 * x, links))
    thoughts = []

    real = probe.found_shares

    def found_shares(*splits_and_features):
        thoughts.append([split.thoughts for split in splits_and_features[:3]])
        return real(*splits_and_features)

    monkeypatch.setattr(probe, "found_shares", found_shares)
    options = ["--out", str(tmp_path), "--links", *paths, *SET, "--count", "2"]
    options += ["--items", "8", "--held-out", "4", "--batch", "4"]
    assert probe.main(options) == 0
    report = json.loads((tmp_path / probe.REPORT).read_text())
    assert report["settings"]["links"] == digests(paths)
    keys = [(row["seed"], row["thoughts"], row["pair"], row["entity"]) for row in report["rows"]]
    assert len({*keys}) == len(keys) == 2 * 2 * PERSONS * 2
    assert {row["n"] for row in report["rows"]} == {4}
    assert "| 1 | first |" in probe_table(report["rows"]).to_markdown()
    one, other = thoughts[0], thoughts[2]
    for a, b, n in zip(one, other, (8, 4, 4), strict=True):
        assert a.shape == (n, 2, team.agents["planner"].width)
        np.testing.assert_allclose(a[:, 0], b[:, 0], rtol=1e-5)
        assert np.abs(a[:, 1] - b[:, 1]).max() > 1e-3
    assert probe.main(options) == 0 and len(thoughts) == 4  # nothing is measured again
    with pytest.raises(SystemExit):
        probe.main([*options, "--items", "6"])
    assert "--batch must divide --items (6), got 4" in capsys.readouterr().err
