"""An audit on a tiny team: conditions, protocol, resuming; and effects by their definition."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
from made_runs import write_run
from teams import build_team

from rmas_jax.config import AuditConfig, ConfigError
from rmas_jax.data import Example
from rmas_jax.evaluation import audit as module
from rmas_jax.evaluation import driver
from rmas_jax.evaluation.answerer import Answerer
from rmas_jax.evaluation.answering import Answering
from rmas_jax.evaluation.audit import audit
from rmas_jax.evaluation.audit_protocol import Condition, check_audit, conditions, protocol
from rmas_jax.evaluation.comparisons import seed_effect
from rmas_jax.evaluation.driver import LoadedBenchmark
from rmas_jax.evaluation.effects import EFFECTS, Place, effects, seed_effects
from rmas_jax.evaluation.graders import Grader
from rmas_jax.evaluation.graders.verdict import compared
from rmas_jax.evaluation.methods import LATENT, METHODS, NO_LATENTS
from rmas_jax.evaluation.metrics import paired_difference
from rmas_jax.host.preemption import PreemptedError
from rmas_jax.models.generation import SamplingConfig
from rmas_jax.reporting.audit import AuditRecord, read_audit, render, write_audit
from rmas_jax.reporting.report import write_report
from rmas_jax.reporting.tables import ENDINGS
from rmas_jax.run_files import AuditFiles
from rmas_jax.topology import load_topology

ROUNDS, LATENT_STEPS, BATCH = 2, 2, 2
WORDS = ("a", "b", "the", "parcel", "from")
ITEMS = [Example(word, f"{word} does ?", word) for word in WORDS]  # the last batch has one too few
CONFIG = AuditConfig(draws=2)


def compare_lengths(text, example):
    """Right or wrong, as good as at random but the same every time."""
    return compared(text or None, (len(text) + len(example.answer)) % 2 == 0)


def test_conditions_are_all_messages_at_all_places():
    topology = load_topology("sequential")
    found = conditions(AuditConfig(draws=2), topology, rounds=3)
    assert found[0] == Condition("true") and len(set(map(str, found))) == len(found)
    edges = {"planner->critic", "critic->solver", "solver->planner"}
    assert {c.edge for c in found} == edges | {None}
    of_other = [c for c in found if c.message == "other"]
    # Everywhere, 3 edges, 3 rounds, 8 cells (no feedback arrives in the first round); two draws.
    assert len(of_other) == 2 * (1 + 3 + 3 + 8)
    assert len([c for c in found if c.message == "zeros"]) == 1 + 3 + 3 + 8
    assert Condition("other", "solver->planner", 1) not in found
    few = conditions(AuditConfig(messages=("none",), scopes=("edge",)), topology, rounds=1)
    assert [str(c) for c in few] == ["true", "none planner->critic", "none critic->solver"]


def words(team, temperature=0.0, items=ITEMS):
    """A benchmark of a word a question."""
    return LoadedBenchmark(
        "words",
        "1",
        Grader("lengths", "lengths of texts", compare_lengths),
        {"test": items},
        {role: member.template for role, member in team.members.items()},
        Answering(max_tokens=3, sampling=SamplingConfig(temperature=temperature)),
    )


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """Function that audits the tiny team into a directory."""
    team, links = build_team(tmp_path_factory.mktemp("team"), LATENT_STEPS)

    def run(directory, config=CONFIG, *, temperature=0.0, seeds=(3,), links_digest="of links"):
        benchmark = words(team, temperature)
        declared = protocol(
            config, [benchmark], team.system.topology, rounds=ROUNDS, seeds=seeds, links_from="x"
        )
        return audit(
            team,
            links,
            [benchmark],
            directory,
            declared,
            batch_size=BATCH,
            links_digest=links_digest,
            progress=False,
        )

    run.team, run.links = team, links
    return run


@pytest.fixture(scope="module")
def finished(audited, tmp_path_factory):
    directory = tmp_path_factory.mktemp("audit")
    return directory, audited(directory)


def lines(directory):
    return [json.loads(x) for x in AuditFiles(directory).items.read_text().splitlines()]


def texts(directory, condition):
    return {i["id"]: i["text"] for i in lines(directory) if i["method"] == str(condition)}


def test_every_condition_answers_every_question(finished, audited):
    directory, rows = finished
    expected = conditions(AuditConfig(draws=2), audited.team.system.topology, rounds=ROUNDS)
    assert [row["method"] for row in rows] == list(map(str, expected))
    for condition in expected:
        assert texts(directory, condition).keys() == set(WORDS)


def test_messages_matter_and_those_that_do_not_arrive_do_not(finished):
    directory, _ = finished
    true = texts(directory, Condition("true"))
    for message in ("none", "zeros", "noise", "own", "other"):
        assert texts(directory, Condition(message)) != true
    draws = [texts(directory, Condition("other", draw=draw)) for draw in range(2)]
    assert draws[0] != draws[1]


def test_the_plain_evaluation_is_the_true_condition(finished, audited):
    answer = Answerer(audited.team, audited.links, rounds=ROUNDS, answering=Answering(max_tokens=3))
    found = {item.id: answer([item.question])[0].text for item in ITEMS}
    assert found == texts(finished[0], Condition("true"))


def test_conditions_cost_what_the_driver_counts(finished, audited):
    team, links, how = audited.team, audited.links, Answering(max_tokens=3)
    found = {(i["method"], i["id"]): i for i in lines(finished[0])}
    for message, method in (("true", LATENT), ("none", NO_LATENTS)):
        answer = Answerer(team, links, METHODS[method], ROUNDS, how)
        for item in ITEMS:
            (plain,), ours = answer([item.question]), found[message, item.id]
            assert ours["text"] == plain.text
            assert [ours[x] for x in ("steps", "flops")] == [plain.steps, plain.flops]
    for item in ITEMS:
        assert found["own", item.id]["steps"] == LATENT_STEPS + found["own", item.id]["tokens"]


def test_the_protocol_is_declared_first_and_kept(audited, finished, tmp_path, monkeypatch):
    directory, _ = finished
    declared = json.loads(AuditFiles(directory).protocol.read_text())
    assert declared["margin"] == 0 and declared["benchmarks"]["words"]["items"] == {"test": 5}

    def killed(*_, **__):
        raise PreemptedError("killed")

    monkeypatch.setattr(module, "record_messages", killed)
    with pytest.raises(PreemptedError):
        audited(tmp_path)
    assert AuditFiles(tmp_path).protocol.read_text() == AuditFiles(directory).protocol.read_text()
    for other, fault in (
        ({"config": AuditConfig(draws=2, margin=0.1)}, "declares another audit"),
        ({"seeds": (4,)}, "declares another audit"),
        ({"links_digest": "other"}, "names other links"),
    ):
        with pytest.raises(ConfigError, match=fault):
            audited(directory, **other)


def test_every_seed_is_audited_where_answers_are_drawn(audited, tmp_path):
    config = AuditConfig(messages=("other",), scopes=("all",), draws=1)
    drawn = audited(tmp_path / "drawn", config, temperature=1.0, seeds=(5, 6, 7))
    expected = [(seed, name) for seed in (5, 6, 7) for name in ("true", "other.0")]
    assert [(row["seed"], row["method"]) for row in drawn] == expected
    texts_of = {
        seed: [i["text"] for i in lines(tmp_path / "drawn") if i["seed"] == seed]
        for seed in (5, 6, 7)
    }
    assert texts_of[5] != texts_of[6] != texts_of[7]
    report = write_audit(tmp_path / "drawn").read_text()
    assert "| effect | seed 5 | seed 6 | seed 7 | all |" in report
    assert "on 5 questions and 3 seeds" in report
    assert "Seeds 5, 6, 7 are a random effect." in report
    greedy = audited(tmp_path / "greedy", config, seeds=(5, 6, 7))
    assert [row["seed"] for row in greedy] == [5, 5]
    report = write_audit(tmp_path / "greedy").read_text()
    assert "Seed 5: intervals are over questions" in report
    assert "greedy answers of one training are alike for all" in report


def test_a_stopped_audit_resumes_to_the_same_files(audited, finished, tmp_path, monkeypatch):
    calls = iter([None] * 9 + [PreemptedError("now")] + [None] * 1_000)

    def due(_):
        if error := next(calls):
            raise error

    monkeypatch.setattr(driver, "end_if_due", due)
    with pytest.raises(PreemptedError):
        audited(tmp_path)
    assert len(lines(tmp_path)) < len(lines(finished[0]))
    audited(tmp_path)
    assert lines(tmp_path) == lines(finished[0])


def test_bad_audits_are_refused(audited):
    same = [Example(str(i), f"{i} ?", "x") for i in range(3)]
    with pytest.raises(ConfigError, match="differ in question and gold answer"):
        check_audit(("other",), [words(audited.team, items=same)], latent_steps=1)
    with pytest.raises(ConfigError, match="at least 2 for the moments of noise"):
        check_audit(("noise",), [words(audited.team, items=ITEMS[:1])], latent_steps=1)
    programs = [Example(str(i), f"{i} ?", "") for i in range(3)]  # graded by tests
    for messages, items in ((("own",), same), (("other", "noise"), programs)):
        check_audit(messages, [words(audited.team, items=items)], latent_steps=1)


def test_the_report_names_protocol_effects_and_decision(finished):
    directory, _ = finished
    text = write_audit(directory).read_text()
    for part in ("SHA-256", "content-attributable gain", "| own | the receiver's own M thoughts"):
        assert part in text
    for effect in EFFECTS:
        title = f"{effect.capitalize()} by edge and round of arrival"
        table = text.split(title)[1].split("Holm's correction")[0]
        assert table.count("->") == 3 and table.count("[") == 5  # no feedback in the first round
    assert write_audit(directory).read_text() == text


def test_endings_and_costs_are_beside_the_answers(finished):
    directory, _ = finished
    report = write_audit(directory).read_text()
    tables = {
        title: [
            row.strip("| ").split(" | ")
            for row in report.split(title)[1].split("\n\n")[1].splitlines()
        ]
        for title in ("by message, on all edges", "ended with messages at single places")
    }
    of_message, elsewhere = tables.values()
    row = next(
        dict(zip(of_message[0], cells, strict=True)) for cells in of_message if cells[0] == "other"
    )
    found = [i for i in lines(directory) if i["method"] in ("other.0", "other.1")]
    assert row["answers"] == "10"
    assert row[ENDINGS["unparsed"]] == str(sum(i["outcome"] == "unparsed" for i in found))
    assert row[ENDINGS["at_limit"]] == str(sum(i["at_limit"] for i in found)) != "0"
    assert row[ENDINGS["crashed"]] == row[ENDINGS["timeout"]] == "0"
    assert float(row["steps"]) == pytest.approx(np.mean([i["steps"] for i in found]), rel=0.01)
    own = {cells[0]: cells for cells in of_message}["own"]
    assert float(own[-1]) < float(row["GFLOP"])
    cut = [i["at_limit"] for i in lines(directory) if i["method"] == "none critic->solver round 2"]
    cells = {tuple(cells[:2]): cells for cells in elsewhere}["critic->solver round 2", "none"]
    named = dict(zip(elsewhere[0], cells, strict=True))
    assert named["answers"] == "5" and int(named[ENDINGS["at_limit"]]) == sum(cut) > 0


def test_the_report_of_a_run_has_the_audit_that_it_finished(finished, tmp_path):
    run = write_run(tmp_path / "run")
    shutil.copytree(finished[0], run / "audit")
    (run / "audit" / "report.md").unlink(missing_ok=True)
    write_report(run)
    assert "What the messages carry" not in (run / "report.md").read_text()  # not finished
    write_audit(run / "audit")
    write_report(run)
    for name in ("report.md", "report.html"):
        text = (run / name).read_text()
        assert "What the messages carry" in text and "words test: Effects on all edges" in text
        assert "SHA-256" in text
    of_audit = {path.stem for path in (run / "tables").iterdir() if path.stem.startswith("audit")}
    cells = [f"cells-{effect.replace(' ', '-')}" for effect in EFFECTS]
    kinds = ("messages", "effects", "edge", "round", *cells, "endings")
    assert of_audit == {f"audit-{kind}-words-test" for kind in kinds}
    own = (run / "audit" / "report.md").read_text()
    for table in re.findall(r"\*\*words test: .*\*\*", own):
        assert table in (run / "report.md").read_text()


def graded(conditions_of, correct, seed=0):
    """Items of conditions: name -> whether each question is answered correctly."""
    return [
        {"method": name, "id": i, "seed": seed, "correct": bool(right)}
        for name in conditions_of
        for i, right in enumerate(correct[name])
    ]


def test_effects_are_differences_that_add_up():
    named = {str(c): c for c in (Condition("true"), Condition("none"), Condition("own"))}
    named |= {str(c): c for c in (Condition("other", draw=d) for d in range(2))}
    random = np.random.default_rng(0)
    chances = zip(named, (0.9, 0.2, 0.6, 0.4, 0.5), strict=True)
    correct = {name: random.random(200) < chance for name, chance in chances}
    described = {name: c._asdict() for name, c in named.items()}
    found = {e.name: e for e in effects(graded(named, correct), described)}
    assert list(found) == [name for name in EFFECTS if "zeros" not in name and "noise" not in name]
    others = np.mean([correct["other.0"], correct["other.1"]])
    expected = {
        "total effect": correct["true"].mean() - correct["none"].mean(),
        "effect of a message": others - correct["none"].mean(),
        "content-attributable gain": correct["true"].mean() - others,
        "own-message gap": correct["true"].mean() - correct["own"].mean(),
    }
    for name, value in expected.items():
        assert found[name].pair.difference == pytest.approx(value), name
        assert found[name].pair.items == 200
    total, message, content = (found[n].pair.difference for n in list(expected)[:3])
    assert total == pytest.approx(message + content)
    plain = paired_difference(correct["true"], correct["none"])
    assert found["total effect"].pair == plain
    assert found["total effect"].adjusted == plain.p_value  # a family of one


def test_edges_are_a_family():
    named = {"true": Condition("true")}
    named |= {str(c): c for c in (Condition("other", edge) for edge in ("a->b", "b->c", "c->a"))}
    random = np.random.default_rng(0)
    correct = {name: random.random(50) < 0.6 for name in named}
    described = {name: c._asdict() for name, c in named.items()}
    found = effects(graded(named, correct), described)
    smallest = min(found, key=lambda e: e.pair.p_value)
    assert smallest.adjusted == pytest.approx(min(1, 3 * smallest.pair.p_value))
    assert {e.place for e in found} == {Place(e, None) for e in ("a->b", "b->c", "c->a")}


def test_seeds_are_a_random_effect_and_draws_are_not():
    """Against `seed_effect` on means over draws, put together by hand."""
    named = {str(c): c for c in (Condition("true"), *(Condition("other", draw=d) for d in (0, 1)))}
    described = {name: c._asdict() for name, c in named.items()}
    random = np.random.default_rng(0)
    items, differences = [], []
    for seed, chance in enumerate((0.9, 0.7, 0.5)):
        correct = {n: random.random(40) < (chance if n == "true" else 0.1) for n in named}
        items += graded(named, correct, seed)
        differences.append(correct["true"] - (correct["other.0"] * 0.5 + correct["other.1"] * 0.5))
    found = seed_effects(items, described)
    assert found == {"content-attributable gain": seed_effect(differences)}
    assert found["content-attributable gain"].by_seed == tuple(d.mean() for d in differences)
    # Seeds differ, so the interval is wider than the one over questions alone.
    (plain,) = (e.pair for e in effects(items, described) if e.name == "content-attributable gain")
    low, high = found["content-attributable gain"].interval
    assert high - low > 1.5 * (plain.interval.high - plain.interval.low)
    assert seed_effects([i for i in items if i["seed"]], described) == {}  # two seeds


def test_the_report_pools_seeds_of_one_audit_and_no_others(finished):
    directory, _ = finished
    record = read_audit(directory)

    def of_seed(seed):
        declared = dict(record.declared) | {"seeds": {"words": [seed]}, "links_from": f"{seed}"}
        rows = [{**row, "seed": seed} for row in record.rows]
        # One more right answer to the true message with every seed.
        items = [
            {**item, "seed": seed, "correct": i < seed if item["method"] == "true" else False}
            for i, item in enumerate(record.items)
        ]
        return AuditRecord(declared, f"digest {seed}", f"links {seed}", rows, items)

    text = render([of_seed(seed) for seed in (1, 2, 3)])
    assert "(SHA-256 digest 1, of the links links 1; digest 2, of the links links 2; " in text
    assert "on 5 questions and 3 seeds" in text
    gain = next(x for x in text.splitlines() if x.startswith("| content-") and "+60.0" in x)
    assert "| +20.0 | +40.0 | +60.0 | +40.0 [" in gain
    answers = next(x for x in text.splitlines() if x.startswith("| true |"))
    assert "| 15 | 40.0 [" in answers  # 5 questions with 3 seeds
    others = next(x for x in text.splitlines() if x.startswith("| other |"))
    assert "| 30 | 0.0 [" in others  # and with two draws each
    assert "seeds as a random effect" not in render([record])
    more = dataclasses.replace(record, declared=dict(record.declared) | {"draws": 9})
    with pytest.raises(ValueError, match="must declare the same, but for seeds and trainings"):
        render([record, more])
    with pytest.raises(ValueError, match=r"must have seeds of their own, got \[3, 3\]"):
        render([record, record])
