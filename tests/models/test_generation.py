"""Sampling rules and end tokens of a checkpoint, read as transformers reads them."""

from __future__ import annotations

import dataclasses
import json

import pytest
from transformers import GenerationConfig

from rmas_jax.models import CheckpointError
from rmas_jax.models.generation import (
    ALLOWED,
    UNSUPPORTED,
    SamplingConfig,
    sampling_defaults,
    sampling_from_hf,
)

# generation_config.json as published for models of the families that are ported.
QWEN = {
    "bos_token_id": 151643,
    "do_sample": True,
    "eos_token_id": [151645, 151643],
    "pad_token_id": 151643,
    "repetition_penalty": 1.05,
    "temperature": 0.7,
    "top_k": 20,
    "top_p": 0.8,
    "transformers_version": "4.37.0",
}
GEMMA = {
    "cache_implementation": "hybrid",
    "do_sample": True,
    "eos_token_id": [1, 106],
    "top_k": 64,
    "top_p": 0.95,
}
MATH = {"do_sample": False, "eos_token_id": [7, 7], "max_new_tokens": 2048, "temperature": 0.6}


@pytest.fixture
def write(tmp_path):
    """Function that writes the two files into a directory and returns it."""

    def files(generation=None, config=None):
        if generation is not None:
            (tmp_path / "generation_config.json").write_text(json.dumps(generation))
        (tmp_path / "config.json").write_text(json.dumps(config or {}))
        return tmp_path

    return files


@pytest.mark.parametrize(
    ("raw", "sampling", "ends"),
    [
        (
            QWEN,
            SamplingConfig(temperature=0.7, top_k=20, top_p=0.8, repetition_penalty=1.05),
            (151645, 151643),
        ),
        (GEMMA, SamplingConfig(temperature=1.0, top_k=64, top_p=0.95), (1, 106)),
        (MATH, SamplingConfig(), (7,)),
        (
            {"do_sample": False, "repetition_penalty": 1.2},
            SamplingConfig(repetition_penalty=1.2),
            (),
        ),
        ({"do_sample": True, "min_p": 0.1}, SamplingConfig(1.0, top_k=50, min_p=0.1), ()),
        ({"do_sample": True, "top_k": 0, "top_p": None}, SamplingConfig(1.0), ()),
        ({"eos_token_id": 3, "num_beams": 1, "bad_words_ids": []}, SamplingConfig(), (3,)),
        ({"a field of later years": 1}, SamplingConfig(), ()),
    ],
)
def test_generation_config(write, raw, sampling, ends):
    assert sampling_defaults(write(raw)) == (sampling, ends)


def test_what_is_left_open_is_as_in_transformers():
    raw = GenerationConfig._get_default_generation_params()
    ours = sampling_from_hf({"do_sample": True})
    for field in dataclasses.fields(SamplingConfig):
        if field.name in raw:
            assert getattr(ours, field.name) == raw[field.name]
    assert not raw["do_sample"]


@pytest.mark.parametrize(
    ("config", "ends"),
    [
        ({"eos_token_id": 5}, (5,)),
        ({"eos_token_id": [5, 6]}, (5, 6)),
        ({"eos_token_id": None}, ()),
        ({"text_config": {"eos_token_id": 9}}, (9,)),
        ({"text_config": {"eos_token_id": 9}, "eos_token_id": [1, 106]}, (1, 106)),
    ],
)
def test_end_tokens_of_the_model_config(write, config, ends):
    assert sampling_defaults(write(None, config)) == (SamplingConfig(), ends)
    assert sampling_defaults(write({"do_sample": False}, config))[1] == ends
    assert sampling_defaults(write({"eos_token_id": 8}, config))[1] == (8,)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"do_sample": "yes"}, "do_sample must be true or false, got 'yes'"),
        (
            {"do_sample": True, "temperature": -1.0},
            "temperature must be a number of at least 0, got -1.0",
        ),
        (
            {"do_sample": True, "temperature": 0.0},
            "temperature must be above 0 with do_sample=true, got 0",
        ),
        (
            {"do_sample": True, "temperature": "hot"},
            "temperature must be a number of at least 0, got 'hot'",
        ),
        ({"do_sample": True, "top_k": 2.5}, "top_k must be an integer of at least 0, got 2.5"),
        ({"do_sample": True, "top_k": -1}, "top_k must be an integer of at least 0, got -1"),
        ({"do_sample": True, "top_p": 1.1}, "top_p must be a number from 0 to 1, got 1.1"),
        ({"do_sample": True, "min_p": True}, "min_p must be a number from 0 to 1, got True"),
        ({"repetition_penalty": 0}, "repetition_penalty must be a number above 0, got 0"),
        ({"num_beams": 4}, "num_beams must be 1 (not supported), got 4"),
        ({"do_sample": True, "typical_p": 0.9}, "typical_p must be 1.0 (not supported), got 0.9"),
        ({"no_repeat_ngram_size": 3}, "no_repeat_ngram_size must be 0 (not supported), got 3"),
        ({"dola_layers": "high"}, "dola_layers must be None (not supported), got 'high'"),
        ({"token_healing": True}, "token_healing must be False (not supported), got True"),
        ({"eos_token_id": "</s>"}, "eos_token_id must be an id or a list"),
        ({"eos_token_id": [1, True]}, "eos_token_id"),
        ([1], "must be a JSON object, got a list"),
    ],
)
def test_values_that_are_refused(write, raw, message):
    with pytest.raises(CheckpointError, match=r"generation_config\.json: ") as error:
        sampling_defaults(write(raw))
    assert message in str(error.value)


# Of transformers, without effect on the text of one sequence: of lengths (a run has its own), of
# beams, of outputs and caches, of drafts (whose tokens are checked), of how the file came about.
HARMLESS = """
    max_length max_new_tokens max_time do_sample early_stopping length_penalty diversity_penalty
    low_memory num_return_sequences renormalize_logits remove_invalid_values output_attentions
    output_hidden_states output_scores output_logits return_dict_in_generate use_cache
    cache_implementation cache_config max_cache_len compile_config disable_compile
    continuous_batching_config prefill_chunk_size use_mtp is_assistant num_assistant_tokens
    num_assistant_tokens_schedule assistant_confidence_threshold prompt_lookup_num_tokens
    max_matching_ngram_size assistant_early_exit assistant_lookbehind target_lookbehind
    assistant_ensemble_weight speculation_type pad_token_id bos_token_id eos_token_id
    decoder_start_token_id _from_model_config transformers_version
"""


def test_every_option_of_transformers_is_known():
    """A new one that changes a text would be left out without a word."""
    assert vars(GenerationConfig()).keys() - {*UNSUPPORTED, *ALLOWED, *HARMLESS.split()} == set()


def test_damaged_files(write, tmp_path):
    write({}, {"eos_token_id": -1})
    with pytest.raises(CheckpointError, match=r"/config\.json: eos_token_id must be .*, got -1"):
        sampling_defaults(tmp_path)
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"generation_config\.json: must be JSON"):
        sampling_defaults(tmp_path)
    with pytest.raises(CheckpointError, match="no such directory"):
        sampling_defaults(tmp_path / "nowhere")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, "1"])
def test_values_that_are_no_numbers(value):
    for field in dataclasses.fields(SamplingConfig):
        with pytest.raises(ValueError, match=f"{field.name} must be .*, got {value!r}$"):
            SamplingConfig(**{field.name: value})
