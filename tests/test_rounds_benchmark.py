"""The benchmark of rounds at a tiny size: both sides agree, and its report is complete."""

from __future__ import annotations

import json
import re

import jax
import jax.numpy as jnp
import pytest

from experiments.benchmarks import rounds, scopes
from rmas_jax.planning.hlo import program_cost


@pytest.mark.slow
def test_both_sides_agree_and_every_part_has_its_rows(tmp_path, capsys):
    arguments = ["--shape", "tiny", "--repeats", "1", "--batch", "2", "--tokens", "3"]
    parts = [
        "--parts",
        "steps",
        "answer",
        "rounds",
        "--roles",
        "solver",
        "--unrolled",
        "--upstream",
    ]
    assert rounds.main([*arguments, *parts, "--out", str(tmp_path)]) == 0
    gaps = re.findall(
        r"of ([\w, ]+): relative differences to torch ([\d.e+-]+)", capsys.readouterr().err
    )
    names = ["torch", "scanned", "unrolled"]
    with_upstream = ["torch", "torch, no cache", *names[1:]]
    assert [name for name, _ in gaps] == names + with_upstream
    assert max(float(gap) for _, gap in gaps) < 1e-5
    report = json.loads((tmp_path / "rounds.json").read_text())
    parts = [(row["part"], row["contender"]) for row in report["rows"]]
    assert parts == [
        (part, contender)
        for part in ("steps of the solver", "answer", "rounds")
        for contender in (with_upstream if part == "rounds" else names)
    ]
    assert report["setting"]["bandwidth"] > 0
    assert all(row["floor_s"] > 0 and row["flops"] > 0 for row in report["rows"])
    assert all(row["practical_s"] > 0 for row in report["rows"])
    assert "| rounds | 2 | unrolled |" in (tmp_path / "rounds.md").read_text()


@pytest.mark.parametrize("wrong", [["--tokens", "1"], ["--repeats", "0"], ["--batch", "8", "0"]])
def test_numbers_out_of_range_are_one_message(tmp_path, capsys, wrong):
    with pytest.raises(SystemExit) as ended:
        rounds.main(["--out", str(tmp_path), *wrong])
    assert ended.value.code == 2
    assert f"{wrong[0]}: must be a whole number of at least" in capsys.readouterr().err


def test_slopes_of_costs_are_those_of_a_line():
    def row(rounds_, latents):
        turns = 3 * rounds_ - 1
        seconds = 0.01 + 0.002 * turns + 0.0005 * turns * (latents - 1)
        return {
            "batch": 1, "rounds": rounds_, "latents": latents,
            "median_s": seconds, "floor_s": seconds / 2,
        }  # fmt: skip

    rows = [row(r, m) for r in (1, 2, 3) for m in (16, 32)]
    text = " ".join(rounds.fitted(rows))
    assert "2.00 ms a turn (floor 1.00) and 0.500 ms a latent step (floor 0.250)" in text
    assert "more than 0.0% from it" in text
    rows[-1]["median_s"] *= 2
    assert "more than 0.0% from it" not in " ".join(rounds.fitted(rows))


def test_scopes_have_all_of_a_program():
    def program(x):
        with jax.named_scope("think"):
            x = x @ x
            with jax.named_scope("link"):
                x = x @ x
        return x @ x

    text = jax.jit(program).lower(jnp.ones((8, 8))).compile().as_text()
    found = {of.name: of.flops for of in scopes.by_scope(text, (), trips=1)}
    assert found["think"] == found["think/link"] == found[scopes.OTHER] == 2 * 8**3
    assert sum(found.values()) == program_cost(text).flops
