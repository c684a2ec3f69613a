"""Products that are said to be in float32 are so on a TPU, too, where the default is bfloat16."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from systems import CONFIGS, random_agent

from rmas_jax.agents.adapters import start_lora
from rmas_jax.agents.nearest_tokens import nearest_tokens
from rmas_jax.config import TuningConfig
from rmas_jax.links import VARIANTS, LinkConfig, align_link, apply_link, init_link
from rmas_jax.models.deltanet import delta_chunks, delta_step

ROOT = Path(__file__).parents[1]
PRODUCT = re.compile(r"stablehlo\.dot_general .*")
FLOAT32 = re.compile(r": \(tensor<[\dx]*f32>, tensor<[\dx]*f32>\)")


def float32_products(function, *inputs):
    """For each product of two float32 arrays in a program for TPUs: whether it is in float32."""
    lowered = jax.jit(function).trace(*inputs).lower(lowering_platforms=("tpu",))
    lines = [line for line in PRODUCT.findall(lowered.as_text()) if FLOAT32.search(line)]
    return ["precision = [HIGHEST, HIGHEST]" in line for line in lines]


def gradient(function):
    """The gradient of the sum of all results."""

    def total(*inputs):
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(function(*inputs)))

    return jax.grad(total)


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="needs libtpu (extra: tpu)")
def test_compiled_for_a_tpu_they_are_so():
    """Also the triangular system of the delta rule; float32 products are convolutions there."""
    code = """
import jax, jax.numpy as jnp
from rmas_jax.models.deltanet import delta_chunks
from rmas_jax.planning.chips import parse_slice
from rmas_jax.planning.slices import slice_devices
sharding = jax.sharding.SingleDeviceSharding(slice_devices(parse_slice("v5e:2x2"))[0])
def array(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)
wide = (array(2, 256, 8, 128),) * 3
lowered = jax.jit(delta_chunks).lower(*wide, *(array(2, 256, 8),) * 2, array(2, 8, 128, 128))
lines = lowered.compile().as_text().splitlines()
lines = [line for line in lines if " convolution(" in line]
assert len(lines) > 5 and all("operand_precision={highest,highest}" in line for line in lines)
"""
    # libtpu refuses flags of the CPU's compiler.
    path = os.pathsep.join([str(ROOT), *sys.path])
    environment = os.environ | {"PYTHONPATH": path, "XLA_FLAGS": ""}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=environment)


KINDS = [(kind, variant) for kind, variants in VARIANTS.items() for variant in variants]


@pytest.mark.parametrize(("kind", "variant"), KINDS)
def test_links_multiply_in_float32(kind, variant):
    config = LinkConfig(kind, variant, 8, 8 if kind == "inner" else 12)
    params = jax.eval_shape(functools.partial(init_link, config), jax.random.key(0))
    x = jnp.ones((4, 8), jnp.bfloat16)
    apply = functools.partial(apply_link, config)
    forward, backward = (
        float32_products(apply, params, x),
        float32_products(gradient(apply), params, x),
    )
    assert forward and backward and all(forward + backward)


def test_an_aligned_start_is_float32():
    config = LinkConfig("outer", "ln_res", 8, 12)
    params = jax.eval_shape(functools.partial(init_link, config), jax.random.key(0))
    align = functools.partial(align_link, config)
    found = float32_products(align, params, jnp.ones((16, 8)), jnp.ones((16, 12)))
    assert found and all(found)


def test_the_delta_rule_multiplies_in_float32():
    one = jnp.ones((2, 3, 4))
    step = (one, one, one, jnp.ones((2, 3)), jnp.ones((2, 3)), jnp.ones((2, 3, 4, 4)))
    chunks = [jnp.repeat(x[:, None], 8, axis=1) for x in step[:-1]] + [step[-1]]
    for function, inputs in ((delta_step, step), (delta_chunks, chunks)):
        found = float32_products(gradient(function), *inputs)
        assert len(found) > 1 and all(found)


def test_adapters_and_nearest_tokens_multiply_in_float32():
    agent = random_agent(CONFIGS["planner"], 0)
    adapter = start_lora(agent, TuningConfig(kind="lora", learning_rate=1e-3), jax.random.key(0), 0)
    merged = float32_products(lambda adapter: adapter.adapt(agent).params, adapter)
    nearest = float32_products(
        functools.partial(nearest_tokens, agent, count=2), jnp.ones((3, agent.width))
    )
    assert merged and nearest and all(merged + nearest)


def test_an_agents_own_products_are_of_the_default_precision():
    """The control: such products are found, and are not in float32."""
    agent = random_agent(CONFIGS["planner"], 0)
    found = float32_products(
        lambda x: agent.read(x, jnp.ones((2, 3), bool)), jnp.ones((2, 3, agent.width))
    )
    assert found and not any(found)
