"""Tokens that two vocabularies share, for tokenizers that mark spaces and bytes differently."""

import numpy as np
import pytest

from experiments.embedded.make_tokenizers import STYLES, write_tokenizer
from rmas_jax.models import load_tokenizer
from rmas_jax.models.tokenizer import shared_tokens

TEXTS = ("Bada Kor, three trips left", "Kor\nPlan")


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    for seed, family in enumerate(STYLES):
        only_here = ("Luka", "Zuno") if family == "llama" else ()
        write_tokenizer(family, [*TEXTS, *only_here], folder / family, seed=seed)
    return {family: load_tokenizer(folder / family) for family in STYLES}


@pytest.mark.parametrize("sender", STYLES)
@pytest.mark.parametrize("receiver", STYLES)
def test_shared_tokens_spell_the_same(tokenizers, sender, receiver):
    mine, theirs = tokenizers[sender], tokenizers[receiver]
    ids = shared_tokens(mine, theirs)
    surfaces = []
    for tokenizer, own in zip((mine, theirs), ids, strict=True):
        assert own.dtype == np.int32
        assert not set(own.tolist()) & set(tokenizer.all_special_ids)
        start = tokenizer("x", add_special_tokens=False)["input_ids"]
        surfaces.append([tokenizer.decode([*start, i])[1:] for i in own.tolist()])
    assert surfaces[0] == surfaces[1]
    assert len(set(surfaces[0])) == len(surfaces[0])
    assert {"Bada", " Kor", "Kor", " three", "\n"} <= set(surfaces[0])  # a space makes a difference
    assert ("Luka" in surfaces[0]) == (sender == receiver == "llama")
