"""Run directories made up for tests of reports: rows in which every claim holds, and files."""

import json
import math

SPLITS = ("test", "test_unseen_entities")
N = 200
ITEMS_PER_LEVEL = 40
# Correct answers of N by round, in a run in which every claim holds.
CORRECT = {
    "recursive_mas": {1: 60, 2: 120, 3: 180, 4: 184},
    "aligned_links": {1: 20, 2: 30, 3: 30, 4: 32},
    "recursive_text": {1: 58, 2: 118, 3: 176, 4: 180},
    "truncated_text": {1: 30, 2: 50, 3: 60, 4: 62},
    "no_latents": {1: 10, 2: 12, 3: 10, 4: 14},
    "shuffled_latents": {1: 4, 2: 3, 3: 5, 4: 6},
    "single_planner": {1: 40},
    "single_critic": {1: 0},
    "single_solver": {1: 50},
}


def result_row(method, rounds, split, seed, correct, /, **changes):
    is_text = "text" in method
    row = {
        "method": method,
        "rounds": rounds,
        "latent_steps": 0 if is_text or method == "no_latents" else 4,
        "benchmark": "relay",
        "split": split,
        "n": N,
        "correct": correct,
        "accuracy": correct / N,
        "ci_low": 0.0,
        "ci_high": 1.0,
        "tokens_per_item": 24.0 * rounds if is_text else 8.0,
        "steps_per_item": 30.0 * rounds if is_text else 8.0 + 12 * rounds,
        "flops_per_item": 1e10 * rounds if is_text else 3e9 + 1e9 * rounds,
        "trained_parameters": 12_345 * (method in ("recursive_mas", "aligned_links")),
        "seconds_per_item": 0.5 * rounds if is_text else 0.1 + 0.1 * rounds,
        "seed": seed,
    }
    return row | changes


def result_rows(seeds=(0,)):
    return [
        result_row(method, rounds, split, seed, correct + (seed if correct else 0))
        for seed in seeds
        for split in SPLITS
        for method, by_rounds in CORRECT.items()
        for rounds, correct in by_rounds.items()
    ]


def change(rows, method, *, rounds=None, split="test", **changes):
    """The rows with columns of one method changed; accuracy follows `correct`."""
    changed = []
    for row in rows:
        hit = row["method"] == method and row["split"] == split
        if hit and rounds in (None, row["rounds"]):
            row = row | changes
            row["accuracy"] = row["correct"] / row["n"]
        changed.append(row)
    assert changed != rows
    return changed


def items_of(row):
    """Items of a row, easy ones first; as many of them are right as the row says."""
    shared = {column: row[column] for column in ("method", "rounds", "benchmark", "split", "seed")}
    return [
        {
            **shared,
            "id": f"{row['split']}-{number}",
            "question": "Where | does <it> end?",
            "prediction": "Ash Bay",
            "gold": "Ash Bay",
            "correct": number < row["correct"],
            "difficulty": 1 + number // ITEMS_PER_LEVEL,
            "tokens": 8,
            "steps": 20,
            "flops": 4e9,
        }
        for number in range(row["n"])
    ]


def item_rows(seeds=(0,)):
    """Items of three methods at one and two rounds."""
    kept = ("recursive_mas", "recursive_text", "aligned_links")
    rows = [r for r in result_rows(seeds) if r["method"] in kept and r["rounds"] < 3]
    return [item for row in rows for item in items_of(row)]


def metric_rows():
    rows = [
        {"loop": "inner", "series": agent, "step": step, "loss": math.exp(-step / 40)}
        for agent in ("planner", "critic", "solver")
        for step in range(0, 200, 2)
    ]
    return rows + [
        {"loop": "outer", "series": "links", "step": s, "loss": 2 / (1 + s), "accuracy": s / 99}
        for s in range(100)
    ]


def gradient_rows():
    return [
        {"link": link, "round": number, "channel": channel, "norm": norm}
        for link in ("planner->critic", "critic->solver")
        for number in (1, 2, 3)
        for channel, norm in (("latent", 0.5), ("softmax", 1e-5 * (number - 1)))
    ]


def write_run(directory, seeds=(0,), without=()):
    contents = {
        "results.json": json.dumps(result_rows(seeds)),
        "items.jsonl": "".join(json.dumps(row) + "\n" for row in item_rows(seeds)),
        "metrics.jsonl": "".join(json.dumps(row) + "\n" for row in metric_rows()),
        "gradients.json": json.dumps(gradient_rows()),
        "environment.json": json.dumps({"jax": "0.10.2", "cpus": 2, "note": "<b>&"}),
        "config.yaml": "seed: 0\nname: <script>alert(1)</script>\n",
        "timings.json": json.dumps({"train": 100.0, "evaluate": 50.0}),
    }
    directory.mkdir(exist_ok=True)
    for name, text in contents.items():
        if name not in without:
            (directory / name).write_text(text)
    return directory
