"""The planner: every grid point once, in the right program and layer, within the memory budget."""

import subprocess
import sys
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from scbjax.base import StudyError
from scbjax.experiments.scb import EXPERIMENT
from scbjax.experiments.scb_cost import COST
from scbjax.sweep.plan.plans import Plan, make_plan, plan_with_layout
from scbjax.sweep.plan.programs import Program
from scbjax.sweep.study.fields import fields_of
from scbjax.sweep.study.files import Study, parse_study

FIELDS = fields_of(EXPERIMENT)
BASE = {
    "task": {"num_tokens": 3, "context_length": 20, "sparsity": 2},
    "train": {"batch_size": 4, "steps": 20, "record_every": 10},
}
PLENTY = 2**40
# Values that an axis over each field may take, of every kind and layer.
VALUES: dict[str, list[Any]] = {
    "seed": [0, 1, 2, 3, 4],
    "task_seed": [7, 8],
    "init_seed": [3, 4],
    "task.sparsity": [1, 2, 3],
    "task.skew": [1.5, 2.0],
    "task.num_tokens": [2, 3],
    "train.batch_size": [4, 8],
    "train.optimizer": ["proximal", "sgd", "raw_sgd"],
    "train.geometry": ["mu", "paper"],
    "train.l1": [1e-4, 1e-3],
    "train.threshold": [0.1, 0.2, 0.3],
    "train.learning_rate_2": [0.01, 0.02],
}


def toml(value: float | str) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


def make_study(
    *groups: tuple[str, ...], lengths: dict[str, int] | None = None, seeds: int | None = None
) -> Study:
    """A study whose axes are the given groups of fields; several fields in a group are zipped."""
    swept = {path for group in groups for path in group}
    columns = {path: VALUES[path][: (lengths or {}).get(path)] for path in swept}
    if seeds is not None:
        columns["seed"] = list(range(seeds))
    lines = []
    for table, fields in BASE.items():
        lines.append(f"[{table}]")
        kept = {k: v for k, v in fields.items() if f"{table}.{k}" not in swept}
        lines += [f"{key} = {value}" for key, value in kept.items()]
    lines.append("[axes]")
    lines += [f'"{g[0]}" = [{", ".join(map(toml, columns[g[0]]))}]' for g in groups if len(g) == 1]
    for group in (group for group in groups if len(group) > 1):
        size = min(len(columns[path]) for path in group)
        lines += ["[[zip]]", 'name = "arm"']
        for path in group:
            lines.append(f'"{path}" = [{", ".join(map(toml, columns[path][:size]))}]')
    return parse_study("\n".join(lines), "study")


@st.composite
def studies(draw: st.DrawFn) -> Study:
    paths = draw(st.lists(st.sampled_from(sorted(VALUES)), max_size=5, unique=True))
    lengths = {path: draw(st.integers(1, len(VALUES[path]))) for path in paths}
    zipped = draw(st.integers(0, len(paths)))
    groups: list[tuple[str, ...]] = [(path,) for path in paths[zipped:]]
    if zipped >= 1:
        groups.append(tuple(paths[:zipped]))
    return make_study(*groups, lengths=lengths)


def expected_values(study: Study, position: int) -> dict[str, Any]:
    """What the program must run at a place of the flattened grid, read off the study directly."""
    values = dict(study.base)
    for axis in reversed(study.axes):  # the last axis varies fastest
        position, row = divmod(position, len(axis.values))
        values.update(zip(axis.fields, axis.values[row], strict=True))
    if values["train.optimizer"] == "sgd":
        values.update({"train.optimizer": "proximal", "train.l1": 0.0, "train.threshold": 0.0})
        values.update({"train.stop_level": float("inf"), "train.stop_step": 2**31 - 1})
    return values


def planned_values(program: Program, outer: int, inner: int) -> dict[str, Any]:
    values = dict(program.fixed)
    values.update({path: column[outer] for path, column in program.outer.columns.items()})
    values.update({path: column[inner] for path, column in program.inner.columns.items()})
    return values


def smallest_budget(study: Study) -> int:
    """Memory for one trajectory of each program at a time."""
    programs = make_plan(study, memory_bytes=PLENTY).programs
    return max(COST.chunk_bytes(program.fixed, (1, 1), 1) for program in programs)


@given(studies(), st.integers(1, 64), st.integers(1, 5), st.none() | st.integers(1, 10**6))
def test_every_grid_point_is_in_one_chunk(
    study: Study, share: int, devices: int, cache: int | None
) -> None:
    largest = make_plan(study, memory_bytes=PLENTY).memory_bytes
    budget = max(largest // share, smallest_budget(study))
    plan = make_plan(study, memory_bytes=budget, device_count=devices, cache_bytes=cache)
    positions = [plan.positions(chunk).ravel() for chunk in plan.chunks]
    assert sorted(np.concatenate(positions)) == list(range(study.num_trajectories))
    assert [chunk.index for chunk in plan.chunks] == list(range(len(plan.chunks)))


@given(studies())
def test_every_point_runs_with_its_own_values(study: Study) -> None:
    for program in make_plan(study, memory_bytes=PLENTY).programs:
        for (outer, inner), position in np.ndenumerate(program.positions):
            assert planned_values(program, outer, inner) == expected_values(study, int(position))


@given(studies())
def test_a_field_is_fixed_or_in_one_layer(study: Study) -> None:
    for program in make_plan(study, memory_bytes=PLENTY).programs:
        outer, inner, fixed = program.outer.columns, program.inner.columns, program.fixed
        assert sorted([*outer, *inner, *fixed]) == sorted(FIELDS)
        assert all(FIELDS[path].layer == "inner" for path in inner)
        assert all(FIELDS[path].kind != "static" for path in (*outer, *inner))


def single(plan: Plan) -> Program:
    (program,) = plan.programs
    return program


def test_axes_go_to_their_layers() -> None:
    plan = make_plan(make_study(("seed",), ("task.sparsity",), ("train.l1",)), memory_bytes=PLENTY)
    program = single(plan)
    assert set(program.outer.columns) == {"seed"}
    assert set(program.inner.columns) == {"task.sparsity", "train.l1"}
    assert (program.outer.size, program.inner.size) == (5, 6)


def test_a_zip_with_an_outer_field_goes_outside_as_a_whole() -> None:
    program = single(make_plan(make_study(("seed", "train.l1")), memory_bytes=PLENTY))
    assert set(program.outer.columns) == {"seed", "train.l1"}
    assert program.outer.size == 2
    assert program.inner.size == 1


def test_proximal_and_sgd_share_a_program_and_raw_sgd_has_its_own() -> None:
    plan = make_plan(make_study(("seed",), ("train.optimizer",)), memory_bytes=PLENTY)
    shared, raw = plan.programs
    assert shared.fixed["train.optimizer"] == "proximal"
    assert shared.inner.columns["train.l1"] == (1e-4, 0.0)
    assert shared.inner.columns["train.threshold"] == (0.25, 0.0)
    assert raw.fixed["train.optimizer"] == "raw_sgd"
    assert raw.inner.size == 1


def test_sgd_alone_is_the_proximal_program_without_thresholds() -> None:
    study = make_study(("train.optimizer",), lengths={"train.optimizer": 2})
    alone = parse_study(
        "[task]\nnum_tokens = 3\ncontext_length = 20\nsparsity = 2\n"
        '[train]\nbatch_size = 4\nsteps = 20\nrecord_every = 10\noptimizer = "sgd"\n',
        "study",
    )
    fixed = single(make_plan(alone, memory_bytes=PLENTY)).fixed
    assert (fixed["train.optimizer"], fixed["train.l1"], fixed["train.threshold"]) == (
        "proximal",
        0.0,
        0.0,
    )
    assert single(make_plan(study, memory_bytes=PLENTY)).fixed["train.optimizer"] == "proximal"


def test_a_threshold_that_depends_on_both_layers_moves_the_optimizer_outside() -> None:
    groups = ("seed", "train.l1"), ("train.optimizer",), ("train.threshold",), ("task.sparsity",)
    lengths = {"train.optimizer": 2}
    program = single(make_plan(make_study(*groups, lengths=lengths), memory_bytes=PLENTY))
    assert set(program.inner.columns) == {"task.sparsity"}
    assert program.outer.size == 2 * 2 * 3


def test_static_axes_make_one_program_for_each_combination() -> None:
    study = make_study(("task.num_tokens",), ("train.geometry",), ("seed",))
    plan = make_plan(study, memory_bytes=PLENTY)
    pairs = {(p.fixed["task.num_tokens"], p.fixed["train.geometry"]) for p in plan.programs}
    assert pairs == {(2, "mu"), (2, "paper"), (3, "mu"), (3, "paper")}
    assert len(plan.chunks) == 4


def test_a_study_without_axes_is_one_trajectory() -> None:
    plan = make_plan(make_study(), memory_bytes=PLENTY)
    assert plan.shape == ()
    assert [plan.positions(chunk).tolist() for chunk in plan.chunks] == [[[0]]]


@given(st.floats(0, 2), st.integers(1, 4), st.none() | st.integers(1, 10**6))
def test_chunks_fit_the_budget_and_are_cut_outside_first(
    share: float, devices: int, cache: int | None
) -> None:
    study = make_study(("seed",), ("task.sparsity",), ("train.l1",))
    whole = single(make_plan(study, memory_bytes=PLENTY, cache_bytes=cache))
    budget = int(share * whole.memory_bytes)
    smallest = COST.chunk_bytes(whole.fixed, (1, 1), 1)
    if budget < smallest:
        with pytest.raises(StudyError, match="one trajectory needs"):
            make_plan(study, memory_bytes=budget, device_count=devices, cache_bytes=cache)
        return
    plan = make_plan(study, memory_bytes=budget, device_count=devices, cache_bytes=cache)
    assert plan.memory_bytes <= budget
    one_outer = COST.chunk_bytes(whole.fixed, (1, whole.inner.size), 1)
    assert (single(plan).chunk_shape[1] == whole.inner.size) == (one_outer <= budget)


@given(st.integers(1, 300), st.integers(1, 4), st.none() | st.integers(1, 10**7))
def test_a_chunk_is_a_whole_number_of_blocks_with_little_padding(
    seeds: int, devices: int, cache: int | None
) -> None:
    study = make_study(("seed",), seeds=seeds)
    plan = make_plan(study, memory_bytes=PLENTY, device_count=devices, cache_bytes=cache)
    program = single(plan)
    outer, _, block = plan.layout[0]
    together = program.devices
    assert together <= min(devices, seeds)
    assert outer % (together * block) == 0
    assert seeds <= outer < seeds + together + 0.05 * (seeds + together)
    if cache is None:
        assert (together, block) == (min(devices, seeds), outer // together)
    else:
        assert block == 1 or block * COST.step_bytes(program.fixed, 1) <= cache


def test_chunks_hold_a_multiple_of_the_devices() -> None:
    def shared(seeds: int, device_count: int, cache_bytes: int | None) -> tuple[int, int]:
        study = make_study(("seed",), seeds=seeds)
        sizes = {"memory_bytes": PLENTY, "device_count": device_count, "cache_bytes": cache_bytes}
        program = single(make_plan(study, **sizes))  # type: ignore[arg-type]
        return program.chunk_shape[0], program.devices

    # Five seeds: with eight devices, five of them get one each.
    assert [shared(5, d, None) for d in (1, 2, 4, 8)] == [(5, 1), (6, 2), (8, 4), (5, 5)]
    # CPU devices share the cores: none of them is made to work on padding.
    assert [shared(5, d, 2**20) for d in (1, 2, 4, 8)] == [(5, 1), (5, 1), (5, 1), (5, 5)]
    assert [shared(n, 2, 2**20) for n in (1, 2, 3, 11, 16)] == [
        (1, 1), (2, 2), (3, 1), (12, 2), (16, 2),
    ]  # fmt: skip


def test_all_devices_together_fit_the_budget() -> None:
    study = make_study(("seed",), seeds=4)
    one = single(make_plan(study, memory_bytes=PLENTY))
    room = 4 * COST.kept_bytes(one.fixed)
    for most in (1, 2, 4):
        budget = room + COST.block_bytes(one.fixed, (most, 1))
        plan = make_plan(study, memory_bytes=budget, device_count=4, cache_bytes=None)
        assert plan.memory_bytes <= budget
        assert single(plan).devices * single(plan).block <= most


def test_a_layout_is_shared_by_as_many_devices_as_divide_it() -> None:
    study = make_study(("seed",))
    for device_count, devices in ((1, 1), (2, 2), (3, 3), (4, 3), (8, 6)):
        plan = plan_with_layout(study, [(6, 1, 1)], device_count=device_count)
        assert (single(plan).devices, plan.layout) == (devices, ((6, 1, 1),))


def test_chunks_of_a_program_are_even() -> None:
    study = make_study(("seed",))
    values = single(make_plan(study, memory_bytes=PLENTY)).fixed
    budget = COST.chunk_bytes(values, (4, 1), 1)
    plan = make_plan(study, memory_bytes=budget, cache_bytes=1)
    assert [chunk.outer for chunk in plan.chunks] == [(0, 3), (3, 5)]  # not 4 and 1


def test_a_budget_below_one_trajectory_is_refused() -> None:
    with pytest.raises(StudyError, match=r"one trajectory needs about .* MiB, more than .* 10 B"):
        make_plan(make_study(("seed",)), memory_bytes=10)


@given(studies(), st.integers(1, 8))
def test_the_layout_gives_the_plan_back(study: Study, share: int) -> None:
    budget = make_plan(study, memory_bytes=PLENTY).memory_bytes // share
    plan = make_plan(study, memory_bytes=max(budget, smallest_budget(study)))
    again = plan_with_layout(study, plan.layout)
    assert (again.chunks, again.layout) == (plan.chunks, plan.layout)


def test_a_layout_of_another_study_is_refused() -> None:
    with pytest.raises(StudyError, match="layout"):
        plan_with_layout(make_study(("train.geometry",)), [(1, 1, 1)])


@pytest.mark.parametrize("shape", [(3, 1, 2), (11, 1, 1), (10**12, 1, 1), (1, 2, 1)])
def test_a_layout_that_no_plan_of_the_study_has_is_refused(shape: tuple[int, int, int]) -> None:
    """Five seeds: blocks that don't fit, and chunks of more than twice what there is."""
    with pytest.raises(StudyError, match="does not fit"):
        plan_with_layout(make_study(("seed",)), [shape])


def test_a_layout_may_be_padded_for_its_devices() -> None:
    assert plan_with_layout(make_study(("seed",)), [(10, 1, 1)]).num_trajectories == 5


def test_totals_count_every_trajectory_once() -> None:
    plan = make_plan(make_study(("task.num_tokens",), ("seed",)), memory_bytes=PLENTY)
    assert plan.num_trajectories == 10
    assert plan.num_steps == 10 * 20
    assert plan.tokens == 10 * 20 * 4 * 20
    assert plan.seconds > sum(program.seconds for program in plan.programs) > 0


def test_planning_does_not_import_jax() -> None:
    code = "import sys, scbjax.sweep.plan.plans; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
