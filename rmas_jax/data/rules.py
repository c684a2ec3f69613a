"""Rules: how a row in the format of a benchmark's own files becomes a question with its answer.

To add one, write a function of a row and `data.seed`, and add an entry to `RULES`. It raises
ValueError, with the column, for a row that it cannot read. Upstream is the official RecursiveMAS
code.
"""

from __future__ import annotations

import ast
import builtins
import hashlib
import random
import re
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from rmas_jax.data.rows import DataError, listed_names, text_of
from rmas_jax.host.errors import shown

Row = Mapping[str, Any]
LETTERS = "ABCDEFGHIJ"
_LETTERED = re.compile(r"^\s*\(?[A-J][.):]\s*\S", re.MULTILINE)
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}\b)")


class Rule(NamedTuple):
    """A rule and the columns of both sides."""

    apply: Callable[[Row, int], dict[str, Any]]  # a row and a seed -> the columns that it makes
    reads: tuple[str, ...]  # columns that the files have
    makes: tuple[str, ...]  # of question, answer and id
    keeps: tuple[str, ...] = ()  # made or read columns that become fields of the example
    may_read: tuple[str, ...] = ()  # columns that some files have
    has_answer: bool = True  # False: the files hold no gold answers

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns to read."""
        return (*self.reads, *self.may_read)

    def made(self, row: Any, seed: int) -> Any:
        """A row with the columns that the rule makes; rows that are no objects stay.

        Raises:
          ValueError: it lacks a column, or the rule cannot read it.
        """
        if not isinstance(row, Mapping):
            return row
        for column in self.reads:
            if row.get(column) is None:
                raise ValueError(f"{column} must be given, got none")
        return {**row, **self.apply(row, seed)}

    def check(self, present: Collection[str], *, where: str) -> None:
        """Refuses files without a column that the rule reads."""
        if lacking := [name for name in self.reads if name not in present]:
            raise DataError(
                f"{where}: the columns must include {shown(lacking[0])}, which data.rule reads, "
                f"got {listed_names(present)}"
            )


AS_IS = Rule(lambda row, seed: {}, reads=(), makes=())


def find_rule(name: str) -> Rule:
    """The rule of a name.

    Raises:
      DataError: there is none.
    """
    if name not in RULES:
        raise DataError(f"data.rule must be one of {', '.join(RULES)}, got {shown(name)}")
    return RULES[name]


def lettered(options: Sequence[str]) -> str:
    """Options as lines `A. ...`."""
    return "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, options, strict=False))


def gpqa(row: Row, seed: int) -> dict[str, Any]:
    """The question with its four options in upstream's order, which depends on it and the seed."""
    stem = text_of(row, "Question").strip()
    columns = ("Correct Answer", *(f"Incorrect Answer {i}" for i in (1, 2, 3)))
    options = [text_of(row, column, numbers=True).strip() for column in columns]
    digest = hashlib.md5(f"{seed}::{stem}".encode(), usedforsecurity=False).hexdigest()
    order = list(range(len(options)))
    random.Random(int(digest[:16], 16)).shuffle(order)
    return {
        "id": text_of(row, "Record ID"),
        "question": f"{stem}\n{lettered([options[i] for i in order])}",
        "answer": LETTERS[order.index(0)],
    }


def medqa(row: Row, seed: int) -> dict[str, Any]:
    """The question with lettered options, which are added where its text has none.

    Upstream's file has a `query` with them, a list of options and the text of the right one; the
    hub's has a question without them, options by letter and the right letter. Upstream takes a
    right option that is none of the options for A; here the row is bad.
    """
    del seed
    question = text_of(row, "query" if row.get("query") else "question").strip()
    options = row.get("options")
    if isinstance(options, Mapping):
        options = [options[letter] for letter in LETTERS if options.get(letter) is not None]
    if not isinstance(options, list) or not 2 <= len(options) <= len(LETTERS):
        raise ValueError(f"options must be 2 to {len(LETTERS)} texts, got {shown(options)}")
    texts = [
        re.sub(rf"^\(?{letter}[.):]\s*", "", str(text)).strip()
        for letter, text in zip(LETTERS, options, strict=False)
    ]
    letters = LETTERS[: len(texts)]
    answer = text_of(row, "answer_idx" if row.get("answer_idx") else "answer", numbers=True).strip()
    if answer not in texts and answer not in letters:
        raise ValueError(f"answer must be a letter or text of the options, got {shown(answer)}")
    return {
        "question": question if _LETTERED.search(question) else f"{question}\n{lettered(texts)}",
        "answer": letters[texts.index(answer)] if answer in texts else answer,
    }


def mbpp_plus(row: Row, seed: int) -> dict[str, Any]:
    """The problem and the first three of MBPP's assertions, which name the function.

    The gold answer is upstream's solution; the field `test` has the script of all assertions.
    """
    del seed
    tests = row.get("test_list")
    if not isinstance(tests, list) or not tests or not all(isinstance(t, str) for t in tests):
        raise ValueError(f"test_list must be a list of assertions, got {shown(tests)}")
    asserts = "\n".join(tests[:3])
    return {
        "id": text_of(row, "task_id", numbers=True),
        "question": f"{text_of(row, 'prompt').strip()}\nThe code must pass these tests:\n{asserts}",
        "answer": f"```python\n{text_of(row, 'code').strip()}\n```",
        "entry_point": called_function(tests[0]),
    }


def called_function(test: str) -> str:
    """The function that an assertion calls, builtins such as `set` aside.

    Raises:
      ValueError: there is none.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # of escapes in its texts
            nodes = list(ast.walk(ast.parse(test.strip())))
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # nested too deep
        nodes = []
    called = (node.func for node in nodes if isinstance(node, ast.Call))
    for function in called:
        if isinstance(function, ast.Name) and not hasattr(builtins, function.id):
            return function.id
    raise ValueError(f"test_list must hold assertions that call a function, got {shown(test)}")


def livecodebench(row: Row, seed: int) -> dict[str, Any]:
    """The problem with its starter code, if any.

    The tests stay as they are upstream: `public_test_cases` is JSON, `private_test_cases` packed.
    There is no gold answer: upstream publishes no solutions.
    """
    del seed
    starter = str(row["starter_code"]).strip()  # empty where the program reads standard input
    instruction = (
        f"Complete this code:\n```python\n{starter}\n```"
        if starter
        else "The program reads standard input and writes to standard output."
    )
    return {
        "id": text_of(row, "question_id"),
        "question": f"{text_of(row, 'question_content').strip()}\n\n{instruction}",
    }


def hotpotqa_context(row: Row, seed: int) -> dict[str, Any]:
    """The question behind the numbered documents that upstream's `distractor` files give."""
    del seed
    context = row.get("context")
    found = context if isinstance(context, Mapping) else {}
    lists = [found.get(name) for name in ("title", "sentences")]
    if not all(isinstance(part, list) for part in lists):
        raise ValueError(f"context must hold lists of title and sentences, got {shown(context)}")
    texts = [
        f"[{i}] {title}\n{''.join(map(str, sentences)).strip()}"
        for i, (title, sentences) in enumerate(zip(*lists, strict=True), start=1)
        if isinstance(sentences, list)
    ]
    return {"question": "\n\n".join(["Documents:", *texts, text_of(row, "question").strip()])}


def gsm8k(row: Row, seed: int) -> dict[str, Any]:
    """The number behind `####`, without separators of thousands; the field `solution` has all."""
    del seed
    solution = text_of(row, "answer")
    _, mark, number = solution.rpartition("####")
    if not mark or not number.strip():
        raise ValueError(f"answer must end in #### and a number, got {shown(solution)}")
    return {"answer": _THOUSANDS.sub("", number.strip()), "solution": solution}


RULES = {
    "gpqa": Rule(
        gpqa,
        reads=(
            "Record ID",
            "Question",
            "Correct Answer",
            *(f"Incorrect Answer {i}" for i in (1, 2, 3)),
        ),
        makes=("id", "question", "answer"),
    ),
    "medqa": Rule(
        medqa,
        reads=("question", "options", "answer"),
        makes=("question", "answer"),
        may_read=("query", "answer_idx"),
    ),
    "mbpp_plus": Rule(
        mbpp_plus,
        reads=("task_id", "prompt", "code", "test_list", "test_imports", "test"),
        makes=("id", "question", "answer"),
        keeps=("test", "test_imports", "entry_point"),
    ),
    "livecodebench": Rule(
        livecodebench,
        reads=(
            "question_id",
            "question_content",
            "starter_code",
            "public_test_cases",
            "private_test_cases",
            "metadata",
        ),
        makes=("id", "question"),
        keeps=("starter_code", "public_test_cases", "private_test_cases", "metadata"),
        has_answer=False,
    ),
    "hotpotqa_context": Rule(hotpotqa_context, reads=("question", "context"), makes=("question",)),
    "gsm8k": Rule(gsm8k, reads=("question", "answer"), makes=("answer",), keeps=("solution",)),
}
