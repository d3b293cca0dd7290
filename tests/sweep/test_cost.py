"""Estimates of memory and time: near what the compiler reports, and rising with every size."""

import re
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from scbjax import footprint, noise
from scbjax.blocks import BLOCK_ELEMENTS
from scbjax.experiments import scb_cost as cost
from scbjax.experiments.scb_cost import COST, run_seconds
from scbjax.sampling import POSITION_MAJOR_LIMIT
from scbjax.sweep.engine import inputs, mapped
from scbjax.sweep.plan.cost import default_memory_bytes, readable_bytes
from scbjax.sweep.plan.plans import Chunk, make_plan
from scbjax.sweep.plan.programs import Program
from scbjax.sweep.study.files import parse_study
from scbjax.tuples import PACKED_LIMIT

TEXT = """
[task]
num_tokens = 3
context_length = 500
[train]
batch_size = 64
steps = 100
record_every = 20
[axes]
seed = [0, 1]
sparsity = [1, 2]
"""


def program_of(*overrides: str, text: str = TEXT) -> Program:
    (program,) = make_plan(parse_study(text, "study", overrides), memory_bytes=2**50).programs
    return program


def compiled_bytes(program: Program) -> int:
    """Peak memory of a segment, as the compiler plans it."""
    plan_inputs = inputs.chunk_inputs(program, Chunk(0, 0, (0, 1), (0, 1)))
    shape = program.chunk_shape
    shapes = jax.jit(partial(mapped.prepare, program, shape)).lower(plan_inputs).out_info
    segment = jax.jit(partial(mapped.take_records, program, shape), donate_argnums=2)
    arguments = plan_inputs, shapes.tasks, shapes.carry, np.int32(0), np.int32(0)
    found: Any = segment.lower(*arguments).compile().memory_analysis()
    kept = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return int(kept + found.temp_size_in_bytes)


@pytest.mark.slow
@pytest.mark.parametrize("variable", ["stage", "rounded_value_distance"])
@pytest.mark.parametrize("seeds", [2, 32])
@pytest.mark.parametrize("sizes", [(3, 5000, 64), (3, 500, 16), (20, 2000, 32), (300, 2000, 16)])
def test_memory_is_within_three_tenths_of_the_compiled_programs(
    sizes: tuple[int, int, int], seeds: int, variable: str
) -> None:
    tokens, length, batch = sizes
    program = program_of(
        f"num_tokens={tokens}", f"context_length={length}", f"batch_size={batch}",
        f'record.variables=["{variable}"]', f"axes.seed={{range=[0, {seeds}]}}",
    )  # fmt: skip
    assert program.memory_bytes == pytest.approx(compiled_bytes(program), rel=0.3)


@pytest.mark.slow
def test_a_large_vocabulary_is_not_held_in_two_orders_between_stretches() -> None:
    """A is transposed within a stretch; around it, copies would stay while a record is taken."""
    sizes = "num_tokens=300", "context_length=5000", "batch_size=64", "axes.sparsity=[2]"
    program = program_of(*sizes, 'record.variables=["rounded_value_distance"]', "axes.seed=[0]")
    assert compiled_bytes(program) / (4 * 300 * 5000) < 6.6  # 6.2; with copies 6.9


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ("axes.seed={range=[0, 8]}", "axes.sparsity={range=[1, 9]}", "batch_size=16"),
        ("context_length=5000", "batch_size=8"),
    ],
)
def test_small_programs_of_short_steps_are_the_exception(overrides: tuple[str, ...]) -> None:
    """Of 1 to 3 MB, with packed tokens: told to take up to half as much again as they do."""
    program = program_of('record.variables=["stage"]', *overrides)
    assert 1.3 < program.memory_bytes / compiled_bytes(program) < 1.5


def test_kinds_of_vocabularies_are_those_of_the_model() -> None:
    assert footprint.SMALL_VOCABULARY == POSITION_MAJOR_LIMIT
    assert cost.PACKED_VOCABULARY == PACKED_LIMIT
    assert footprint.BLOCK_TOKENS == BLOCK_ELEMENTS


@pytest.mark.parametrize("override", ["context_length=1000", "batch_size=128", "num_tokens=4"])
def test_costs_rise_with_every_size(override: str) -> None:
    small, large = (program_of('record.variables=["stage"]', o).fixed for o in ("skew=2", override))
    assert COST.chunk_bytes(large, (1, 1), 1) > COST.chunk_bytes(small, (1, 1), 1)
    assert run_seconds(large, (1, 1)) > run_seconds(small, (1, 1))


def test_what_is_not_tagged_costs_by_the_vocabulary_and_not_by_the_context() -> None:
    def seconds(**sizes: int) -> float:
        simulated = {f"task.{name}": size for name, size in sizes.items()}
        return run_seconds({**program_of().fixed, cost.TAGGED: 10, **simulated}, (1, 1))

    assert seconds(context_length=10**6) == seconds(context_length=10**5)
    assert seconds(num_tokens=500) > 6 * seconds(num_tokens=100)  # products go by its square


def test_trajectories_of_an_outer_point_share_its_draws() -> None:
    values = program_of().fixed
    assert (
        run_seconds(values, (1, 8))
        < run_seconds(values, (8, 1))
        < 8.001 * run_seconds(values, (1, 1))
    )
    assert COST.chunk_bytes(values, (1, 8), 1) < COST.chunk_bytes(values, (8, 1), 8)


def test_a_simulation_costs_what_its_tagged_positions_cost() -> None:
    stage = 'record.variables=["stage"]'
    sizes = ("context_length=99999", "tagged_positions=60")
    long = program_of(*sizes, stage, text=f'experiment = "simulated"\n{TEXT}').fixed
    short = program_of("context_length=60", stage).fixed
    assert COST.chunk_bytes(long, (2, 2), 1) == COST.chunk_bytes(short, (2, 2), 1)
    assert run_seconds(long, (2, 2)) > run_seconds(short, (2, 2))  # what is summed up is drawn too


def test_blocks_save_memory() -> None:
    values = program_of().fixed
    assert COST.chunk_bytes(values, (8, 1), 1) < COST.chunk_bytes(values, (8, 1), 2)
    assert COST.chunk_bytes(values, (8, 1), 8) == 8 * COST.chunk_bytes(values, (1, 1), 1)


def test_the_refit_of_records_costs_time_and_memory() -> None:
    without = program_of('record.variables=["stage"]').fixed
    with_refit = program_of('record.variables=["rounded_value_distance"]').fixed
    smaller = program_of('record.variables=["rounded_value_distance"]', "refit_support=8").fixed
    for values in (without, smaller):
        assert COST.chunk_bytes(values, (1, 1), 1) < COST.chunk_bytes(with_refit, (1, 1), 1)
        assert run_seconds(values, (1, 1)) < run_seconds(with_refit, (1, 1))


def test_the_noise_of_records_costs_time_and_the_memory_of_a_piece() -> None:
    assert cost._NOISE_PIECE == noise._PIECE_TOKENS
    signal = program_of("record.variables=['alpha_value']")
    measured = program_of("record.variables=['alpha_value_noise_mu']")
    more = program_of("record.variables=['alpha_value_noise_mu']", "noise_samples=8192")
    assert signal.seconds < measured.seconds < more.seconds
    assert signal.memory_bytes < measured.memory_bytes == more.memory_bytes


def test_the_start_of_a_transfer_costs_time_and_its_pretraining_memory() -> None:
    stage = 'record.variables=["stage"]'
    uniform, transfer, pretrained = (
        program_of(stage, f"start={start}") for start in ("uniform", "transfer", "pretrained")
    )
    assert uniform.seconds < transfer.seconds < pretrained.seconds
    assert transfer.tokens - uniform.tokens == 4 * 500 * 4096
    assert pretrained.tokens - transfer.tokens == 4 * 500 * 1000 * 128
    assert uniform.memory_bytes == transfer.memory_bytes < pretrained.memory_bytes


def test_adam_keeps_two_moments_of_every_parameter() -> None:
    values = program_of("optimizer='raw_sgd'").fixed
    adam = program_of("optimizer='adam'").fixed
    assert cost.kept_bytes(adam) - cost.kept_bytes(values) == 2 * 4 * (500 * 3 + 3 * 3)


def test_half_of_the_memory_is_the_default() -> None:
    found = re.search(r"MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    assert found is not None
    assert default_memory_bytes() == pytest.approx(int(found[1]) * 1024 / 2, rel=0.01)


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (2**60, "1048576.0 TiB")]
)
def test_bytes_are_readable(size: int, text: str) -> None:
    assert readable_bytes(size) == text
