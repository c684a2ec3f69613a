"""Optimisers by the names and arguments that optax gives them: `adamw(b2=0.95)`."""

import ast
import inspect
from typing import Any

import optax

# Those of optax that need nothing but gradients and a learning rate.
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
EXPECTED = f"one of {', '.join(OPTIMIZERS)}, with numbers as arguments if wanted: adamw(b2=0.95)"


def parse_optimizer(text: str) -> tuple[str, dict[str, Any]]:
    """Reads an optimiser's name and its arguments, which may be numbers and truth values.

    Raises:
      ValueError: it is none of `OPTIMIZERS`, or does not take such an argument.
    """
    try:
        tree = ast.parse(text, mode="eval").body
        call = tree if isinstance(tree, ast.Call) else ast.Call(tree, [], [])
        name = call.func.id
        if call.args:
            raise ValueError("an argument without a name")
        arguments = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, AttributeError, ValueError):
        raise ValueError(f"expected {EXPECTED}; got {text!r}") from None
    if name not in OPTIMIZERS:
        raise ValueError(f"expected {EXPECTED}; got {text!r}")
    taken = [p for p in inspect.signature(getattr(optax, name)).parameters if p != "learning_rate"]
    for argument, value in arguments.items():
        if argument not in taken:
            raise ValueError(f"{name} takes {', '.join(taken)}; got {argument!r}")
        if not isinstance(value, (bool, int, float)):
            raise ValueError(f"{name}: {argument} is a number or a truth value; got {value!r}")
    return name, arguments


def build_optimizer(
    text: str, learning_rate: optax.ScalarOrSchedule
) -> optax.GradientTransformation:
    """The optimiser that `text` describes; raises as `parse_optimizer`."""
    name, arguments = parse_optimizer(text)
    return getattr(optax, name)(learning_rate, **arguments)
