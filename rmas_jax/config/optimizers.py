"""Optimisers by optax' names and arguments: `adamw(b2=0.95)`."""

import ast
import functools
import inspect
from typing import Any

import jax
import optax

from rmas_jax.config.fields import MAX_FLOAT
from rmas_jax.host.errors import clipped, shown

# Optimisers of optax that need only gradients and a learning rate.
OPTIMIZERS = (
    "adabelief",
    "adadelta",
    "adafactor",
    "adagrad",
    "adam",
    "adamax",
    "adamaxw",
    "adamw",
    "adan",
    "amsgrad",
    "lamb",
    "lars",
    "lion",
    "nadam",
    "nadamw",
    "novograd",
    "radam",
    "rmsprop",
    "sgd",
    "sign_sgd",
    "yogi",
)
MAX_CHARACTERS = 500  # of an optimiser; Python's parser has trouble with deep nesting
EXPECTED = f"one of {', '.join(OPTIMIZERS)}, or one with arguments: adamw(b2=0.95)"


def parse_optimizer(text: str) -> tuple[str, dict[str, Any]]:
    """Reads an optimiser's name and its arguments, numbers or booleans.

    Raises:
      ValueError: the name is not in `OPTIMIZERS`, or an argument is invalid. The message is about
        the text: "must be ..., got ...".
    """
    refused = ValueError(f"must be {EXPECTED}, got {shown(text)}")
    if len(text) > MAX_CHARACTERS:
        raise refused
    try:
        tree = ast.parse(text, mode="eval").body
        call = tree if isinstance(tree, ast.Call) else ast.Call(tree, [], [])
        if not isinstance(call.func, ast.Name):
            raise ValueError("no name")
        name = call.func.id
        if call.args:
            raise ValueError("an argument without a name")
        if len({keyword.arg for keyword in call.keywords}) < len(call.keywords):
            raise ValueError("an argument given twice")
        arguments = {
            keyword.arg or "**": ast.literal_eval(keyword.value) for keyword in call.keywords
        }
    except (SyntaxError, AttributeError, ValueError, TypeError, RecursionError, MemoryError):
        raise refused from None
    if name not in OPTIMIZERS:
        raise refused
    taken = [p for p in inspect.signature(getattr(optax, name)).parameters if p != "learning_rate"]
    for argument, value in arguments.items():
        if argument not in taken:
            raise ValueError(
                f"must have arguments of {name} ({', '.join(taken)}), got {shown(argument)}"
            )
        is_number = isinstance(value, (bool, int, float)) and abs(value) <= MAX_FLOAT  # NaN is not
        if not is_number:
            raise ValueError(
                f"must have a boolean or a number of at most {MAX_FLOAT:g} as {argument} of "
                f"{name}, got {shown(value)}"
            )
    _try(name, arguments)
    return name, arguments


@functools.lru_cache
def _run_one_step(name: str, arguments: tuple[tuple[str, float], ...]) -> None:
    weight = jax.ShapeDtypeStruct((2, 3), "float32")

    def step(weight: jax.Array) -> jax.Array:
        optimizer = getattr(optax, name)(0.1, **dict(arguments))
        return optimizer.update(weight, optimizer.init(weight), weight)[0]

    jax.eval_shape(step, weight)


def _try(name: str, arguments: dict[str, Any]) -> None:
    """Raises ValueError if optax cannot use the arguments; compiles and computes nothing."""
    try:
        _run_one_step(name, tuple(arguments.items()))
    except Exception as error:  # optax has no checks: any error of JAX may occur
        reason = clipped(str(error).partition("\n")[0], 200)
        given = ", ".join(f"{argument}={value!r}" for argument, value in arguments.items())
        raise ValueError(f"must be usable by optax, got {name}({given}): {reason}") from None


def build_optimizer(
    text: str, learning_rate: optax.ScalarOrSchedule
) -> optax.GradientTransformation:
    """The optimiser described by `text`; raises as `parse_optimizer`."""
    name, arguments = parse_optimizer(text)
    return getattr(optax, name)(learning_rate, **arguments)
