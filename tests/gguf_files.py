"""Tiny GGUF files, written as llama.cpp's `convert_hf_to_gguf.py` does."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import safetensors.numpy

ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma3_text": "gemma3",
    "qwen3_5_text": "qwen35",
}


def permuted(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries or keys, with the two halves of each head interleaved."""
    halves = rows.reshape(heads, 2, len(rows) // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def converted(raw: dict, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of a Hugging Face checkpoint under their names in llama.cpp, and changed so."""
    name = ARCHITECTURES[raw["model_type"]]
    key = {value: key for key, value in gguf.MODEL_ARCH_NAMES.items()}[name]
    names = gguf.get_tensor_name_map(key, raw["num_hidden_layers"])
    out = {}
    for hf_name, tensor in tensors.items():
        if name == "llama" and (".q_proj." in hf_name or ".k_proj." in hf_name):
            kv = ".k_proj." in hf_name
            tensor = permuted(tensor, raw["num_key_value_heads" if kv else "num_attention_heads"])
        if name in ("gemma3", "qwen35") and hf_name.endswith("norm.weight"):
            tensor = tensor + ("linear_attn" not in hf_name)
        if name == "qwen35":
            hf_name, tensor = linear(raw, hf_name, tensor)
        out[names.get_name(hf_name, (".weight", ".bias"))] = tensor
    rope = raw["rope_parameters"]
    if rope.get("rope_type") == "llama3":
        out["rope_freqs.weight"] = llama3_divisors(rope, raw["head_dim"])
    return out


def linear(raw: dict, name: str, tensor: np.ndarray) -> tuple[str, np.ndarray]:
    """A tensor of Qwen3.5's linear layers, with value heads of one key head apart."""
    keys = raw["linear_num_key_heads"]
    per_key, dim = raw["linear_num_value_heads"] // keys, raw["linear_value_head_dim"]

    def tiled(rows, size):
        parts = rows.reshape(keys, per_key, size, *rows.shape[1:])
        return parts.swapaxes(0, 1).reshape(rows.shape)

    part = name.rpartition("linear_attn.")[2] if "linear_attn." in name else ""
    if part in ("in_proj_qkv.weight", "conv1d.weight"):
        tensor = tensor.squeeze(1) if tensor.ndim == 3 else tensor
        start = 2 * keys * raw["linear_key_head_dim"]
        tensor = np.concatenate([tensor[:start], tiled(tensor[start:], dim)])
    elif part == "in_proj_z.weight":
        tensor = tiled(tensor, dim)
    elif part == "out_proj.weight":
        tensor = tiled(tensor.T, dim).T
    elif part in ("in_proj_a.weight", "in_proj_b.weight", "dt_bias", "A_log"):
        tensor = tiled(tensor, 1)
    if part == "A_log":
        tensor = -np.exp(tensor)
    return name.replace(".dt_bias", ".dt_proj.bias"), tensor


def llama3_divisors(rope: dict, head_dim: int) -> np.ndarray:
    """Divisors [H/2] of the frequencies, by wave length."""
    old, low, high = (
        rope["original_max_position_embeddings"],
        rope["low_freq_factor"],
        rope["high_freq_factor"],
    )
    out = []
    for half in range(head_dim // 2):
        wave = 2 * np.pi * rope["rope_theta"] ** (2 * half / head_dim)
        smooth = np.clip((old / wave - low) / (high - low), 0, 1)
        out.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(out, np.float32)


def metadata_of(raw: dict) -> dict:
    """llama.cpp's metadata, without the name of the architecture."""
    rope = raw["rope_parameters"]
    out = {
        "context_length": raw.get("max_position_embeddings", 512),
        "embedding_length": raw["hidden_size"],
        "block_count": raw["num_hidden_layers"],
        "feed_forward_length": raw["intermediate_size"],
        "attention.head_count": raw["num_attention_heads"],
        "attention.head_count_kv": raw["num_key_value_heads"],
        "attention.key_length": raw["head_dim"],
        "attention.value_length": raw["head_dim"],
        "attention.layer_norm_rms_epsilon": raw["rms_norm_eps"],
        "vocab_size": raw["vocab_size"],
    }
    if raw["model_type"] == "qwen3_5_text":
        out["full_attention_interval"] = raw["layer_types"].index("full_attention") + 1
        out["ssm.conv_kernel"] = raw["linear_conv_kernel_dim"]
        out["ssm.state_size"] = raw["linear_key_head_dim"]
        out["ssm.group_count"] = raw["linear_num_key_heads"]
        out["ssm.time_step_rank"] = raw["linear_num_value_heads"]
        out["ssm.inner_size"] = raw["linear_num_value_heads"] * raw["linear_value_head_dim"]
        out["rope.dimension_sections"] = [1, 1, 1, 0]
        out["rope.dimension_count"] = int(raw["head_dim"] * rope["partial_rotary_factor"])
    elif raw["model_type"] == "gemma3_text":
        nth = raw["layer_types"].index("full_attention") + 1
        out["attention.sliding_window"] = raw["sliding_window"]
        out["attention.sliding_window_pattern"] = nth
        out["rope.freq_base_swa"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    else:
        out["rope.dimension_count"] = raw["head_dim"]
    out["rope.freq_base"] = rope["rope_theta"]
    if rope["rope_type"] in ("linear", "yarn"):
        out["rope.scaling.type"] = rope["rope_type"]
        out["rope.scaling.factor"] = rope["factor"]
    if rope["rope_type"] == "yarn":
        out["rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
        out["rope.scaling.yarn_beta_fast"] = rope["beta_fast"]
    return out


def write_gguf(path: Path, directory: Path, *, tokenizer=None, edit=None, **changes) -> Path:
    """Converts a Hugging Face directory.

    Args:
      path: of the file.
      directory: with config.json and model.safetensors.
      tokenizer: metadata `tokenizer.*`, without this prefix.
      edit: changes the tensors in place, by name; a pair is a quantisation and bytes of rows.
      changes: further metadata, with __ for the dots of a key; ... removes one.
    """
    raw = json.loads((directory / "config.json").read_text())
    tensors = converted(raw, safetensors.numpy.load_file(directory / "model.safetensors"))
    architecture = ARCHITECTURES[raw["model_type"]]
    metadata = {f"{architecture}.{key}": value for key, value in metadata_of(raw).items()}
    metadata |= {f"tokenizer.{key}": value for key, value in (tokenizer or {}).items()}
    metadata |= {key.replace("__", "."): value for key, value in changes.items()}
    if edit is not None:
        edit(tensors)
    return write(path, architecture, metadata, tensors)


def write(path: Path, architecture: str, metadata: dict, tensors: dict) -> Path:
    """Writes a file of these metadata and tensors."""
    writer = gguf.GGUFWriter(path, metadata.pop("general.architecture", architecture))
    for key, value in metadata.items():
        if value is not ...:
            _add(writer, key, value)
    for name, tensor in tensors.items():
        kind, array = tensor if isinstance(tensor, tuple) else (None, tensor)
        kind = None if kind is None else gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, np.ascontiguousarray(array), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, key: str, value) -> None:
    if isinstance(value, list):
        writer.add_array(key, value)
    else:
        add = {bool: "bool", int: "uint32", float: "float32", str: "string"}[type(value)]
        getattr(writer, f"add_{add}")(key, value)


def byte_level_fields(directory: Path, kind: str) -> dict:
    """Metadata `tokenizer.*` of a directory's byte-level tokenizer, whose words need no merges."""
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    tree = json.loads((directory / "tokenizer.json").read_text())
    vocab = {**tree["model"]["vocab"], **{t["content"]: t["id"] for t in tree["added_tokens"]}}
    special = {token["id"] for token in tree["added_tokens"]}
    tokens = sorted(vocab, key=vocab.__getitem__)
    pair = next(t for t in tokens if len(t) == 2 and {*t} <= vocab.keys())
    return {
        "ggml.model": "gpt2",
        "ggml.pre": kind,
        "ggml.tokens": tokens,
        "ggml.token_type": [3 if vocab[t] in special else 1 for t in tokens],
        "ggml.merges": [" ".join(pair)],  # a file cannot have an empty list
        "ggml.eos_token_id": vocab[settings["eos_token"]],
        "chat_template": settings["chat_template"],
    }


def random_blocks(kind: str, rows: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    """Random rows [rows, bytes] of a quantisation; every value is finite."""
    number = gguf.GGMLQuantizationType[kind]
    values, size = gguf.GGML_QUANT_SIZES[number]
    blocks = rng.integers(0, 256, (rows * columns // values, size), np.uint8)
    while True:
        with np.errstate(all="ignore"):
            found = gguf.dequantize(blocks, number)
        wrong = ~np.isfinite(found.astype(np.float32)).all(axis=1)
        if not wrong.any():
            return blocks.reshape(rows, -1)
        blocks[wrong] = rng.integers(0, 256, (wrong.sum(), size), np.uint8)
