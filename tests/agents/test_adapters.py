"""Adapters, and how an answerer learns with them, against torch with merged weights or vectors."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import struct
from torch.func import functional_call

from rmas_jax.agents.adapters import (
    LoRA,
    SoftPrompt,
    linear_weights,
    start_adapter,
    tuned_agent,
)
from rmas_jax.agents.agent import load_agent
from rmas_jax.agents.reading import read_prefix
from rmas_jax.config import ConfigError, TuningConfig
from rmas_jax.interop.adapter_files import load_adapter, save_adapter
from rmas_jax.links import count_parameters
from rmas_jax.models import CheckpointError
from rmas_jax.models.weights import weight_table
from rmas_jax.prompts import StagePrompt
from rmas_jax.rounds.supervision import Targets
from rmas_jax.sharding import make_mesh
from rmas_jax.training.data.encoding import TrainingData
from rmas_jax.training.phases.step import start_state
from rmas_jax.training.tuning.step import answer_scores, tuning_step

PREFIX, BODY, ANSWER = (6, 2, 0, 4), (3, 1, 2, 4), (3, 1, 4, 2)  # tokens of each row's parts
LORA = TuningConfig(kind="lora", learning_rate=1e-2, rank=3, alpha=6.0)
SOFT = TuningConfig(kind="soft_prompt", learning_rate=1e-2, vectors=5)


def block(lengths, seed, *, left):
    """Ragged ids and mask, padded on one side."""
    width = max(lengths)
    ids = np.random.default_rng(seed).integers(1, 61, (len(lengths), width))
    places = np.arange(width)[None, :]
    ends = np.array(lengths)[:, None]
    valid = places >= width - ends if left else places < ends
    return np.where(valid, ids, 0).astype(np.int32), valid


def batch():
    prefix, body = block(PREFIX, 0, left=True), block(BODY, 1, left=True)
    body = [np.repeat(x[:, None], 2, axis=1) for x in body]
    prompt = StagePrompt(*prefix, *body, slot_index=(-1,) * max(BODY), senders=())
    targets = Targets(*(x[:, None] for x in block(ANSWER, 2, left=False)))
    return TrainingData(prompts={"solver": prompt}, targets={"solver": targets})


def texts(data):
    """Prompt and answer of each row, without padding."""
    (prompt,), (target,) = data.prompts.values(), data.targets.values()
    for i in range(len(data)):
        read = [*prompt.prefix_ids[i][prompt.prefix_valid[i]]]
        read += [*prompt.body_ids[i, 0][prompt.body_valid[i, 0]]]
        yield read, [*target.ids[i, 0][target.valid[i, 0]]]


def torch_loss(model, data, *, weights=None, vectors=None):
    """Mean over rows of the mean cross-entropy of the answer's tokens; row by row, no padding."""
    losses = []
    for prompt, answer in texts(data):
        ids = torch.tensor([*prompt, *answer], dtype=torch.long)
        embed = model.get_input_embeddings()
        name = next(n for n, p in model.named_parameters() if p is embed.weight)
        own = {} if weights is None else {"weight": weights[name]}
        embeds = functional_call(embed, own, (ids,))
        if vectors is not None:
            embeds = torch.cat([vectors, embeds])
        inputs = {"inputs_embeds": embeds[None], "use_cache": False}
        logits = functional_call(model, weights or {}, (), inputs).logits[0]
        states = logits[-len(answer) - 1 : -1]
        losses.append(torch.nn.functional.cross_entropy(states, ids[-len(answer) :]))
    return torch.stack(losses).mean()


@jax.jit
def loss_of(adapter, agent, data):
    return answer_scores(adapter, agent, data).loss.mean()


loss_and_grads = jax.jit(jax.value_and_grad(loss_of))


def perturbed(adapter, seed=3):
    """An adapter after some training: none of its arrays is zero."""
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda x: x + 0.2 * random.normal(size=x.shape).astype("f"), adapter)


def close(ours, theirs, tolerance=2e-4):
    theirs = theirs.detach().numpy()
    scale = max(1.0, np.abs(theirs).max())
    np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("case", ["qwen3", "qwen3_5"])
def test_lora_equals_torch_with_merged_weights(oracle, case):
    """Loss, and gradients of every A and B, in all linear layers of both kinds of layer."""
    model, agent = oracle(case).model, load_agent(oracle(case).directory)
    adapter = perturbed(start_adapter(agent, LORA, key=jax.random.key(0), vectors=0))
    table = linear_weights(agent)
    assert adapter.down.keys() == table.keys()
    linear = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    names = {name for weight in table.values() for name in weight.names}
    assert names == {f"{name}.weight" for name in linear - {"lm_head"}}
    weights, factors = dict(model.named_parameters()), {}
    for path, weight in table.items():
        for layer, name in enumerate(weight.names):
            down, up = (
                torch.tensor(np.array(x[path][layer])).requires_grad_()
                for x in (adapter.down, adapter.up)
            )
            factors[path, layer] = down, up
            weights[name] = weights[name] + LORA.alpha / LORA.rank * up @ down
    expected = torch_loss(model, batch(), weights=weights)
    expected.backward()
    loss, grads = loss_and_grads(adapter, agent, batch())
    close(loss, expected)
    for (path, layer), (down, up) in factors.items():
        close(grads.down[path][layer], down.grad)
        close(grads.up[path][layer], up.grad)
    wrong = loss_of(adapter.replace(scale=2.0 * adapter.scale), agent, batch())
    assert abs(wrong - loss) > 20 * 2e-4 * max(1.0, loss)


def test_a_gradient_of_lora_takes_no_product_of_a_matrix_size_for_its_factors(oracle):
    """Losses are those of merged matrices, bit for bit; their own gradients cost more."""
    agent = load_agent(oracle("qwen3").directory)
    adapter = perturbed(start_adapter(agent, LORA, key=jax.random.key(0), vectors=0))
    wide = jax.tree.map(lambda x: np.repeat(x, 16, axis=0), batch())  # work beyond the merging

    def merged(params, agent, data):
        return loss_of(Untouched(), agent.replace(params=params), data)

    loss, _ = loss_and_grads(adapter, agent, batch())
    assert loss == loss_of(Untouched(), adapter.adapt(agent), batch())
    ours = loss_and_grads.lower(adapter, agent, wide).cost_analysis()["flops"]
    of_merged = jax.jit(jax.grad(merged)).lower(agent.params, agent, wide)
    assert ours < 0.85 * of_merged.cost_analysis()["flops"]


def test_layers_are_recomputed_or_stored_with_the_same_gradient(oracle):
    agent = load_agent(oracle("qwen3").directory)
    adapter = perturbed(start_adapter(agent, LORA, key=jax.random.key(0), vectors=0))
    found, flops = [], []
    for own in (agent, agent.storing("all")):
        lowered = loss_and_grads.lower(adapter, own, batch())
        flops.append(lowered.cost_analysis()["flops"])
        found.append(lowered.compile()(adapter, own, batch())[1])
    for ours, other in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(ours, other, rtol=1e-5, atol=1e-6)
        assert np.abs(ours).max() > 1e-4
    assert flops[1] < 0.85 * flops[0]


def test_the_start_of_lora_is_the_untouched_agent(oracle):
    agent = load_agent(oracle("qwen3").directory)
    adapter = start_adapter(agent, LORA, key=jax.random.key(1), vectors=0)
    for ours, frozen in zip(*map(jax.tree.leaves, (adapter.adapt(agent), agent)), strict=True):
        np.testing.assert_array_equal(ours, frozen)
    path = "layers/attention/q_kernel"
    assert adapter.down[path].shape == (3, 3, 32) and adapter.up[path].shape == (3, 48, 3)
    assert 0.9 < np.abs(adapter.down[path]).max() * 32**0.5 <= 1 and np.any(adapter.down[path] < 0)
    moved = perturbed(adapter).adapt(agent)
    assert np.abs(moved.params["layers"]["ffn"]["up_kernel"]).max() > 1
    np.testing.assert_array_equal(moved.params["embedding"], agent.params["embedding"])


def test_lora_of_chosen_matrices(oracle):
    agent = load_agent(oracle("qwen3").directory)
    config = TuningConfig(kind="lora", learning_rate=1, matrices=("attention/v_kernel",))
    adapter = start_adapter(agent, config, key=jax.random.key(0), vectors=0)
    assert list(adapter.down) == ["layers/attention/v_kernel"]
    assert count_parameters(adapter) == 3 * 16 * (32 + 24)
    wrong = TuningConfig(kind="lora", learning_rate=1, matrices=("attention/v",))
    with pytest.raises(
        ConfigError, match=r"tuning: lora: matrices.0 must be one of .*'attention/v"
    ):
        start_adapter(agent, wrong, key=jax.random.key(0), vectors=0)


class Untouched(struct.PyTreeNode):
    """An adapter that changes nothing."""

    def learning(self, agent):
        return agent


def test_matrices_in_int8_are_dequantised_where_they_are_replaced(oracle):
    agent = load_agent(oracle("qwen3").directory, weights="int8")
    lora = start_adapter(agent, LORA, key=jax.random.key(1), vectors=0)
    full = start_adapter(
        agent, TuningConfig(kind="full", learning_rate=1), key=jax.random.key(1), vectors=0
    )
    expected = loss_of(Untouched(), agent, batch())
    for adapter in (lora, full):
        np.testing.assert_allclose(loss_of(adapter, agent, batch()), expected, rtol=1e-5)
    _, grads = loss_and_grads(lora, agent, batch())
    assert all(np.abs(x).max() > 1e-6 for x in grads.up.values())


@pytest.mark.parametrize("case", ["qwen3", "gemma3"])
def test_a_soft_prompt_equals_vectors_before_the_prompt_in_torch(oracle, case):
    """Loss and gradient, for ragged prompts padded on the left; one has no prefix at all."""
    model, agent = oracle(case).model, load_agent(oracle(case).directory)
    adapter = start_adapter(agent, SOFT, key=jax.random.key(0), vectors=99)
    assert adapter.vectors.shape == (5, 32)
    vectors = torch.tensor(np.array(adapter.vectors)).requires_grad_()
    expected = torch_loss(model, batch(), vectors=vectors)
    expected.backward()
    loss, grads = loss_and_grads(adapter, agent, batch())
    close(loss, expected)
    close(grads.vectors, vectors.grad)
    assert abs(torch_loss(model, batch()) - expected) > 0.01
    reordered = SoftPrompt(adapter.vectors[::-1])
    assert abs(loss_of(reordered, agent, batch()) - loss) > 0.01


def test_a_soft_prompt_is_read_where_there_is_no_prefix(oracle):
    agent = SoftPrompt(jnp.ones((2, 32))).adapt(load_agent(oracle("qwen3").directory))
    cache = read_prefix(agent, np.zeros((3, 0), np.int32), np.zeros((3, 0), bool))
    assert cache.past[0].valid.tolist() == [[True, True]] * 3
    assert cache.next_position.tolist() == [2, 2, 2]


def test_a_step_of_full_tuning_equals_adamw_of_torch(oracle):
    """Loss, gradient norm and all new weights, over a batch in two parts."""
    model, agent = oracle("qwen3-tied").model, load_agent(oracle("qwen3-tied").directory)
    config = TuningConfig(
        kind="full",
        steps=10,
        batch_size=4,
        accumulation=2,
        learning_rate=0.05,
        warmup_steps=0,
        optimizer="adamw(eps=1e-3, weight_decay=0.1)",
        schedule="constant",
        max_grad_norm=0.5,
    )
    adapter = start_adapter(agent, config, key=jax.random.key(0), vectors=0)
    assert count_parameters(adapter) == model.num_parameters()
    weights = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(weights.values(), lr=0.05, eps=1e-3, weight_decay=0.1)
    tied = weights | {"lm_head.weight": weights["model.embed_tokens.weight"]}
    expected = torch_loss(model, batch(), weights=tied)
    expected.backward()
    norm = torch.nn.utils.clip_grad_norm_(weights.values(), 0.5)
    optimizer.step()
    step = jax.jit(tuning_step, static_argnums=0)
    state, metrics = step(config, agent, batch(), start_state(config, adapter, adapter))
    close(metrics["loss"], expected)
    close(metrics["grad_norm"], norm)
    assert norm > 1  # it is clipped
    for weight in weight_table(agent.config):
        param, before = state.params.params, agent.params
        for key in weight.path:
            param, before = param[key], before[key]
        layers = zip(param, before, strict=True) if weight.is_stacked else [(param, before)]
        for name, (ours, old) in zip(weight.names, layers, strict=True):
            close(weight.to_stored(np.asarray(ours)), weights[name])
            assert np.abs(ours - old).max() > 0.01  # the control: they have moved


def test_masters_keep_what_the_dtype_of_the_agent_rounds_away(oracle):
    agent = load_agent(oracle("qwen3").directory, "bfloat16")
    entry = TuningConfig(kind="full", learning_rate=1)
    adapter = start_adapter(agent, entry, key=jax.random.key(0), vectors=0)
    assert {x.dtype for x in jax.tree.leaves(adapter)} == {jnp.dtype("float32")}
    nudged = jax.tree.map(lambda x: x * (1 + 1e-4), adapter)
    for ours, frozen in zip(*map(jax.tree.leaves, (nudged.adapt(agent), agent)), strict=True):
        assert ours.dtype == jnp.bfloat16
        np.testing.assert_array_equal(ours, frozen)


def test_an_adapter_is_read_back_and_another_is_refused(oracle, tmp_path):
    agent = load_agent(oracle("qwen3").directory)
    adapter = perturbed(start_adapter(agent, LORA, key=jax.random.key(0), vectors=0))
    like = jax.eval_shape(lambda: adapter)
    path = tmp_path / "tuned" / "lora.safetensors"
    save_adapter(path, adapter)
    again = load_adapter(path, like)
    assert isinstance(again, LoRA) and again.scale == 2.0
    for ours, saved in zip(*map(jax.tree.leaves, (again, adapter)), strict=True):
        np.testing.assert_array_equal(ours, saved)
    with pytest.raises(CheckpointError, match=r"must hold the arrays of SoftPrompt, got others"):
        load_adapter(path, SoftPrompt(jnp.zeros((2, 32))))
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="checksum"):
        load_adapter(path, like)


@pytest.mark.parametrize("weights", [None, "int8"])
def test_a_tuned_agent_is_split_as_the_agent_is(oracle, weights):
    directory = oracle("qwen3").directory
    mesh = make_mesh(2, 2, 2)
    alone, split = (load_agent(directory, mesh=m, weights=weights) for m in (None, mesh))
    plain = load_agent(directory, mesh=mesh)
    for config in (LORA, TuningConfig(kind="full", learning_rate=1), SOFT):
        adapter = perturbed(start_adapter(alone, config, key=jax.random.key(0), vectors=0))
        adapter = jax.device_get(adapter)
        ours = tuned_agent(split, adapter, mesh)
        expected = tuned_agent(alone, adapter)
        for a, b in zip(*map(jax.tree.leaves, (ours, expected)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
        if not isinstance(adapter, SoftPrompt):
            matrix = ours.params["layers"]["ffn"]["up_kernel"]
            assert matrix.sharding == plain.params["layers"]["ffn"]["up_kernel"].sharding
            assert not matrix.sharding.is_fully_replicated
