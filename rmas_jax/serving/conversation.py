"""One question from the messages of a conversation, as every role of a team reads it.

A lone message is the question as it is. Of several, each stands behind a label, in their order:

    System: Answer in one word.

    User: Who wrote Faust?

    Assistant: Goethe.

    User: When?

Roles keep the system texts of their own prompts, and read this where their prompts have
`{question}`. All of it is plain text: no message can end a turn, move a slot or speak as a role.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rmas_jax.host.questions import QuestionError, check_question
from rmas_jax.serving.requests import RequestError

USER, ASSISTANT, SYSTEM = "user", "assistant", "system"
# Role of a message -> its label.
LABELS = {USER: "User", ASSISTANT: "Assistant", SYSTEM: "System", "developer": "System"}


class Turn(NamedTuple):
    """A message."""

    role: str  # of LABELS
    text: str


def question_of(turns: Sequence[Turn]) -> str:
    """The question of a conversation, without outer whitespace.

    Raises:
      RequestError: it does not end with a text of the user, or holds what no tokenizer reads.
    """
    last = len(turns) - 1
    if last < 0 or turns[last].role != USER:
        found = f"one of {turns[last].role!r}" if turns else "no message"
        raise RequestError(f"messages must end with one of 'user', got {found}", "messages")
    try:
        asked = check_question(turns[last].text, where=f"messages[{last}].content")
        if not last:
            return asked
        told = [f"{LABELS[turn.role]}: {turn.text.strip()}" for turn in turns]
        return check_question("\n\n".join(told), where="messages")
    except QuestionError as error:
        raise RequestError(str(error), "messages") from None
