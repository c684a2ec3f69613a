"""Every variant of a link against torch, its starts, and what is refused."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmas_jax.links import (
    INNER,
    LN_EPS,
    OUTER,
    VARIANTS,
    LinkConfig,
    align_link,
    apply_link,
    init_link,
    link_shapes,
)

WIDTHS = {INNER: (6, 6), OUTER: (6, 9)}
CASES = [(kind, variant) for kind in VARIANTS for variant in VARIANTS[kind]]
every_case = pytest.mark.parametrize(("kind", "variant"), CASES)


def config_of(kind: str, variant: str) -> LinkConfig:
    return LinkConfig(kind, variant, *WIDTHS[kind])


def random_params(config: LinkConfig, scale: float = 0.7) -> dict:
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(scale=scale, size=shape), jnp.float32),
        link_shapes(config),
        is_leaf=lambda x: isinstance(x, tuple),
    )


def vectors(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def torch_link(config: LinkConfig, params: dict, x: np.ndarray, approximate: str = "none"):
    """The formula of the table in `LinkConfig`, spelled out with torch's own functions."""
    import torch
    from torch.nn.functional import gelu, layer_norm, linear

    weights = jax.tree.map(lambda p: torch.tensor(np.asarray(p)), params)

    def affine(name):  # torch stores [out, in]
        return lambda x: linear(x, weights[name]["kernel"].T, weights[name]["bias"])

    def norm(name):
        w = weights.get(name)
        return lambda x: layer_norm(x, x.shape[-1:], w["scale"], w["bias"], eps=1e-5)

    def act(x):
        return gelu(x, approximate=approximate)

    inner = config.kind == INNER
    a, c, w = affine("proj1"), affine("proj2"), affine("residual_proj")
    ln = norm("pre_ln" if inner else "ln_source")
    ln_after = norm("post_ln" if inner else "ln_target")
    formulas = {
        (INNER, "linear"): lambda x: a(x),
        (INNER, "linear_res"): lambda x: x + a(x),
        (INNER, "mlp"): lambda x: c(act(a(x))),
        (INNER, "mlp_res"): lambda x: x + c(act(a(x))),
        (INNER, "ln_res"): lambda x: ln_after(x + c(act(a(ln(x))))),
        (OUTER, "linear"): lambda x: a(x),
        (OUTER, "linear_res"): lambda x: a(x) + w(x),
        (OUTER, "mlp"): lambda x: c(act(a(x))),
        (OUTER, "mlp_res"): lambda x: c(act(a(x))) + w(x),
        (OUTER, "ln"): lambda x: ln_after(c(act(a(ln(x))))),
        (OUTER, "ln_res"): lambda x: ln_after(c(act(a(ln(x)))) + w(x)),
    }
    return formulas[config.kind, config.variant](torch.tensor(x)).numpy()


@every_case
def test_every_variant_equals_the_formula_in_torch(kind, variant):
    config = config_of(kind, variant)
    params, x = random_params(config), 2 * vectors(2, 5, 6)
    ours = apply_link(config, params, x)
    np.testing.assert_allclose(ours, torch_link(config, params, x), rtol=1e-5, atol=1e-5)
    if config.has_mlp:  # the tolerance tells exact GELU from the tanh form
        approximate = torch_link(config, params, x, approximate="tanh")
        assert np.abs(ours - approximate).max() > 1e-4


@every_case
def test_every_parameter_changes_the_output(kind, variant):
    config = config_of(kind, variant)
    params, x = random_params(config), vectors(4, 6)
    grads = jax.grad(lambda p: (apply_link(config, p, x) * vectors(4, 1)).sum())(params)
    assert jax.tree.structure(grads) == jax.tree.structure(params)
    assert all(np.abs(g).max() > 1e-3 for g in jax.tree.leaves(grads))


def test_middle_is_twice_as_wide_in_outer_links_with_norms_only():
    shapes = {case: link_shapes(config_of(*case)) for case in CASES}
    middles = {case: s["proj2"]["kernel"][0] for case, s in shapes.items() if "proj2" in s}
    doubled = {case for case, width in middles.items() if width == 2 * WIDTHS[case[0]][1]}
    assert doubled == {(OUTER, "ln"), (OUTER, "ln_res")}
    assert all(middles[case] == WIDTHS[case[0]][1] for case in set(middles) - doubled)


def test_computes_in_float32_and_returns_the_dtype_of_its_input():
    config = config_of(OUTER, "ln_res")
    params, x = random_params(config), vectors(3, 4, 6)
    half = jnp.asarray(x, jnp.bfloat16)
    ours = apply_link(config, params, half)
    assert ours.dtype == jnp.bfloat16 and ours.shape == (3, 4, 9)
    np.testing.assert_array_equal(
        ours, apply_link(config, params, half.astype(jnp.float32)).astype(jnp.bfloat16)
    )


@every_case
def test_default_start_is_torch_linear_and_layer_norm(kind, variant):
    """nn.Linear draws weights and biases from +-1/sqrt(fan_in); LayerNorm starts as ones, zeros."""
    config = LinkConfig(kind, variant, 48, 48 if kind == INNER else 32)
    params = init_link(config, jax.random.key(0))
    assert jax.tree.map(jnp.shape, params) == link_shapes(config)
    for name, entry in params.items():
        if "scale" in entry:
            assert np.all(entry["scale"] == 1) and np.all(entry["bias"] == 0)
            continue
        bound = entry["kernel"].shape[0] ** -0.5
        for values, spare in ((entry["kernel"], 0.01), (entry["bias"], 0.25)):
            extreme = np.abs(values).max() / bound
            assert 1 - spare < extreme <= 1, name  # reaches the bound, never passes it
        assert np.std(entry["kernel"]) == pytest.approx(bound / 3**0.5, rel=0.05)
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(params))


def test_start_depends_on_the_key_alone_and_differs_between_layers():
    config = LinkConfig(OUTER, "mlp_res", 8, 8)
    first, again, other = (init_link(config, jax.random.key(k)) for k in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert not np.allclose(first["proj1"]["kernel"], other["proj1"]["kernel"])
    assert not np.allclose(first["proj1"]["kernel"], first["proj2"]["kernel"])


@pytest.mark.parametrize("variant", ["linear_res", "mlp_res", "ln_res"])
def test_identity_start_of_an_inner_link_is_nearly_the_identity(variant):
    config = LinkConfig(INNER, variant, 32, 32)
    x = vectors(20, 32)
    if config.has_norms:  # the identity on what is already normed
        x = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
    near, far = (
        np.linalg.norm(apply_link(config, init_link(config, jax.random.key(0), start=s), x) - x)
        / np.linalg.norm(x)
        for s in ("identity", "torch_default")
    )
    assert near < 0.02
    assert far > 0.1


@pytest.mark.parametrize("variant", ["linear", "linear_res", "mlp_res", "ln_res"])
def test_identity_start_of_an_outer_link_keeps_angles(variant):
    config = LinkConfig(OUTER, variant, 24, 32)
    x = vectors(20, 24)
    near, far = (
        apply_link(config, init_link(config, jax.random.key(0), start=s), x)
        for s in ("identity", "torch_default")
    )

    def cosines(y):
        y = y / np.linalg.norm(y, axis=-1, keepdims=True)
        return y @ y.T

    spare = 0.2 if config.has_norms else 0.05  # a norm takes out each vector's mean
    assert np.abs(cosines(near) - cosines(x)).max() < spare
    assert np.abs(cosines(far) - cosines(x)).max() > 2 * spare


def test_aligned_start_recovers_an_affine_translation():
    source = vectors(200, 6)
    kernel, bias = vectors(6, 9, seed=2), vectors(9, seed=3)
    target = source @ kernel + bias
    for variant in ("linear_res", "mlp_res"):
        config = config_of(OUTER, variant)
        params = align_link(config, init_link(config, jax.random.key(0)), source, target)
        np.testing.assert_allclose(params["residual_proj"]["kernel"], kernel, atol=1e-5)
        np.testing.assert_allclose(params["residual_proj"]["bias"], bias, atol=1e-5)
        error = apply_link(config, params, source) - target
        assert np.abs(error).max() < 0.05  # what is left of the other branch


def test_an_aligned_start_from_one_token_alone_sends_that_token():
    """Nothing varies then: no slope can be fitted, in a last norm either."""
    source, target = vectors(1, 6), vectors(1, 9, seed=2)
    for variant in ("linear_res", "mlp_res", "ln_res"):
        config = config_of(OUTER, variant)
        params = align_link(config, init_link(config, jax.random.key(0)), source, target)
        assert np.abs(apply_link(config, params, source) - target).max() < 0.05


@pytest.mark.parametrize("variant", ["linear_res", "mlp_res", "ln_res"])
def test_aligned_start_beats_a_random_one(variant):
    config = LinkConfig(OUTER, variant, 12, 16)
    source = vectors(300, 12)
    target = np.tanh(source @ vectors(12, 16, seed=2)) * np.linspace(0.1, 3, 16) + 1
    target = target.astype(np.float32)
    random = init_link(config, jax.random.key(0))
    aligned = align_link(config, random, source, target)

    def unexplained(params):
        out = apply_link(config, params, source)
        return np.mean((out - target) ** 2) / np.mean((target - target.mean(0)) ** 2)

    assert unexplained(aligned) < 0.4
    assert unexplained(random) > 1
    if config.has_norms:  # the last norm restores the mean of each coordinate
        out = np.asarray(apply_link(config, aligned, source))
        np.testing.assert_allclose(out.mean(0), target.mean(0), atol=0.05)
        # least squares: what is left of a coordinate says nothing about it
        centered = out - out.mean(0)
        slope = (centered * (target - target.mean(0))).sum(0) / (centered**2).sum(0)
        np.testing.assert_allclose(slope, 1, atol=0.05)


@pytest.mark.parametrize(
    ("kind", "variant", "widths", "words"),
    [
        (INNER, "ln", (4, 4), ["inner", "'ln'", "ln_res"]),
        (OUTER, "lnres", (4, 4), ["outer", "'lnres'", "linear_res"]),
        (INNER, "mlp", (4, 5), ["in_width (4), got 5"]),
    ],
)
def test_bad_configuration_is_named(kind, variant, widths, words):
    with pytest.raises(ValueError) as error:
        LinkConfig(kind, variant, *widths)
    assert all(word in str(error.value) for word in words)


def test_bad_start_is_named():
    with pytest.raises(ValueError, match=r"torch_default.*'zeros'"):
        init_link(config_of(INNER, "mlp"), jax.random.key(0), start="zeros")
    for config in (config_of(OUTER, "ln"), config_of(INNER, "ln_res")):
        with pytest.raises(ValueError, match=config.variant):
            align_link(config, random_params(config), vectors(20, 6), vectors(20, 6))


def test_norm_constant_is_that_of_torch():
    import torch

    assert torch.nn.LayerNorm(2).eps == LN_EPS
