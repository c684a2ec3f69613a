"""Names of tensors in checkpoints: prefixes, and tensors outside the decoder."""

from __future__ import annotations

import re
from collections.abc import Iterable

PREFIX = "model."
# Prefix of the decoder's names -> prefix of the unembedding's: a text model; the text tower of a
# checkpoint with vision; the same in older releases; and both saved without the outer model, which
# has the unembedding.
PREFIXES = {
    PREFIX: "",
    "model.language_model.": "",
    "language_model.model.": "language_model.",
    "language_model.": "",
    "": "",
}
EMBEDDING, UNEMBEDDING = "model.embed_tokens.weight", "lm_head.weight"
# Ignored tensors: buffers of older files and of GGUF files, which are computed here; the vision
# parts of multimodal checkpoints; Qwen3.5's layers for multi-token prediction; heads over the last
# hidden state (values of reinforcement learning, scores of reward models).
IGNORED = re.compile(
    r"(.*\.)?rotary_emb\.(inv_freq|cos_cached|sin_cached)"
    r"|rope_freqs\.weight"
    r"|(.*\.)?(position_ids|masked_bias)"
    r"|(model\.)?(vision_tower|multi_modal_projector|visual)\..*"
    r"|mtp\..*"
    r"|(v_head|value_head|score)\..*"
)
# Names of packed weights in GPTQ, AWQ, fp8, compressed-tensors and bitsandbytes.
QUANTISED = re.compile(
    r".*\.(qweight|qzeros|g_idx|weight_packed|weight_scale(_inv)?|input_scale|SCB"
    r"|weight\.(absmax|quant_map|quant_state\..*))"
)


def with_prefix(name: str, prefix: str) -> str:
    """The name of a text model's tensor in a checkpoint whose decoder has this prefix."""
    if name.startswith(PREFIX):
        return prefix + name.removeprefix(PREFIX)
    return PREFIXES[prefix] + name  # the unembedding is outside the decoder


def stored_prefix(names: Iterable[str]) -> str:
    """The prefix of PREFIXES that the decoder has in a checkpoint with these names."""
    names = set(names)
    found = (prefix for prefix in PREFIXES if with_prefix(EMBEDDING, prefix) in names)
    return next(found, PREFIX)
