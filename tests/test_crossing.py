"""Which entities cross an outer link."""

import json

import jax
import numpy as np
from blind_pair import SET, saved, team_of

from experiments.real_agents import crossing
from rmas_jax.models.plain_text import encode_plain
from rmas_jax.team import start_links


def test_fitted_links_carry_entities_and_constants_none(monkeypatch, tmp_path, capsys):
    """The links of the first file are fitted to these, those of the second are but a bias."""
    team, words = team_of(2), ["red", "green", "gate", "unheardof"]
    texts = {role: [" red green gate"] for role in team.agents}
    links = start_links(team, start="aligned", key=jax.random.key(0), texts=texts)
    broken = jax.tree.map(np.zeros_like, links)
    for of in broken.outer.values():
        of["ln_target"]["bias"] = np.random.default_rng(0).standard_normal(
            of["ln_target"]["bias"].shape, np.float32
        )
    monkeypatch.setattr(crossing, "pool", lambda kind, split: words if kind == "words" else [])
    ids = crossing.shared_entities(team, ("planner", "solver"), "words", "train")
    for role, column in zip(("planner", "solver"), ids.T, strict=True):
        tokens = encode_plain(team.members[role].tokenizer, [f" {word}" for word in words])
        assert column.tolist() == [of[0] for of in tokens if len(of) == 1]
    assert 2 <= len(ids) < 4

    options = ["--config", crossing.CONFIG, "--out", str(tmp_path), *SET]
    assert crossing.main([*options, "--links", *saved(tmp_path, links, broken)]) == 0
    report = json.loads((tmp_path / crossing.REPORT).read_text())
    shares = {(row["edge"], row["links"]): row["right"] for row in report["rows"]}
    for edge in ("planner->solver", "solver->planner"):
        assert shares[edge, "file 0"] == 1 and shares[edge, "file 1"] <= 1 / len(ids)
    assert "| planner->solver | words | train | file 1 | " in capsys.readouterr().out
    assert crossing.main([*options, "--links", str(tmp_path / "none")]) == 2
