"""What the shipped studies compile is lowered for GPUs and TPUs, without having one.

Lowering finds what a platform has no rule for: a factorisation, a callback, a type of number. What
is lowered is the program of an accelerator, which has no blocks (`scbjax.blocks.for_platform`).
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import export

import scbjax
from scbjax.blocks import for_platform, has_blocks
from scbjax.singly import one_by_one
from scbjax.sweep.engine.compiled import mesh_of, parts_of
from scbjax.sweep.engine.inputs import numbers_of
from scbjax.sweep.plan.plans import make_plan
from scbjax.sweep.plan.programs import Program
from scbjax.sweep.search import first_studies
from scbjax.sweep.study.cells import is_search
from scbjax.sweep.study.files import load_study

PLATFORMS = ("cuda", "tpu")
SHIPPED = sorted(path.stem for path in (Path(__file__).parents[2] / "sweeps").glob("*.toml"))
QUICK = ("lags", "quickstart", "scale")  # an experiment made of parts; packed tokens; columns


def programs_of(name: str) -> Iterator[Program]:
    """What a study compiles at its small size, which has the same programs in fewer sizes."""
    study = load_study(name, small=True)
    for part in first_studies(study) if is_search(study) else [study]:
        yield from make_plan(part).programs


def lowered(function: Any, *arguments: Any) -> str:  # noqa: ANN401 - a jitted function
    """The text of a function that is lowered for all platforms."""
    found = export.export(function, platforms=PLATFORMS)(*arguments)
    assert found.platforms == PLATFORMS
    text = found.mlir_module()
    # Neither the CPU's LAPACK nor a call back to Python.
    assert not re.findall(r"(?:lapack_|callback)\w{0,40}", text)
    return str(text)


def lower(program: Program) -> None:
    with numbers_of(program), for_platform("cuda"):
        for part in parts_of(program, mesh_of(program)):
            lowered(part.function, *part.arguments)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in SHIPPED],
)
def test_every_shipped_study_is_lowered_for_accelerators(name: str) -> None:
    programs = list(programs_of(name))
    assert programs
    for program in programs[:1] if name in QUICK else programs:
        lower(program)


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_all_programs_of_the_quick_ones_too(name: str) -> None:
    for program in programs_of(name):
        lower(program)


@pytest.mark.parametrize(
    ("num_tokens", "options"),
    [
        (3, {}),
        (20, {}),
        (300, {}),
        (3, {"attention_map": "softmax", "optimizer": "adam"}),
        pytest.param(
            300, {"attention_map": "softmax", "optimizer": "adam"}, marks=pytest.mark.slow
        ),
    ],
    ids=str,
)
def test_trajectories_are_lowered_for_accelerators(
    num_tokens: int, options: dict[str, Any]
) -> None:
    def run(key: jax.Array) -> jax.Array:
        task_key, data_key = jax.random.split(key)
        task = scbjax.random_task(task_key, num_tokens=num_tokens, context_length=64, sparsity=2)
        settings = scbjax.Settings(
            batch_size=8, steps=4, record_every=2, record=("attention_distance",), **options
        )
        records: jax.Array = scbjax.train(data_key, task, settings).records["attention_distance"]
        return records

    with for_platform("cuda"):
        lowered(jax.jit(jax.vmap(run)), jax.random.split(jax.random.key(0), 2))


def test_another_platform_has_another_program_also_where_one_was_traced_before() -> None:
    """On a CPU `one_by_one` is a loop, elsewhere a batch."""

    @jax.jit
    def mapped(numbers: jax.Array) -> jax.Array:
        more: jax.Array = jax.vmap(one_by_one(lambda x: x + 1))(numbers)
        return more

    def primitives() -> set[str]:
        return {str(one.primitive) for one in mapped.trace(jnp.zeros(3)).jaxpr.eqns}

    here = primitives()
    assert has_blocks()
    with for_platform("tpu"):
        assert not has_blocks()
        there = primitives()
    assert has_blocks()
    assert primitives() == here
    assert there == {"add"}
    assert "add" not in here
