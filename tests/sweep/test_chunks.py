"""What a program does once only: it is compiled, its words are drawn, its state is held."""

import itertools
import math
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest

from scbjax.experiments.scb_cost import COST
from scbjax.sweep.engine import chunks, inputs as chunk_numbers, mapped
from scbjax.sweep.engine.chunks import Executor
from scbjax.sweep.engine.inputs import Inputs
from scbjax.sweep.engine.mapped import Prepared
from scbjax.sweep.plan.plans import Chunk, make_plan
from scbjax.sweep.plan.programs import Program
from scbjax.sweep.study.files import parse_study

TEXT = """
title = "A title"
[task]
num_tokens = 2
context_length = 12
sparsity = 2
[train]
batch_size = 4
steps = 4
record_every = 2
refit_samples = 8
[record]
variables = ["stage"]
[axes]
seed = [0]
"""
REFIT = 'record.variables=["rounded_value_distance"]'


def program_of(*overrides: str) -> Program:
    """The one program of a study, in one chunk and one block."""
    (program,) = make_plan(parse_study(TEXT, "study", overrides), cache_bytes=None).programs
    return program


def segment_of(program: Program) -> tuple[Any, tuple[Any, ...]]:
    """The function that takes records, and the shapes of its arguments."""
    inputs: Inputs = chunk_numbers.chunk_inputs(program, Chunk(0, 0, (0, 1), (0, 1)))
    prepare = partial(mapped.prepare, program, program.chunk_shape)
    prepared: Prepared = jax.eval_shape(prepare, inputs)
    arguments = inputs, prepared.tasks, prepared.carry, np.int32(0), np.int32(0)
    return partial(mapped.take_records, program, program.chunk_shape), arguments


# ---------------------------------------------------------------------------- random words


def equations(jaxpr: Any) -> Iterator[Any]:  # noqa: ANN401 - the type of jaxprs is not public
    """All equations of a jaxpr, with those of the loops and branches in it."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")
        ):
            if hasattr(inner, "eqns"):
                yield from equations(getattr(inner, "jaxpr", inner))


def rotated(program: Program) -> int:
    """Elements that are shifted to the left: what the generator does, and nothing else in a run."""
    function, arguments = segment_of(program)
    return sum(
        math.prod(equation.outvars[0].aval.shape)
        for equation in equations(jax.make_jaxpr(function)(*arguments).jaxpr)
        if equation.primitive.name == "shift_left"
    )


@pytest.mark.parametrize(
    ("record", "axis", "num_tokens"),
    [
        ('record.variables=["stage"]', "l1=[0, 1, 2, 3, 4, 5, 6, 7]", 2),
        ('record.variables=["stage"]', "sparsity=[1, 2, 3, 4]", 40),
        (REFIT, "l1=[0, 1, 2, 3, 4, 5, 6, 7]", 6),
    ],
)
def test_random_words_are_drawn_once_for_all_learners(
    record: str, axis: str, num_tokens: int
) -> None:
    overrides = record, f"num_tokens={num_tokens}"
    alone = rotated(program_of(*overrides))
    assert alone > 4 * 12  # at least one rotation for a word of two tokens
    assert rotated(program_of(*overrides, f"axes.{axis}")) == alone
    assert rotated(program_of(*overrides, "axes.seed=[0, 1]")) > 1.9 * alone


# ---------------------------------------------------------------------------- compilations


@pytest.mark.slow
def test_a_mixed_grid_compiles_a_program_for_each_static_combination() -> None:
    axes = "axes.batch_size=[2, 3, 4]", "axes.seed={range=[0, 8]}", f"axes.l1={[*range(8)]}"
    study = parse_study(TEXT, "study", axes)
    values = make_plan(study).programs[-1].fixed
    budget = COST.chunk_bytes(values, (3, 8), 1)
    plan = make_plan(study, memory_bytes=budget, cache_bytes=1)
    assert (plan.num_trajectories, len(plan.programs)) == (3 * 64, 3)
    assert len(plan.chunks) > 6
    compiled: list[str] = []

    def listen(event: str, duration_secs: float, **_: str | int) -> None:  # noqa: ARG001
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    # It stays: the oldest JAX can't unregister it, and it does nothing but count.
    jax.monitoring.register_event_duration_secs_listener(listen)
    executor, announced, counts = Executor(plan), [], [0]
    for chunk in plan.chunks:
        executor.run(chunk.index, compiling=lambda program: announced.append(program.index))
        counts.append(len(compiled))
    compiling = {
        chunk.index
        for chunk, (before, after) in zip(plan.chunks, itertools.pairwise(counts), strict=True)
        if after > before
    }
    firsts = {chunk.program: chunk.index for chunk in reversed(plan.chunks)}
    assert compiling == set(firsts.values())
    assert announced == [0, 1, 2]


def test_results_do_not_depend_on_a_precision_set_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = []

    def compile_none(*_: object) -> None:
        found.append(getattr(jax.config, "jax_default_matmul_precision", None))
        raise InterruptedError

    monkeypatch.setattr(chunks, "compile_program", compile_none)
    plan = make_plan(parse_study(TEXT, "study"))
    with jax.default_matmul_precision("tensorfloat32"), pytest.raises(InterruptedError):
        Executor(plan).run(0)
    assert found == ["highest"]


def test_modules_are_loaded_while_the_compiler_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "sched", raising=False)
    plan = make_plan(parse_study(TEXT, "study"))
    Executor(plan, ahead=("not_installed_anywhere", "sched")).run(0)
    assert "sched" in sys.modules


# ---------------------------------------------------------------------------- memory


def test_nothing_grows_with_the_steps_and_the_state_is_held_once() -> None:
    found = []
    for steps in (100, 10_000):
        function, arguments = segment_of(
            program_of(f"steps={steps}", f"record_every={steps // 5}", "axes.seed=[0, 1]")
        )
        compiled = jax.jit(function, donate_argnums=2).lower(*arguments).compile()
        memory: Any = compiled.memory_analysis()
        found.append(
            (
                memory.temp_size_in_bytes,
                memory.argument_size_in_bytes,
                memory.output_size_in_bytes,
                memory.alias_size_in_bytes,
            )
        )
        carry = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(arguments[2]))
        assert memory.alias_size_in_bytes == carry  # donated: what comes out lies where it was
    assert found[0] == found[1]
