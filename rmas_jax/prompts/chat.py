"""Prompts in the chat template of an agent, where everything that was given must stand.

A chat template may skip a system text, raise for it, read only typed parts of a content, or change
what it renders. Every way to give the texts is therefore tried until one holds: rendered beside two
marks in their place, the texts must stand where the marks stand, once, in order and unchanged, but
for blanks around them.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections.abc import Sequence
from typing import Any

from rmas_jax.host.errors import shown
from rmas_jax.models.plain_text import check_text, encode
from rmas_jax.models.tokenizer import Tokenizer
from rmas_jax.prompts.rendering import Outcome, render, today
from rmas_jax.prompts.templates import FIELD, PromptError, RolePrompt

SENTINEL = "\ue000{}\ue001"  # private-use characters stand for fields while a template renders
SYSTEM, USER = "\ue002", "\ue003"  # stand for whole texts
OPTIONS = {"enable_thinking": False}  # of templates that know it
# Typed parts that a template prints as they are, instead of their text.
PRINTED_PARTS = re.compile(r"""["']type["']: ?["']text["']""")
Message = dict[str, Any]


def template_of(tokenizer: Tokenizer) -> str:
    """The chat template of a tokenizer; of several, the one that is called `default`.

    Raises:
      PromptError: there is none, or it is no text.
    """
    found = tokenizer.chat_template
    if isinstance(found, dict):
        found = found.get("default")
    if not isinstance(found, str) or not found:
        raise PromptError(
            f"{tokenizer.name_or_path}: the chat template must be text, or several by name with "
            f"one that is called default, got {shown(tokenizer.chat_template)}"
        )
    check_text(found, source=f"{tokenizer.name_or_path}: chat template", error=PromptError)
    return found


def render_chat(tokenizer: Tokenizer, system: str, user: str) -> str:
    """Renders one exchange up to where the model starts to write, by the agent's own template.

    Thinking is off where the template knows it. Where it renders no system text, or typed parts
    alone, the texts are given in one turn, or as parts.

    Args:
      tokenizer: the agent's own; its `chat_date` is the day of `strftime_now`, None is today. Where
        a template has a date of its own (Llama 3.1: 26 Jul 2024), it stays, as in transformers.
      system: text of the system role; empty: there is none.
      user: text of the user.

    Raises:
      PromptError: names the tokenizer, and what the template does with the texts.
    """
    return _render_exchange(
        tokenizer.name_or_path, template_of(tokenizer), _variables(tokenizer), system, user
    )


def _variables(tokenizer: Tokenizer) -> str:
    """Variables that a template gets beside messages, and the date, as JSON."""
    named = getattr(tokenizer, "special_tokens_map", {})
    variables = OPTIONS | {name: _texts(token) for name, token in named.items()}
    return json.dumps([variables, getattr(tokenizer, "chat_date", None) or today()])


def _texts(token: Any) -> Any:
    return [str(one) for one in token] if isinstance(token, list | tuple) else str(token)


def _ways(system: str, user: str) -> list[list[Message]]:
    """How two texts may be given: apart or in one turn, each as text or as typed parts."""
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


@functools.lru_cache(maxsize=512)  # of what encodes many batches of questions
def _render_exchange(name: str, template: str, variables: str, system: str, user: str) -> str:
    marked = _ways(SYSTEM * bool(system), USER)
    asked = [ways for pair in zip(marked, _ways(system, user), strict=True) for ways in pair]
    outcomes = _render(template, variables, asked, add_generation_prompt=True)
    problems = []
    for probe, outcome in zip(outcomes[::2], outcomes[1::2], strict=True):
        problem = _problem(probe, outcome, system, user)
        if problem is None:
            return outcome.text or ""  # never None: it would be a problem
        problems.append(problem)
    raise PromptError(
        f"{name}: the chat template must render the texts of system and user once each, in this "
        f"order, unchanged, but {'; given otherwise, '.join(dict.fromkeys(problems))}"
    )


def _render(
    template: str, variables: str, conversations: Sequence[list[Message]], **options: Any
) -> list[Outcome]:
    fixed, date = json.loads(variables)
    asked = [{"messages": messages, **options} for messages in conversations]
    return render(template, asked, variables=fixed, date=date)


def _problem(probe: Outcome, outcome: Outcome, system: str, user: str) -> str | None:
    """What is wrong with a rendering, if something is."""
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
        return f"it puts the text {shown(system)} behind that of the user"
    given = [system, user] if system else [user]
    for texts in itertools.product(*map(_trimmed, given)):
        pairs = zip(texts, after, strict=True)
        if outcome.text == head + "".join(part for pair in pairs for part in pair):
            return None
    return f"it changes one of the texts {shown(system)} and {shown(user)}"


def _trimmed(text: str) -> set[str]:
    """A text, and what a template may leave of it: blanks around it mean nothing."""
    return {text, text.strip(), text.lstrip(), text.rstrip()}


def split_template(tokenizer: Tokenizer, prompt: RolePrompt, form: str) -> list[str]:
    """Renders a template and cuts it at its slots: [text, sender, text, sender, ..., text].

    Fields are private-use sentinels while the chat template renders and the question is put in
    only after the cut, so no question text can move a slot.
    """
    user = FIELD.sub(lambda match: SENTINEL.format(match[1]), form)
    rendered = render_chat(tokenizer, prompt.system, user)
    pieces = re.split("\ue000(\\w+)\ue001", rendered)
    texts, senders = [pieces[0]], []
    for field, text in zip(pieces[1::2], pieces[2::2], strict=True):
        if field == "question":
            texts[-1] += SENTINEL.format(field) + text
        else:
            senders.append(field)
            texts.append(text)
    return [part for pair in zip(texts, [*senders, ""], strict=True) for part in pair][:-1]


def turn_end(tokenizer: Tokenizer, end_tokens: Sequence[int]) -> int:
    """Which of the ids that end an agent's text stands behind an answer in its chat template.

    The tokenizer's own end token need not: Gemma's ends a document, not a turn. It is taken where
    the template puts none of them there.

    Raises:
      PromptError: there is no such token either.
    """
    behind = encode(tokenizer, [_behind_answer(tokenizer)])[0]
    for token in (*behind, tokenizer.eos_token_id):
        if token is not None and token in end_tokens:
            return token
    raise PromptError(
        f"{tokenizer.name_or_path}: nothing ends an answer: of the end tokens {list(end_tokens)} "
        "the chat template puts none behind it, and the tokenizer has no eos_token"
    )


def _behind_answer(tokenizer: Tokenizer) -> str:
    """What a chat template writes behind an answer; nothing where it renders none.

    Raises:
      PromptError: it fails.
    """
    answer = SENTINEL.format("answer")
    turns = [
        [{"role": "user", "content": of("?")}, {"role": "assistant", "content": of(answer)}]
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
