"""Public evaluators ask a served team: lm-evaluation-harness, over its chat API."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
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
KEY = "key-of-this-server"
HARNESS = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None,
    reason="needs lm-evaluation-harness: pip install 'lm_eval[api]==0.4.13'",
)


@HARNESS
@pytest.mark.slow
def test_lm_evaluation_harness(tmp_path):
    rows = tmp_path / "rows.json"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "gates.yaml").write_text(TASK.format(file=rows))
    cache = Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
    links = aligned_links(tmp_path)
    with serving(*SIZES, "--links", links, cache=cache, RMAS_API_KEY=KEY) as (_, url):
        model = f"model={QUICKSTART},base_url={url}{CHAT},num_concurrent=2,max_retries=1"
        command = [sys.executable, "-m", "lm_eval", "--model", "local-chat-completions"]
        command += ["--model_args", model, "--tasks", "gates", "--include_path", str(tasks)]
        command += ["--apply_chat_template", "--log_samples", "--output_path", str(tmp_path / "o")]
        variables = {
            "OPENAI_API_KEY": KEY,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_OFFLINE": "1",
        }
        ran = subprocess.run(
            command, env=os.environ | variables, capture_output=True, text=True, cwd=tmp_path
        )
    assert ran.returncode == 0, ran.stderr
    (samples,) = (tmp_path / "o").rglob("samples_gates_*.jsonl")
    found = [json.loads(line) for line in samples.read_text().splitlines()]
    assert len(found) == len(ROWS)
    assert all(row["resps"][0][0] for row in found)
