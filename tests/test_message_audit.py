"""The study of messages: its controls."""

import hashlib
import json

import jax
import numpy as np
import pytest
from teams import build_team

from experiments.embedded import lone_solver
from experiments.embedded.training import exact_share
from experiments.studies.message_audit import CLAIMS, constant_links, main, summary, write
from rmas_jax.agents.agent import load_agent
from rmas_jax.data import relay
from rmas_jax.evaluation.audit_protocol import declare
from rmas_jax.links import apply_link
from rmas_jax.models import load_tokenizer
from rmas_jax.reporting.audit import AuditRecord
from rmas_jax.run_files import AuditFiles


def test_constant_links_send_the_same_whatever_they_read(tmp_path):
    team, links = build_team(tmp_path)
    constant = constant_links(links)
    for name, link in team.system.outer.items():
        read = jax.random.normal(jax.random.key(0), (2, link.in_width))
        one, other = apply_link(link, constant.outer[name], read)
        np.testing.assert_array_equal(one, other)
        one, other = apply_link(link, links.outer[name], read)
        assert np.abs(one - other).max() > 0.1


def test_the_lone_answerers_questions_have_its_gate_alone(tmp_path):
    world = relay.make_world()
    folder = lone_solver.write_questions(tmp_path / "questions")
    seen = set()
    for split, count in lone_solver.SIZES.items():
        rows = [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]
        assert len(rows) == count and not seen & {row["id"] for row in rows}
        seen |= {row["id"] for row in rows}
        for row in rows:
            phrase = tuple(map(int, row["id"].split("-")))
            assert world.text(phrase) in row["question"]
            blue = [book[w] for book, w in zip(world.books["solver"], phrase, strict=True)]
            assert relay.parse_answer(row["answer"]) == world.text(blue)
            assert row["draft"][0] == row["answer"] != row["plan"][0]
    with pytest.raises(ValueError, match="split must be one of train, validation, test, got dev"):
        lone_solver.phrases("dev")


def test_the_shipped_solver_reads_its_message_where_the_lone_one_must_not(tmp_path):
    """It needs the training: with random messages it answers as they say."""
    writer = lone_solver.LoneWriter(load_tokenizer("embedded/solver"), 0, "validation")
    shipped = exact_share(load_agent("embedded/solver"), writer.prompts(64))
    assert shipped < 0.5


def record(seed, right):
    declared = {
        "question": "?",
        "rounds": 2,
        "seeds": {"b": [seed]},
        "links_from": str(seed),
        "benchmarks": {"b": {}},
        "margin": 0.0,
        "confidence": 0.95,
        "conditions": {
            name: {"message": message, "edge": None, "round": None, "draw": 0}
            for name, message in (("true", "true"), ("other.0", "other"), ("none", "none"))
        },
    }
    common = {"benchmark": "b", "split": "test", "rounds": 2, "seed": seed}
    rows = [{**common, "method": name} for name in declared["conditions"]]
    items = [
        {
            **common,
            **{"method": name, "id": i, "correct": i < right[name]},
            **{"outcome": "wrong", "at_limit": False, "answer_retry": False},
            **{"steps": 1, "flops": 1e9},
        }
        for name in declared["conditions"]
        for i in range(10)
    ]
    return AuditRecord(declared, "d", "l", rows, items)


RIGHTS = {
    "trained": {"true": 9, "other.0": 0, "none": 0},
    "constant": {"true": 0, "other.0": 0, "none": 0},
    "lone": {"true": 9, "other.0": 9, "none": 9},
}


def test_the_summary_tells_use_from_accuracy(tmp_path):
    records = {name: [record(seed, RIGHTS[name]) for seed in (0, 1, 2)] for name in CLAIMS}
    lines = {line.split(" | ")[0]: line for line in summary(records).splitlines()}
    assert "| 3 | 90.0 | +90.0" in lines["| trained"]
    assert "| 3 | 0.0 | +0.0 [-27.8, +27.8] | +0.0 [-27.8, +27.8] |" in lines["| constant"]
    assert "| 3 | 90.0 | +0.0 [-27.8, +27.8] | +0.0 [-27.8, +27.8] |" in lines["| lone"]
    write(records["lone"], tmp_path / "lone")
    assert "No use of content was found" in (tmp_path / "lone" / "README.md").read_text()


def test_the_report_alone_is_written_from_finished_audits(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    seeds = (3, 4)
    records = {name: [record(seed, RIGHTS[name]) for seed in seeds] for name in CLAIMS}
    digests = {}
    for name, of_team in records.items():
        for seed, found in zip(seeds, of_team, strict=True):
            files = AuditFiles(tmp_path / "runs" / f"study-{name}-{seed}" / "audit")
            digests[f"{name}/protocol-{seed}.json"] = declare(files, found.declared)
            files.links.write_text("l\n")
            files.results.write_text(json.dumps(found.rows))
            files.items.write_text("".join(json.dumps(item) + "\n" for item in found.items))
    assert main(["--out", "study", "--seeds", "3", "4", "--report-only"]) == 0
    assert (tmp_path / "study" / "README.md").read_text() == summary(records)
    for path, digest in digests.items():
        file = tmp_path / "study" / path
        assert hashlib.sha256(file.read_bytes()).hexdigest() == digest
        assert digest in (file.parent / "README.md").read_text()
    assert len(set(digests.values())) == len(seeds)  # the teams of this test declare the same
    assert main(["--out", "study", "--seeds", "5", "--report-only"]) == 2
    assert "study-trained-5" in capsys.readouterr().err
