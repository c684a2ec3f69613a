"""Thinking blocks: the part of a text in which a model reasons before it answers.

    <think> so it may be 41, no </think> The answer is \\boxed{42}
                                        ^ the answer begins here

A template may open the block for the model; then the text holds the closing tag alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rmas_jax.models.tokenizer import Tokenizer

# Opening tag -> closing tag of several families (DeepSeek-R1, Qwen3; Magistral; ...).
TAGS = {
    "<think>": "</think>",
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",
    "<reasoning>": "</reasoning>",
    "<seed:think>": "</seed:think>",
    "[THINK]": "[/THINK]",
    "◁think▷": "◁/think▷",
    "<|begin_of_thought|>": "<|end_of_thought|>",
}
_CLOSING = {opening.lower(): closing for opening, closing in TAGS.items()}
_TAG = re.compile("|".join(re.escape(tag) for pair in TAGS.items() for tag in pair), re.IGNORECASE)


def after_thinking(text: str) -> str | None:
    """The text after its last thinking block; None if that block never ends."""
    tags = list(_TAG.finditer(text))
    if not tags:
        return text
    return None if tags[-1][0].lower() in _CLOSING else text[tags[-1].end() :]


def missing_end(text: str) -> str:
    """The closing tag of a thinking block that never ends; "" if there is none."""
    tags = _TAG.findall(text)
    return _CLOSING.get(tags[-1].lower(), "") if tags else ""


def opened_by(prompt: str) -> str:
    """The opening tag at the end of a prompt, so that the text starts inside the block, or ""."""
    tags = list(_TAG.finditer(prompt.rstrip()))
    if not tags or tags[-1].end() < len(prompt.rstrip()):
        return ""
    return tags[-1][0] if tags[-1][0].lower() in _CLOSING else ""


def tag_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """Ids of tags that the tokenizer flags as special, which decoding would drop."""
    added = tokenizer.added_tokens_decoder.items()
    return frozenset(i for i, token in added if token.special and _TAG.fullmatch(token.content))


class ShownText:
    """The text of token ids, without special tokens but those of thinking."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer, self.tags = tokenizer, tag_ids(tokenizer)
        added = tokenizer.added_tokens_decoder.items()
        self.hidden = {i for i, token in added if token.special} - self.tags

    def __call__(self, ids: Sequence[int]) -> str:
        """Decodes ids."""
        if self.tags.isdisjoint(ids):
            return self.tokenizer.decode(ids, skip_special_tokens=True)
        shown = [token for token in ids if token not in self.hidden]
        return self.tokenizer.decode(shown, skip_special_tokens=False)
