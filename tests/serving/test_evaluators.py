"""Public evaluators ask a served team over its chat API: lm-evaluation-harness and Inspect."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from served import CHAT, QUICKSTART, SIZES, aligned_links, serving

ROWS = [
    {"question": f"The pass phrase {phrase} goes through one gate, red.", "answer": "Kenal"}
    for phrase in ("Fumes Dabil", "Amor Roma", "Lesar Torin", "Kenal Bison")
]
TASK = """\
task: gates
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs:
  until: ["\\n"]
  max_gen_toks: 8
  temperature: 0
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""
INSPECT_TASK = """\
import json
from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import exact

@task
def gates():
    rows = [json.loads(line) for line in open({file!r})]
    return Task([Sample(row["question"], target=row["answer"]) for row in rows], scorer=exact())
"""
KEY = "key-of-this-server"
HARNESS = pytest.mark.skipif(
    shutil.which("lm_eval") is None,
    reason="needs the command of lm-evaluation-harness: pip install 'lm_eval[api]==0.4.13'",
)

INSPECT = pytest.mark.skipif(
    shutil.which("inspect") is None,
    reason="needs the command of Inspect: pip install inspect-ai openai",
)


@pytest.fixture
def rows(tmp_path):
    """A file of questions."""
    path = tmp_path / "rows.json"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@contextlib.contextmanager
def team(tmp_path):
    """A server that asks for a key; its URL."""
    cache = Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
    links = aligned_links(tmp_path)
    with serving(*SIZES, "--links", links, cache=cache, RMAS_API_KEY=KEY) as (_, url):
        yield url


def run(command, folder, **variables):
    ran = subprocess.run(
        command, env=os.environ | variables, capture_output=True, text=True, cwd=folder
    )
    assert ran.returncode == 0, ran.stderr + ran.stdout


@HARNESS
@pytest.mark.slow
def test_lm_evaluation_harness(rows, tmp_path):
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "gates.yaml").write_text(TASK.format(file=rows))
    with team(tmp_path) as url:
        model = f"model={QUICKSTART},base_url={url}{CHAT},num_concurrent=2,max_retries=1"
        command = ["lm_eval", "--model", "local-chat-completions"]
        command += ["--model_args", model, "--tasks", "gates", "--include_path", str(tasks)]
        command += ["--apply_chat_template", "--log_samples", "--output_path", str(tmp_path / "o")]
        home = str(tmp_path / "home")
        run(command, tmp_path, OPENAI_API_KEY=KEY, HF_HOME=home, HF_HUB_OFFLINE="1")
    (samples,) = (tmp_path / "o").rglob("samples_gates_*.jsonl")
    found = [json.loads(line) for line in samples.read_text().splitlines()]
    assert len(found) == len(ROWS)
    assert all(row["resps"][0][0] for row in found)


@INSPECT
@pytest.mark.slow
def test_inspect(rows, tmp_path):
    (tmp_path / "gates.py").write_text(INSPECT_TASK.format(file=str(rows)))
    with team(tmp_path) as url:
        command = ["inspect", "eval", "gates.py", "--model", f"openai-api/team/{QUICKSTART}"]
        command += ["--max-tokens", "8", "--log-format", "json", "--display", "plain"]
        run(command, tmp_path, TEAM_API_KEY=KEY, TEAM_BASE_URL=f"{url}/v1")
    (log,) = (tmp_path / "logs").glob("*.json")
    found = json.loads(log.read_text())
    assert found["status"] == "success"
    texts = [row["output"]["choices"][0]["message"]["content"] for row in found["samples"]]
    assert len(texts) == len(ROWS)
    assert all(texts)
