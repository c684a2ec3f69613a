"""Verifies answers to questions of `reasoning-gym` by their generators' own programs.

Verifiers give part of a point to near misses: only 1 is correct. Some evaluate an answer as Python.
So a generator's own verifier runs in the sandbox, one process (about a second) for each answer that
is not the gold answer itself. There `eval` reads literals alone, and an answer that sympy would
evaluate has only names of functions and variables: no answer runs code that reports its own score.
"""

from __future__ import annotations

import json
import re
from typing import Any

from rmas_jax.agents.thinking_tags import after_thinking
from rmas_jax.data.examples import Example
from rmas_jax.data.reasoning import generated
from rmas_jax.evaluation.graders.marked import boxed
from rmas_jax.evaluation.graders.verdict import Outcome, Verdict, compared
from rmas_jax.tools.sandbox import PythonLimits, run_program

LIMITS = PythonLimits(wall_s=30, cpu_s=20, memory_bytes=2 << 30, total_bytes=2 << 30)
MAX_ANSWER = 100_000  # characters
# Generators whose verifiers give an answer to sympy's parser, which evaluates Python.
EVALUATED = (
    "countdown",
    "intermediate_integration",
    "polynomial_multiplication",
    "puzzle24",
    "simple_integration",
)
_EXPRESSION = re.compile(
    r"(?:[\s\d+\-*/^()=.,]|(?<![A-Za-z])(?:[A-Za-z]|exp|log|sin|cos|tan|sqrt))*"
)
_PROGRAM = """
import ast, json, sys
import reasoning_gym
for name, module in list(sys.modules.items()):
    if name.startswith("reasoning_gym.algorithmic.") or name == "reasoning_gym.games.n_queens":
        module.eval = ast.literal_eval
generator, arguments, index, answer = json.loads({request!r})
dataset = reasoning_gym.create_dataset(generator, **arguments)
print(json.dumps(float(dataset.score_answer(answer, dataset[index]))))
"""


def grade_reasoning(text: str, example: Example) -> Verdict:
    """Correct if the verifier gives the boxed answer, or else the whole text, a score of 1."""
    final = after_thinking(text)
    inside = final and boxed(final)
    answer = (final if inside is None else inside) or ""
    answer = answer.strip()
    generator = example.fields["generator"]
    if not answer:
        return compared(None, False)
    if answer == example.answer.strip():
        return _verdict(answer, 1.0)
    if len(answer) > MAX_ANSWER:
        return Verdict(None, Outcome.UNPARSED, f"longer than {MAX_ANSWER} characters")
    if generator in EVALUATED and not _EXPRESSION.fullmatch(answer):
        return Verdict(answer, Outcome.WRONG, "no plain expression")
    arguments, index = json.loads(example.fields["arguments"]), int(example.fields["index"])
    dataset = generated(generator, arguments)
    if _has_common_verifier(dataset):  # it compares texts
        return _verdict(answer, dataset.score_answer(answer, dataset[index]))
    request = json.dumps([generator, arguments, index, answer])
    ended = run_program(_PROGRAM.format(request=request), LIMITS)
    if ended.exit_code is None:
        what = "memory limit" if ended.out_of_memory else "time limit"
        return Verdict(answer, Outcome.TIMEOUT, f"verifier: {what}")
    if ended.exit_code != 0:
        error = ended.stderr.strip().rpartition("\n")[2]
        return Verdict(answer, Outcome.CRASHED, f"verifier: {error}")
    return _verdict(answer, float(ended.stdout))


def is_generated(example: Example) -> bool:
    """Whether an example says how it is generated, as the verifier needs; it may lack an answer."""
    return {"generator", "arguments", "index"} <= example.fields.keys()


def _has_common_verifier(dataset: Any) -> bool:
    from reasoning_gym.dataset import ProceduralDataset  # an extra

    return type(dataset).score_answer is ProceduralDataset.score_answer


def _verdict(answer: str, score: float) -> Verdict:
    return compared(answer, score == 1)._replace(scores={"verifier": score})
