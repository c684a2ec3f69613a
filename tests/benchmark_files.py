"""Small files of the shipped benchmarks in the formats of their sources, with rows of our own.

`write_benchmark(name, folder)` gives the path of a benchmark's YAML file: the shipped one with its
data in the folder, laid out as on the hub, and with as many items as there are rows.
"""

import base64
import csv
import json
import pickle
import zlib

import pyarrow
import pyarrow.parquet
import yaml

from rmas_jax.evaluation import benchmarks

# Benchmark -> its files below the data set's folder.
FILES = {
    "MATH-500": {
        "test.jsonl": [
            {
                "problem": rf"What is $\frac{{{i}}}{{2}} + 1$?",
                "solution": rf"It is $\boxed{{\frac{{{i + 2}}}{{2}}}}$.",
                "answer": rf"\frac{{{i + 2}}}{{2}}",
                "subject": "Prealgebra",
                "level": i,
                "unique_id": f"test/prealgebra/{i}.json",
            }
            for i in (1, 3, 5)
        ]
    },
    "AIME-2025": {
        "test.jsonl": [
            {"problem": f"Find ${n} + 1$.", "answer": str(n + 1), "id": str(i)}
            for i, n in enumerate((69, 587, 15))
        ]
    },
    "AIME-2026": {
        "data/train-00000-of-00001.parquet": [
            {"problem_idx": i, "answer": 9 * i, "problem": f"Find $9 \\cdot {i}$."}
            for i in (1, 2, 3)
        ]
    },
    "GPQA-Diamond": {
        "gpqa_diamond.csv": [
            {
                "Pre-Revision Question": question,
                "Question": f"{question}\n",  # upstream's texts have spaces around them
                "Correct Answer": f"{right} ",
                "Incorrect Answer 1": "4 eV",
                "Incorrect Answer 2": "40 eV, or less",
                "Incorrect Answer 3": "400 eV",
                "Explanation": "By hand.",
                "Subdomain": "Physics (general)",
                "Record ID": record,
                "High-level domain": "Physics",
            }
            for record, question, right in (
                ("rec1", "Which energy has\nthe level?", "0.4 eV"),
                ("rec2", 'Which one is "lower", of two?', "0.04 eV"),
                ("rec3", "Which one is higher?", "4000 eV"),
            )
        ]
    },
    "MedQA": {
        "medqa.json": [
            {
                "idx": i,
                "question": f"{stem}\n{lines}\n\n{lines}",
                "options": lines.split("\n"),
                "answer": answer,
                "gen_text_store": "",
                "pid": str(i),
                "query": f"{stem}\n{lines}\nChoose the correct option.",
                "image": None,
            }
            for i, (stem, lines, answer) in enumerate(
                (
                    ("Which vitamin is it?", "A. Iron\nB. Zinc\nC. Retinol\nD. Iodine", "Retinol"),
                    ("Which organ is it?", "A. Liver\nB. Lung\nC. Skin\nD. Spleen", "Spleen"),
                    ("Which bone is it?", "A. Ulna\nB. Tibia\nC. Rib\nD. Radius", "Ulna"),
                )
            )
        ]
    },
    "MedQA-USMLE": {
        "phrases_no_exclude_test.jsonl": [
            {
                "question": f"Case {i}: which organ is it?",
                "answer": organs[i],
                "options": dict(zip("ABCD", organs, strict=True)),
                "meta_info": "step1",
                "answer_idx": "ABCD"[i],
                "metamap_phrases": ["case", "organ"],
            }
            for i, organs in enumerate([["Liver", "Lung", "Skin", "Spleen"]] * 3)
        ]
    },
    "MBPP+": {
        "data/test-00000-of-00001-d5781c9c51e02795.parquet": [
            {
                "task_id": task_id,
                "code": f"def {name}(a, b):\n    return {expression}",
                "prompt": f"Write a function to return {expression}.",
                "source_file": "Benchmark Questions Verification V2.ipynb",
                "test_imports": [],
                "test_list": [f"assert set({name}({a}, 2)) == set({t})" for a, t in asserts],
                "test": f"inputs = {[[a, 2] for a, _ in asserts]}\n"
                f"results = {[t for _, t in asserts]}\n"
                "for i, (inp, exp) in enumerate(zip(inputs, results)):\n"
                f"    assert {name}(*inp) == exp\n",
            }
            for task_id, name, expression, asserts in (
                (2, "repeated", "[a] * b", [(i, [i, i]) for i in range(4)]),
                (3, "counted", "[a + i for i in range(b)]", [(i, [i, i + 1]) for i in range(4)]),
                (4, "paired", "[a, b]", [(i, [i, 2]) for i in range(4)]),
            )
        ]
    },
    "LiveCodeBench-v6": {
        f"test{'' if number == 1 else number}.jsonl": [
            {
                "question_title": f"Sum {number}",
                "question_content": f"Add {number} to a number.",
                "platform": "leetcode" if number % 2 else "atcoder",
                "question_id": f"abc{number}_a",
                "contest_id": f"abc{number}",
                "contest_date": "2024-05-01T00:00:00",
                "starter_code": "class Solution:\n    def add(self, n: int) -> int:\n        "
                if number % 2
                else "",
                "difficulty": "easy",
                "public_test_cases": json.dumps(tests[:1]),
                "private_test_cases": base64.b64encode(
                    zlib.compress(pickle.dumps(json.dumps(tests[1:])))
                ).decode(),
                "metadata": json.dumps({"func_name": "add"} if number % 2 else {}),
            }
        ]
        for number in (1, 2, 6)
        for tests in [
            [
                {
                    "input": str(i),
                    "output": str(i + number),
                    "testtype": "functional" if number % 2 else "stdin",
                }
                for i in range(3)
            ]
        ]
    },
    "HotpotQA": {
        "distractor/validation-00000-of-00001.parquet": [
            {
                "id": f"5a8b57f25542995d1e6f13{i}",
                "question": f"In which city was the founder of Company {i} born?",
                "answer": f"the City of {city}",
                "type": "bridge",
                "level": "hard",
                "supporting_facts": {"title": [f"Company {i}", "Ada"], "sent_id": [0, 0]},
                "context": {
                    "title": [f"Company {i}", "Ada"],
                    "sentences": [["It was founded by Ada.", " It is old."], [f"Born in {city}."]],
                },
            }
            for i, city in enumerate(("Bergen", "Turin", "Porto"), start=70)
        ]
    },
    "Bamboogle": {
        "data/test-00000-of-00001-000000000000.parquet": [
            {"Question": f"Who led the country of the city {city}?", "Answer": leader}
            for city, leader in (("A", "Ada Lovelace"), ("B", "Bo Ek"), ("C", "Cy Young"))
        ]
    },
    "GSM8K": {
        "main/test-00000-of-00001.parquet": [
            {
                "question": f"Ada has {n} boxes of 2 eggs. How many eggs has she?",
                "answer": f"She has {n} * 2 = <<{n}*2={n * 2}>>{n * 2} eggs.\n#### {n * 2:,}",
            }
            for n in (3, 36, 1200)
        ]
    },
}


def write_data(name, folder):
    """Writes the files of a benchmark below the folder of its data set; returns that."""
    for file, rows in FILES[name].items():
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        elif path.suffix == ".csv":
            with open(path, "w", newline="", encoding="utf-8") as out:
                writer = csv.DictWriter(out, rows[0])
                writer.writeheader()
                writer.writerows(rows)
        elif path.suffix == ".json":
            path.write_text(json.dumps(rows, indent=1))
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def write_benchmark(name, folder):
    """Writes a benchmark's small files, and its YAML file for them; returns the latter's path."""
    data = write_data(name, folder / "data" / name)
    shipped = next(
        file
        for file in benchmarks.FOLDER.glob("*.yaml")
        if yaml.safe_load(file.read_text())["name"] == name
    )
    tree = yaml.safe_load(shipped.read_text())
    tree["data"] |= {"dataset": str(data), "revision": None}
    tree["items"] = {split: sum(map(len, FILES[name].values())) for split in tree["items"]}
    tree["checksum"] = None
    path = folder / shipped.name
    path.write_text(yaml.safe_dump(tree))
    return path
