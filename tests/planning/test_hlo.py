"""Counts of compiled programs against closed forms; XLA's own analysis is the control."""

import functools
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from rmas_jax.planning.hlo import LINK_BYTES, program_cost
from rmas_jax.sharding import make_mesh

D = 32


def compiled(function, *shapes, dtype=jnp.float32):
    arguments = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    return jax.jit(function).lower(*arguments).compile()


def layers(x, weights):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]


def test_a_loop_counts_as_often_as_it_runs():
    program = compiled(layers, (8, D), (5, D, D))
    cost = program_cost(program.as_text())
    assert cost.flops == 5 * 2 * 8 * D * D
    assert cost.collectives == () and cost.link_bytes == 0
    # The control: XLA counts the body once.
    assert program.cost_analysis()["flops"] < 0.5 * cost.flops


def test_nested_loops_multiply_and_gradients_count():
    def nested(x, weights):
        return jax.lax.fori_loop(0, 3, lambda _, x: layers(x, weights), x)

    assert program_cost(compiled(nested, (8, D), (5, D, D)).as_text()).flops == 15 * 2 * 8 * D * D
    gradient = jax.grad(lambda x, w: layers(x, w).sum(), argnums=(0, 1))
    cost = program_cost(compiled(gradient, (8, D), (5, D, D)).as_text())
    assert cost.flops == 3 * 5 * 2 * 8 * D * D


@pytest.mark.parametrize(
    ("equation", "shapes", "flops"),
    [
        ("bqnh,bsnh->bnqs", [(2, 3, 4, 8), (2, 7, 4, 8)], 2 * (2 * 4 * 3 * 7) * 8),
        ("btd,df->btf", [(2, 5, 16), (16, 24)], 2 * (2 * 5 * 24) * 16),
        ("btf,fd->btd", [(2, 5, 24), (24, 16)], 2 * (2 * 5 * 16) * 24),
    ],
)
def test_products_of_all_layouts(equation, shapes, flops):
    program = compiled(functools.partial(jnp.einsum, equation), *shapes)
    assert program_cost(program.as_text()).flops == flops


@pytest.mark.parametrize(("padding", "outputs"), [("VALID", 6 * 3), ("SAME", 8 * 3 - 2)])
def test_convolutions_without_their_padding(padding, outputs):
    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (1,), padding, dimension_numbers=("NWC", "WIO", "NWC")
        )

    program = compiled(convolve, (2, 8, 4), (3, 4, 5))
    assert program_cost(program.as_text()).flops == 2 * (2 * 4 * 5) * outputs


@pytest.mark.parametrize(("precision", "passes"), [("default", 1), ("highest", 6)])
def test_passes_of_a_float32_product(precision, passes):
    def convolve(x, kernel):
        numbers = ("NWC", "WIO", "NWC")
        return jax.lax.conv_general_dilated(
            x, kernel, (1,), "VALID", dimension_numbers=numbers, precision=precision
        )

    text = compiled(convolve, (2, 8, 4), (3, 4, 5)).as_text()
    flops = 2 * (2 * 4 * 5) * 6 * 3
    assert program_cost(text).flops == passes * flops
    assert program_cost(text.replace("f32", "bf16")).flops == flops  # the control


def test_a_loop_whose_condition_names_its_bound():
    def doubled(x, limit):
        def running(carry):
            return (carry[0] < 9) & jnp.any(carry[1] < limit)

        return jax.lax.while_loop(running, lambda c: (c[0] + 1, c[1] @ c[1]), (2, x))

    text = compiled(doubled, (D, D), ()).as_text()
    assert "known_trip_count" not in text
    assert program_cost(text).flops == 7 * 2 * D**3


def test_a_loop_whose_runs_are_data():
    def powers(x, count):
        return jax.lax.fori_loop(0, count.astype(jnp.int32), lambda _, x: x @ x, x)

    text = compiled(powers, (D, D), ()).as_text()
    assert program_cost(text, unknown_trips=4).flops == 4 * 2 * D**3
    with pytest.raises(ValueError, match="unknown_trips must be a number"):
        program_cost(text)


def test_of_a_conditional_the_expensive_branch_counts():
    def choose(x, flag):
        return jax.lax.cond(flag > 0, lambda: x @ x @ x, lambda: x @ x)

    text = compiled(choose, (D, D), ()).as_text()
    assert program_cost(text).flops == 2 * 2 * D**3
    assert program_cost(text, taken=0.25).flops == 2 * 2 * D**3 / 4


def test_scopes_share_a_program():
    def program(x):
        def step(x, _):
            with jax.named_scope("once"):
                x = x @ x
            with jax.named_scope("twice"):
                return x @ x @ x, None

        return jax.lax.scan(step, x, None, length=5)[0]

    text = compiled(program, (D, D)).as_text()

    def flops(scope):
        return program_cost(text, counts=lambda x: f"/{scope}/" in x.attributes).flops

    assert flops("twice") == 2 * flops("once") == 2 * 5 * 2 * D**3
    assert flops("never") == 0


def test_bytes_of_a_loop_over_layers_are_their_weights():
    """A layer reads its own slice of the stacked weights, not all of them."""
    cost = program_cost(compiled(layers, (1, 256), (6, 256, 256)).as_text())
    weights = 6 * 256 * 256 * 4
    assert weights <= cost.memory_bytes < 3.2 * weights  # a CPU copies the slice first


def test_appending_in_place_moves_one_row():
    def append(cache, row):
        def step(cache, at):
            return jax.lax.dynamic_update_slice_in_dim(cache, row, at, 0), None

        return jax.lax.scan(step, cache, jnp.arange(10))[0]

    cost = program_cost(compiled(append, (1000, 64), (1, 64)).as_text())
    assert cost.memory_bytes < 3 * 1000 * 64 * 4  # at most one copy of all, at the start


@pytest.fixture(scope="module")
def summed():
    """A sum over four devices in each of six steps, and a gather of the result."""
    mesh = make_mesh(data=2, fsdp=4)

    @functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=PartitionSpec("data", "fsdp"),
        out_specs=PartitionSpec("data", None),
        check_vma=False,
    )
    def program(x):
        def step(x, _):
            return jnp.tanh(jax.lax.psum(x, "fsdp")), None

        x, _ = jax.lax.scan(step, x, None, length=6)
        return jax.lax.all_gather(x, "fsdp", axis=1, tiled=True)

    sharding = NamedSharding(mesh, PartitionSpec("data", "fsdp"))
    x = jax.ShapeDtypeStruct((16, 40), jnp.float32, sharding=sharding)
    return program_cost(jax.jit(program).lower(x).compile().as_text())


def test_collectives_count_with_their_loop(summed):
    local = 8 * 10 * 4  # bytes of a device's part
    assert summed.by_kind == {
        "all-gather": (1, 3 * local),
        "all-reduce": (6, 6 * 2 * local * 3 / 4),
    }
    assert {c.devices for c in summed.collectives} == {4}
    assert summed.count() == 7 and summed.link_bytes == 12 * local


def test_rings_of_one_device_send_nothing():
    within = {kind: sent(8.0, 1) for kind, sent in LINK_BYTES.items()}
    assert {kind for kind, sent in within.items() if sent} == {
        "collective-permute",
        "collective-broadcast",
    }


ASYNCHRONOUS = """HloModule jit_f, num_partitions=8

%start (p.0: f32[8]) -> (f32[8], f32[32]) {
  %p.0 = f32[8]{0} parameter(0)
  %all-gather.1 = f32[32]{0} all-gather(%p.0), replica_groups=GROUPS, CHAIN
  ROOT %call.1 = (f32[8]{0}, f32[32]{0}) custom-call(%all-gather.1), START
}

%done (p.1: f32[8], p.2: f32[32]) -> f32[32] {
  %p.1 = f32[8]{0} parameter(0)
  %p.2 = f32[32]{0} parameter(1)
  %all-gather.2 = f32[32]{0} all-gather(%p.1), replica_groups=GROUPS, CHAIN
  ROOT %call.2 = f32[32]{0} custom-call(%p.1, %p.2, %all-gather.2), DONE
}

ENTRY %main (x: f32[8]) -> f32[32] {
  %x = f32[8]{0:T(128)} parameter(0)
  %fusion.1 = (f32[8]{0}, f32[32]{0}) fusion(%x), kind=kCustom, calls=%start
  %get.0 = f32[8]{0} get-tuple-element(%fusion.1), index=0
  %get.1 = f32[32]{0} get-tuple-element(%fusion.1), index=1
  ROOT %fusion.2 = f32[32]{0} fusion(%get.0, %get.1), kind=kCustom, calls=%done
}
"""  # as a compiler for TPUs writes it


@pytest.mark.parametrize(
    ("groups", "devices"),
    [
        ("mesh['axis_0'=2,'axis_1'=4] {'axis_1'}", 4),
        ("mesh['axis_0'=8] {'axis_0':(2)4}", 4),
        ("mesh['axis_0'=4,'axis_1'=2], device_ids=([2,4]T(1,0)) {'axis_0'}", 4),
        ("[2,4]<=[4,2]T(1,0)", 4),
        ("{{0,1},{2,3},{4,5},{6,7}}", 2),
        ("{}", 8),
    ],
)
def test_groups_of_all_notations_and_an_asynchronous_collective_counts_once(groups, devices):
    attributes = {
        "GROUPS": groups,
        "CHAIN": 'dimensions={0}, frontend_attributes={chain_id="0"}',
        "START": 'custom_call_target="AsyncCollectiveStart"',
        "DONE": 'custom_call_target="AsyncCollectiveDone"',
    }
    text = re.sub("|".join(attributes), lambda match: attributes[match[0]], ASYNCHRONOUS)
    cost = program_cost(text)
    assert cost.by_kind == {"all-gather": (1, 8 * 4 * (devices - 1))}
    assert cost.memory_bytes == (8 + 32) * 4


def test_groups_of_an_unknown_notation_are_no_guess():
    with pytest.raises(ValueError, match="known notation, got ranks"):
        program_cost(ASYNCHRONOUS.replace("GROUPS", "ranks(0:8)").replace(", CHAIN", ""))


ASYNCHRONOUS_SLICE = """HloModule sliced, num_partitions=1

ENTRY %main (x: f32[28,64]) -> f32[7,64] {
  %x = f32[28,64]{1,0} parameter(0)
  %begun = ((f32[28,64]{1,0}), f32[7,64]{1,0PLACE}, s32[]) slice-start(%x), slice={[0:7], [0:64]}
  %part = f32[7,64]{1,0PLACE} slice-done(%begun)
  ROOT %out = f32[7,64]{1,0} negate(%part)
}
"""


@pytest.mark.parametrize(("place", "passes"), [("", 4), (":S(1)", 2)])
def test_an_asynchronous_slice_reads_its_part(place, passes):
    """From main memory to main memory, or to the chip: as compilers for TPUs prefetch weights."""
    cost = program_cost(ASYNCHRONOUS_SLICE.replace("PLACE", place))
    assert cost.memory_bytes == passes * 7 * 64 * 4


ROOM = """HloModule stacked, num_partitions=1

ENTRY %main (x: f32[1,64], i: s32[]) -> f32[28,64] {
  %x = f32[1,64]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %room = f32[28,64]{1,0} custom-call(), custom_call_target="TARGET"
  ROOT %out = f32[28,64]{1,0} dynamic-update-slice(%room, %x, %i, %zero)
}
"""


@pytest.mark.parametrize(("target", "written"), [("AllocateBuffer", 0), ("Other", 28 * 64 * 4)])
def test_room_for_a_result_is_not_written(target, written):
    """As compilers for TPUs begin what a loop stores; two indices are read, too."""
    cost = program_cost(ROOM.replace("TARGET", target))
    assert cost.memory_bytes == written + 2 * 64 * 4 + 2 * 4


def test_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match="text must be compiled HLO"):
        program_cost("nothing")
