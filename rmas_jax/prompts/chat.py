"""Renders prompts with an agent's chat template, and checks that the texts are unchanged.

A chat template may skip a system text, raise an error for it, read only typed parts of a content,
or change its text. Several ways to pass the texts are therefore tried in turn. The check compares a
rendering with one of two marks: each text must replace its mark, once, in order and unchanged,
except for outer blanks.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections.abc import Sequence
from typing import Any

from rmas_jax.host.errors import shown
from rmas_jax.models.plain_text import check_text, encode, marker_ids
from rmas_jax.models.tokenizer import Tokenizer
from rmas_jax.prompts.rendering import Outcome, render, today
from rmas_jax.prompts.templates import FIELD, PromptError, RolePrompt

SENTINEL = "\ue000{}\ue001"  # private-use characters that replace fields during rendering
FILLED = re.compile("\ue000(\\w+)\ue001")  # a field in a rendered text
SYSTEM, USER = "\ue002", "\ue003"  # marks in place of the two texts
OPTIONS = {"enable_thinking": False}  # ignored by templates without it
# Typed parts printed literally instead of their text.
PRINTED_PARTS = re.compile(r"""["']type["']: ?["']text["']""")
Message = dict[str, Any]


def template_of(tokenizer: Tokenizer) -> str:
    """The chat template of a tokenizer; of several, the one named `default`.

    Raises:
      PromptError: the tokenizer has no chat template, or it is not text.
    """
    found = tokenizer.chat_template
    if isinstance(found, dict):
        found = found.get("default")
    if not isinstance(found, str) or not found:
        raise PromptError(
            f"{tokenizer.name_or_path}: chat_template must be text, or texts by name including "
            f"default, got {shown(tokenizer.chat_template)}"
        )
    check_text(found, source=f"{tokenizer.name_or_path}: chat template", error=PromptError)
    return found


def render_chat(tokenizer: Tokenizer, system: str, user: str) -> str:
    """Renders one exchange up to the start of the model's text, with the agent's chat template.

    Thinking is off in templates with a switch for it. A template without a system role gets both
    texts in one turn; a template that reads only typed parts gets them as parts.

    Args:
      tokenizer: the agent's; its `chat_date` is the day of `strftime_now`, None is today. A date
        inside a template (Llama 3.1: 26 Jul 2024) stays, as in transformers.
      system: text of the system role; empty: none.
      user: text of the user.

    Raises:
      PromptError: names the tokenizer and the template's fault.
    """
    return _render_exchange(
        tokenizer.name_or_path, template_of(tokenizer), _variables(tokenizer), system, user
    )


def _variables(tokenizer: Tokenizer) -> str:
    """The template's variables except messages, and the date, as JSON."""
    named = getattr(tokenizer, "special_tokens_map", {})
    variables = OPTIONS | {name: _texts(token) for name, token in named.items()}
    return json.dumps([variables, getattr(tokenizer, "chat_date", None) or today()])


def _texts(token: Any) -> Any:
    return [str(one) for one in token] if isinstance(token, list | tuple) else str(token)


def _ways(system: str, user: str) -> list[list[Message]]:
    """Ways to pass two texts: in two turns or in one, each as text or as typed parts."""
    merged = [("user", f"{system}\n\n{user}")] if system else []
    apart = [("system", system), ("user", user)] if system else [("user", user)]
    return [
        [{"role": role, "content": content(text)} for role, text in turns]
        for turns in (apart, merged)
        if turns
        for content in (str, _as_parts)
    ]


def _as_parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


def _render_exchange(name: str, template: str, variables: str, system: str, user: str) -> str:
    marked = _ways(SYSTEM * bool(system), USER)
    turns = [ways for pair in zip(marked, _ways(system, user), strict=True) for ways in pair]
    outcomes = _render(template, variables, turns, add_generation_prompt=True)
    problems = []
    for probe, outcome in zip(outcomes[::2], outcomes[1::2], strict=True):
        problem = _problem(probe, outcome, system, user)
        if problem is None:
            return outcome.text or ""  # not None, which would be a problem
        problems.append(problem)
    raise PromptError(
        f"{name}: the chat template must render the system and user texts once each, in this "
        f"order, unchanged, but {'; in another layout, '.join(dict.fromkeys(problems))}"
    )


def _render(
    template: str, variables: str, conversations: Sequence[list[Message]], **options: Any
) -> list[Outcome]:
    requests = [{"messages": messages, **options} for messages in conversations]
    return _render_once(template, variables, json.dumps(requests))


@functools.lru_cache(maxsize=512)  # many batches and agents share a few templates
def _render_once(template: str, variables: str, requests: str) -> list[Outcome]:
    fixed, date = json.loads(variables)
    return render(template, json.loads(requests), variables=fixed, date=date)


def _problem(probe: Outcome, outcome: Outcome, system: str, user: str) -> str | None:
    """The fault of a rendering; None for a correct one."""
    if outcome.text is None or probe.text is None:
        return f"it failed: {probe.error if outcome.text is not None else outcome.error}"
    for mark, text, expected in ((SYSTEM, system, bool(system)), (USER, user, 1)):
        count = probe.text.count(mark)
        if count != expected:
            does = f"renders {count} times" if count else "leaves out"
            return f"it {does} the text {shown(text)}"
    if PRINTED_PARTS.search(probe.text):
        return "it prints parts instead of their text"
    head, *after = re.split(f"[{SYSTEM}{USER}]", probe.text)
    if system and probe.text.index(SYSTEM) > probe.text.index(USER):
        return f"it puts the text {shown(system)} after the user's"
    given = [system, user] if system else [user]
    for texts in itertools.product(*map(_trimmed, given)):
        pairs = zip(texts, after, strict=True)
        if outcome.text == head + "".join(part for pair in pairs for part in pair):
            return None
    return f"it changes one of the texts {shown(system)} and {shown(user)}"


def _trimmed(text: str) -> set[str]:
    """A text with and without its outer blanks, which a template may strip."""
    return {text, text.strip(), text.lstrip(), text.rstrip()}


def split_template(tokenizer: Tokenizer, prompt: RolePrompt, template: str) -> list[str]:
    """Renders a template and cuts it at its slots: [text, sender, text, sender, ..., text].

    Private-use sentinels replace the fields during rendering; the question and columns of the data
    are inserted after the cut, so none of their texts can move a slot.

    Args:
      tokenizer: the agent's.
      prompt: the role's templates, of which the system text is used.
      template: `prompt.first` or `prompt.later`.
    """
    user = FIELD.sub(lambda match: SENTINEL.format(match[1]), template)
    rendered = render_chat(tokenizer, prompt.system, user)
    pieces = FILLED.split(rendered)
    texts, senders = [pieces[0]], []
    for field, text in zip(pieces[1::2], pieces[2::2], strict=True):
        if field == "question" or field in prompt.columns:
            texts[-1] += SENTINEL.format(field) + text
        else:
            senders.append(field)
            texts.append(text)
    return [part for pair in zip(texts, [*senders, ""], strict=True) for part in pair][:-1]


def turn_end(tokenizer: Tokenizer, end_tokens: Sequence[int]) -> int:
    """The end token that the chat template writes after an answer.

    It may differ from the tokenizer's end token: Gemma's ends a document, not a turn. The
    tokenizer's is used if the template writes none.

    Raises:
      PromptError: the tokenizer has no end token either.
    """
    after = encode(tokenizer, [_after_answer(tokenizer)])[0]
    for token in (*after, tokenizer.eos_token_id):
        if token is not None and token in end_tokens:
            return token
    raise PromptError(
        f"{tokenizer.name_or_path}: the chat template must end an answer with an end token "
        f"({list(end_tokens)}), or the tokenizer must have an eos_token among them, got neither"
    )


def turn_starts(tokenizer: Tokenizer, end_tokens: Sequence[int]) -> tuple[str, ...]:
    """The string at which an answer runs into another turn, in a chat template of plain text.

    A base model may write the start of the next user's turn in place of an end token: with the
    template `plain`, a line that begins with `User:`. Templates that begin a turn with a marker
    have no such string.

    Args:
      tokenizer: the agent's, with its chat template.
      end_tokens: that end its text.

    Raises:
      PromptError: the template fails.
    """
    question = SENTINEL.format("question")
    between, is_read, _ = _after_answer(tokenizer, question).partition(question)
    start = between.strip()
    for token in end_tokens:
        start = start.removeprefix(tokenizer.convert_ids_to_tokens(token)).strip()
    is_text = is_read and marker_ids(tokenizer).isdisjoint(encode(tokenizer, [start])[0])
    return (f"\n{start}",) if start and is_text else ()


def _after_answer(tokenizer: Tokenizer, *questions: str) -> str:
    """The text that a chat template writes after an answer; "" if it renders no answer.

    `questions` are a further turn of the user, or none.

    Raises:
      PromptError: the template fails.
    """
    answer = SENTINEL.format("answer")
    turns = [
        [
            {"role": "user", "content": of("?")},
            {"role": "assistant", "content": of(answer)},
            *({"role": "user", "content": of(question)} for question in questions),
        ]
        for of in (str, _as_parts)
    ]
    outcomes = _render(
        template_of(tokenizer), _variables(tokenizer), turns, add_generation_prompt=False
    )
    for _, error in outcomes:
        if error is None:
            break
    else:
        raise PromptError(f"{tokenizer.name_or_path}: chat template failed: {outcomes[0].error}")
    found = [text.rpartition(answer)[2] for text, _ in outcomes if text and text.count(answer) == 1]
    return found[0] if found else ""
