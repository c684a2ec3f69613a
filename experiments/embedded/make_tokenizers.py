"""Builds the three tokenizers of the embedded agents, each in the style of its family.

A vocabulary contains every word of the relay data set, and bytes for any other text. The
tokenizers differ in the order of words, special tokens, the encoding of spaces and the chat
template.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA_TEMPLATE = (
    "<|begin_of_text|>{% for message in messages %}<|start_header_id|>{{ message.role }}"
    "<|end_header_id|>\n\n{{ message.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA_TEMPLATE = (
    "<bos>{% for message in messages %}{% if message.role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}<start_of_turn>"
    "{{ 'model' if message.role == 'assistant' else message.role }}\n{{ message.content | trim }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
STYLES = {
    "qwen3": {
        "special": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "chat_template": QWEN_TEMPLATE,
    },
    "llama": {
        "special": [
            "<|begin_of_text|>",
            "<|end_of_text|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|eot_id|>",
        ],
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|eot_id|>",
        "pad_token": "<|end_of_text|>",
        "chat_template": LLAMA_TEMPLATE,
    },
    "gemma3_text": {
        "special": ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"],
        "bos_token": "<bos>",
        "eos_token": "<end_of_turn>",
        "pad_token": "<pad>",
        "chat_template": GEMMA_TEMPLATE,
    },
}
BYTE_LEVEL_SPLIT = Regex(r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+")


def _splitting(family: str) -> tuple[Any, Any, Any, list[str]]:
    """Normaliser, pre-tokeniser, decoder and the byte tokens of a family."""
    if family == "gemma3_text":
        return (
            normalizers.Replace(" ", "▁"),
            pre_tokenizers.Split(Regex(r"▁?\p{L}+|▁?[^\p{L}▁]|▁"), "isolated"),
            decoders.Sequence(
                [decoders.ByteFallback(), decoders.Fuse(), decoders.Replace("▁", " ")]
            ),
            [f"<0x{byte:02X}>" for byte in range(256)],
        )
    splitting = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(BYTE_LEVEL_SPLIT, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return None, splitting, decoders.ByteLevel(), sorted(pre_tokenizers.ByteLevel.alphabet())


def write_tokenizer(family: str, texts: Iterable[str], folder: Path, *, seed: int) -> None:
    """Writes `tokenizer.json` and `tokenizer_config.json` with the words of `texts`."""
    style = STYLES[family]
    normalizer, splitting, decoder, byte_tokens = _splitting(family)
    found: set[str] = set()
    for text in texts:
        normal = normalizer.normalize_str(text) if normalizer else text
        found |= {piece for piece, _ in splitting.pre_tokenize_str(normal)}
    words = sorted(found - set(byte_tokens))
    order = np.random.default_rng(seed).permutation(len(words))
    vocabulary = [*style["special"], *byte_tokens, *(words[i] for i in order)]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate(vocabulary)},
            merges=[],
            ignore_merges=True,  # a piece in the vocabulary is one token
            byte_fallback=family == "gemma3_text",
        )
    )
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitting
    tokenizer.decoder = decoder
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in style["special"]])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings: dict[str, Any] = {key: value for key, value in style.items() if key != "special"}
    settings |= {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "padding_side": "left",
        "model_max_length": 512,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
