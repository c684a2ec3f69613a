"""RecursiveLinks: small trained modules that carry latent thoughts from one space to another.

An inner link maps an agent's last hidden state to its own input embeddings, an outer link maps
from one agent's space to another's. Variants and their widths are those of the paper's ablation
and of the upstream code; `LinkConfig` has their formulas.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

LN_EPS = 1e-5  # torch.nn.LayerNorm's default
INNER, OUTER = "inner", "outer"
VARIANTS = {
    INNER: ("linear", "linear_res", "mlp", "mlp_res", "ln_res"),
    OUTER: ("linear", "linear_res", "mlp", "mlp_res", "ln", "ln_res"),
}


class Links(struct.PyTreeNode):
    """Parameters of all links of a system, float32; see `link_shapes`."""

    inner: dict[str, Any]  # by role
    outer: dict[str, Any]  # by edge name


@dataclasses.dataclass(frozen=True)
class LinkConfig:
    """Variant and widths of one link.

    | variant | inner, x [D]                                | outer, x [D] -> [D']               |
    |---|---|---|
    | linear     | A x                                      | A x                                |
    | linear_res | x + A x                                  | A x + W x                          |
    | mlp        | C gelu(A x)                              | C gelu(A x)                        |
    | mlp_res    | x + C gelu(A x)   (paper eq. 3)          | C gelu(A x) + W x   (paper eq. 4)  |
    | ln         | -                                        | LN'(C gelu(A LN(x)))               |
    | ln_res     | LN'(x + C gelu(A LN(x)))                 | LN'(C gelu(A LN(x)) + W x)         |

    A, C and W are affine; gelu is exact. The residual takes the raw x. The middle width is D',
    and 2 D' in an outer link with norms (upstream).
    """

    kind: str  # INNER or OUTER
    variant: str
    in_width: int  # D of the sender
    out_width: int  # D' of the receiver; equal to in_width in an inner link

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS[self.kind]:
            raise ValueError(
                f"{self.kind} link variant must be one of {VARIANTS[self.kind]}, "
                f"got {self.variant!r}"
            )
        if self.kind == INNER and self.in_width != self.out_width:
            raise ValueError(
                f"out_width of an inner link must be its in_width ({self.in_width}), got "
                f"{self.out_width}"
            )

    @property
    def has_mlp(self) -> bool:
        return not self.variant.startswith("linear")

    @property
    def has_norms(self) -> bool:
        return self.variant.startswith("ln")

    @property
    def has_residual(self) -> bool:
        return self.variant.endswith("_res")

    @property
    def middle_width(self) -> int:
        return self.out_width * (2 if self.kind == OUTER and self.has_norms else 1)


def count_parameters(tree: Any) -> int:
    """Number of parameters in links, an adapter or any tree of arrays or shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def link_shapes(config: LinkConfig) -> dict[str, dict[str, tuple[int, ...]]]:
    """Shapes of a link's parameters; names are those of upstream's state dicts.

    Kernels are [in, out] (torch stores [out, in]).
    """

    def affine(fan_in: int, fan_out: int) -> dict[str, tuple[int, ...]]:
        return {"kernel": (fan_in, fan_out), "bias": (fan_out,)}

    def norm(width: int) -> dict[str, tuple[int, ...]]:
        return {"scale": (width,), "bias": (width,)}

    first_out = config.middle_width if config.has_mlp else config.out_width
    shapes = {"proj1": affine(config.in_width, first_out)}
    if config.has_mlp:
        shapes["proj2"] = affine(config.middle_width, config.out_width)
    if config.has_norms:
        before, after = (
            ("pre_ln", "post_ln") if config.kind == INNER else ("ln_source", "ln_target")
        )
        shapes |= {before: norm(config.in_width), after: norm(config.out_width)}
    if config.has_residual and config.kind == OUTER:
        shapes["residual_proj"] = affine(config.in_width, config.out_width)
    return shapes


def link_flops(config: LinkConfig) -> int:
    """FLOPs of sending one vector: 2 per weight of its kernels."""
    shapes = link_shapes(config).values()
    return sum(2 * math.prod(shape["kernel"]) for shape in shapes if "kernel" in shape)


def link_size(config: LinkConfig) -> int:
    """Number of parameters of a link."""
    shapes = link_shapes(config).values()
    return sum(math.prod(size) for of_module in shapes for size in of_module.values())


def init_link(config: LinkConfig, key: jax.Array, *, start: str = "torch_default") -> Any:
    """Fresh parameters, float32.

    Args:
      config: the link.
      key: PRNG key.
      start: "torch_default": kernels and biases uniform in +-1/sqrt(fan_in), as upstream.
        "identity": the residual path is the identity (an outer one an orthonormal map) and the
        rest is near zero.
    """
    if start not in ("torch_default", "identity"):
        raise ValueError(f"start must be torch_default or identity, got {start!r}")
    draw_key, map_key = jax.random.split(key)
    shapes = link_shapes(config)
    drawn = {name: shape for name, shape in shapes.items() if "kernel" in shape}
    sizes = [math.prod(size) for shape in drawn.values() for size in shape.values()]
    # One draw, cut into pieces: a generator per array would take seconds to compile.
    draws = jax.random.uniform(draw_key, (sum(sizes),), minval=-1.0, maxval=1.0)
    pieces = iter(jnp.split(draws, list(itertools.accumulate(sizes))[:-1]))
    params = {}
    for name, shape in shapes.items():
        if name not in drawn:
            params[name] = {"scale": jnp.ones(shape["scale"]), "bias": jnp.zeros(shape["bias"])}
            continue
        bound = shape["kernel"][0] ** -0.5
        kernel, bias = (bound * next(pieces).reshape(size) for size in shape.values())
        if start == "identity":
            bias = jnp.zeros_like(bias)
            if name == "residual_proj" or (not config.has_mlp and not config.has_residual):
                kernel = jax.nn.initializers.orthogonal()(map_key, shape["kernel"])
            elif name == "proj2" or not config.has_mlp:
                kernel = 0.01 * kernel
        params[name] = {"kernel": kernel, "bias": bias}
    return params


def align_link(config: LinkConfig, params: Any, source: jax.Array, target: jax.Array) -> Any:
    """An outer link that starts as a least-squares map between two embedding spaces.

    Args:
      config: an outer link with a residual branch.
      params: parameters to start from; their MLP branch is scaled down.
      source: [n, D] the sender's input embeddings of tokens that both vocabularies have.
      target: [n, D'] the receiver's input embeddings of the same tokens.

    Returns:
      Parameters whose residual branch is the least-squares affine map, whose MLP branch is near
      zero, and whose last norm, if any, restores the mean and scale of each target coordinate.
    """
    if config.kind != OUTER or not config.has_residual:
        raise ValueError(
            "an aligned link must be an outer one with a residual branch, got "
            f"{config.kind} {config.variant!r}"
        )
    center, mean = source.mean(0), target.mean(0)
    kernel = jnp.linalg.lstsq(source - center[None], target - mean[None])[0]
    bias = mean - _product(center, kernel)
    out = dict(params) | {"residual_proj": {"kernel": kernel, "bias": bias}}
    branch = "proj2" if config.has_mlp else "proj1"
    out[branch] = jax.tree.map(lambda p: 0.01 * p, params[branch])
    if config.has_norms:
        normed = _layer_norm(
            {"scale": jnp.ones_like(mean), "bias": jnp.zeros_like(mean)},
            _product(source, kernel) + bias[None],
        )
        spread = normed - normed.mean(0)[None]
        total = (spread**2).sum(0)
        # A coordinate without variance (a single token, for example) is its mean.
        scale = jnp.where(total > 0, (spread * (target - mean[None])).sum(0) / total, 0.0)
        out["ln_target"] = {"scale": scale, "bias": mean - scale * normed.mean(0)}
    return out


def _along_last(vector: jax.Array, x: jax.Array) -> jax.Array:
    """A vector [D] with as many axes as x."""
    return vector.reshape((1,) * (x.ndim - 1) + vector.shape)


def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A product in float32; by default, a TPU rounds its factors to bfloat16, a GPU to TF32."""
    return jnp.matmul(x, kernel, precision="highest")


def _affine(params: Any, x: jax.Array) -> jax.Array:
    return _product(x, params["kernel"]) + _along_last(params["bias"], x)


def _layer_norm(params: Any, x: jax.Array) -> jax.Array:
    centered = x - x.mean(-1, keepdims=True)
    variance = jnp.mean(centered**2, -1, keepdims=True)
    # A sum of squares that overflows would give 0 silently: NaN instead.
    scale = jnp.where(variance < jnp.inf, jax.lax.rsqrt(variance + LN_EPS), jnp.nan)
    normed = centered * scale
    return normed * _along_last(params["scale"], x) + _along_last(params["bias"], x)


@jax.named_scope("link")
def apply_link(config: LinkConfig, params: Any, x: jax.Array) -> jax.Array:
    """Sends vectors through a link.

    Args:
      config: variant and widths of the link.
      params: its parameters, float32.
      x: [..., D] hidden states.

    Returns:
      [..., D'] in the dtype of x; computed in float32.
    """
    raw = x.astype(jnp.float32)
    before, after = ("pre_ln", "post_ln") if config.kind == INNER else ("ln_source", "ln_target")
    out = _layer_norm(params[before], raw) if config.has_norms else raw
    out = _affine(params["proj1"], out)
    if config.has_mlp:
        out = _affine(params["proj2"], jax.nn.gelu(out, approximate=False))
    if config.has_residual:
        out += raw if config.kind == INNER else _affine(params["residual_proj"], raw)
    if config.has_norms:
        out = _layer_norm(params[after], out)
    return out.astype(x.dtype)
