"""Optimisers by name: what is read, what is refused, and that each one optimises."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rmas_jax.config.optimizers import OPTIMIZERS, build_optimizer, parse_optimizer


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_goes_downhill(name):
    """With a schedule, as the outer loop has it."""
    optimizer = build_optimizer(name, optax.constant_schedule(0.05))
    params = {"kernel": jnp.full((3, 4), 2.0), "bias": jnp.full(4, -1.0)}

    def loss(params):
        return sum(jnp.sum(x**2) for x in jax.tree.leaves(params))

    state, first = optimizer.init(params), loss(params)
    for _ in range(3):
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
    assert loss(params) < first


def test_arguments_act():
    """Two steps of momentum 0.5 on a constant gradient: 1, then 1.5."""
    optimizer, weight = build_optimizer("sgd(momentum=0.5)", 0.1), {"w": jnp.zeros(())}
    state, moved = optimizer.init(weight), []
    for _ in range(2):
        updates, state = optimizer.update({"w": jnp.array(-1.0)}, state, weight)
        moved.append(float(updates["w"]))
    np.testing.assert_allclose(moved, [0.1, 0.15], rtol=1e-6)


def test_names_and_arguments_are_read():
    assert parse_optimizer("adam") == ("adam", {})
    assert parse_optimizer("adamw(b2=0.95, nesterov=True)") == (
        "adamw",
        {"b2": 0.95, "nesterov": True},
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("adamm", "must be one of adabelief, "),
        ("lbfgs", "must be one of adabelief, "),  # needs the loss as well
        ("adamw(0.9)", "adamw(b2=0.95), got 'adamw(0.9)'"),
        ("adamw(", "got 'adamw('"),
        ("__import__('os').system('true')", "must be one of "),
        ("adamw(b2=print())", "must be one of "),
        ("adamw(beta=0.9)", "must have arguments of adamw (b1, b2, "),
        ("adamw(learning_rate=0.9)", "must have arguments of adamw (b1, b2, "),
        ("adamw(b1='x')", "as b1 of adamw, got 'x'"),
        ("adamw(b1=[1, [2]])", "as b1 of adamw, got [1, [2]]"),
        ("adamw({})", "got 'adamw({})'"),
        ("adamw(b1={[]: 1})", "must be one of "),
        ("adamw(**{'b1': 1})", "must have arguments of adamw (b1, b2, "),
        ("adamw(b1=0.9, b1=0.8)", "must be one of "),
        ("chain(adam())", "must be one of "),
        ("adamw()()", "must be one of "),
        ("lambda: adamw", "must be one of "),
        ("adamw(b1=10**10**10)", "must be one of "),
        ("(" * 100_000, "got '((("),
        ("adamw(b1=" + "-" * 400 + "1)", "must be one of "),
        ("adamw(b1=1e999)", "number of at most 1e+30 as b1 of adamw, got inf"),
        ("adamw(b1=" + "9" * 400 + ")", "got an integer of 400 digits"),
        ("adamw\0()", "must be one of "),
        ("adamw(b1='\ud800')", "must be one of "),
        ("", "must be one of "),
        ("adamw(mu_dtype=1)", "must be usable by optax, got adamw(mu_dtype=1): "),
        ("radam(b2=True)", "must be usable by optax, got radam(b2=True): "),
    ],
)
def test_what_is_refused(text, words):
    with pytest.raises(ValueError) as caught:
        parse_optimizer(text)
    assert words in str(caught.value) and len(str(caught.value)) < 500
