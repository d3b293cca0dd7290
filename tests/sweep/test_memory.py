"""What compiled programs take against the budget, where an experiment's own estimate is wrong."""

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import xarray

from scbjax.base import RECORD_EVERY, STEPS, Experiment, Functions, Parameter, Variable, in_turn
from scbjax.costs import Cost
from scbjax.sweep.engine import cluster
from scbjax.sweep.engine.chunks import Executor
from scbjax.sweep.engine.compiled import compile_program
from scbjax.sweep.engine.engines import LocalEngine
from scbjax.sweep.engine.execute import RunReport, run_study
from scbjax.sweep.engine.here import plan_here
from scbjax.sweep.engine.inputs import numbers_of
from scbjax.sweep.engine.memory import Memory, in_smaller_blocks, told
from scbjax.sweep.engine.places import read_bytes
from scbjax.sweep.engine.progress import SilentProgress
from scbjax.sweep.plan.plans import Plan, make_plan, plan_with_layout
from scbjax.sweep.plan.programs import UNKNOWN
from scbjax.sweep.results.store import Store
from scbjax.sweep.study.files import Study, parse_study

ROOT = Path(__file__).resolve().parents[2]
WIDTH = 64
"""A step of a trajectory goes through two matrices of so many rows; what it keeps is one row."""
RATE = Parameter("train.rate", float, 0.1, "traced", "inner", "Rate")
TEXT = """
[train]
steps = 4
record_every = 1
[axes]
seed = { range = [0, 8] }
"""


def build(fixed: Mapping[str, Any], _: object) -> Functions:
    def advance(_: object, values: Any, task: Any, state: Any, __: object) -> Any:  # noqa: ANN401
        outer = jnp.sin(state[:, None] * task[None, :])
        # What is sorted is held, whatever XLA makes one loop of.
        both = jnp.sort(outer, axis=0) * jnp.sort(outer, axis=1)
        return jnp.tanh(values["train.rate"] * jnp.sum(both, axis=0))

    def observe(_: object, __: object, task: Any, state: Any, ___: object) -> Any:  # noqa: ANN401
        return {"distance": jnp.sum((state - task) ** 2)}

    return Functions(
        draw=lambda keys, _: jax.random.normal(keys.task, (WIDTH,)),
        start=lambda _, __, task: 0.5 * task,
        take_record=in_turn(advance, observe, fixed[RECORD_EVERY.path]),
        is_finite=lambda state: jnp.isfinite(state).all(),
    )


def experiment(kept: int, temporary: int) -> Experiment:
    """With a Cost that says so many bytes."""
    return Experiment(
        name="wrong",
        parameters=(RATE, STEPS, RECORD_EVERY),
        build=build,
        variables={"distance": Variable("distance")},
        cost=replace(UNKNOWN, kept_bytes=lambda _: kept, temporary_bytes=lambda _: temporary),
    )


def study_of(own: Experiment, *overrides: str) -> Study:
    return parse_study(TEXT, "study", overrides, experiments=[own])


class Recorder(SilentProgress):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def run(plan: Plan, out: Path) -> tuple[RunReport, list[str]]:
    """How it ended, and the lines on memory."""
    progress = Recorder()
    report = run_study(plan, out, progress=progress)
    return report, [line for line in progress.said if "says the compiler" in line]


def taken_by(plan: Plan) -> Memory:
    (program,) = plan.programs
    with numbers_of(program):
        found = compile_program(program).memory
    assert found is not None
    return found


def data_of(report: RunReport) -> xarray.Dataset:
    assert report.dataset is not None
    with xarray.open_dataset(report.dataset) as dataset:
        return dataset.load()


TOO_LITTLE = experiment(kept=1, temporary=1)


def plan_of(own: Experiment, budget: int, *overrides: str) -> Plan:
    """In one chunk and one block, if that is thought to fit."""
    return make_plan(study_of(own, *overrides), memory_bytes=budget, cache_bytes=None)


def test_what_the_compiler_says_is_what_the_arrays_take() -> None:
    plan = plan_of(TOO_LITTLE, 2**30)
    kept, temporary = taken_by(plan)
    state_and_task, records = 2 * 8 * WIDTH * 4, 5 * 8 * 4
    assert state_and_task + records < kept < 1.2 * (state_and_task + records)
    matrices = 2 * WIDTH**2 * 4
    assert 0.5 * 8 * matrices <= temporary <= 2 * 8 * matrices


def test_a_program_that_takes_more_than_the_budget_is_compiled_in_smaller_blocks(
    tmp_path: Path,
) -> None:
    budget = 2**17
    plan = plan_of(TOO_LITTLE, budget)
    assert plan.layout == ((8, 1, 8),)
    assert taken_by(plan).total > budget
    report, (line,) = run(plan, tmp_path / "out")
    assert re.fullmatch(
        r"a chunk of program 1 takes \d+\.\d KiB, says the compiler; the estimate was 16 B, and "
        r"the budget is 128.0 KiB: it is compiled anew in blocks of \d, not 8 points",
        line,
    )
    manifest = Store(tmp_path / "out").read_manifest()
    assert manifest is not None
    ((outer, inner, block),) = manifest.layout
    assert (outer, inner) == (8, 1)
    assert block in {1, 2, 4}
    smaller = plan_with_layout(plan.study, manifest.layout)
    assert taken_by(smaller).total <= budget
    # The dataset is that of a plan that was cut so from the beginning, and says how it was cut.
    found, expected = data_of(report), data_of(run(smaller, tmp_path / "smaller")[0])
    xarray.testing.assert_identical(found.drop_attrs(), expected.drop_attrs())
    assert found.attrs["layout"] == expected.attrs["layout"]
    again, lines = run(plan, tmp_path / "out")
    assert again.already_complete
    assert lines == []


def test_a_stopped_run_goes_on_in_the_blocks_that_it_was_given(tmp_path: Path) -> None:
    budget = 2**17
    plan = plan_of(TOO_LITTLE, budget, "axes.seed={range=[0, 24]}")
    plan = replace(plan_with_layout(plan.study, [(8, 1, 8)]), budget=budget)
    whole, (_,) = run(plan, tmp_path / "whole")

    class Stopping(LocalEngine):
        def run(self, plan: Plan, indices: Any, session: Any) -> Iterator[Any]:  # noqa: ANN401
            yield from super().run(plan, indices[:1], session)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(plan, tmp_path / "out", progress=SilentProgress(), engine=Stopping())
    assert len(list((tmp_path / "out").glob("chunks/*.npz"))) == 1
    report, lines = run(plan, tmp_path / "out")
    assert lines == []
    xarray.testing.assert_identical(data_of(report).drop_attrs(), data_of(whole).drop_attrs())


def test_chunks_that_are_there_keep_their_blocks(tmp_path: Path) -> None:
    """A smaller budget for what is left is told, and does not mix blocks."""
    study = study_of(TOO_LITTLE, "axes.seed={range=[0, 16]}")
    plan = plan_with_layout(study, [(8, 1, 8)])
    whole, _ = run(plan, tmp_path / "whole")
    run(plan, tmp_path / "out")
    (tmp_path / "out" / "chunks" / "00001.npz").unlink()
    (tmp_path / "out" / "study.nc").unlink()
    report, (line,) = run(replace(plan, budget=2**17), tmp_path / "out")
    assert "it runs as it is" in line
    manifest = Store(tmp_path / "out").read_manifest()
    assert manifest is not None
    assert manifest.layout == plan.layout
    xarray.testing.assert_identical(data_of(report).drop_attrs(), data_of(whole).drop_attrs())


def test_what_smaller_blocks_do_not_help_says_how_to_cut_chunks_that_fit(tmp_path: Path) -> None:
    """What is kept alone is more than the budget."""
    own, budget = experiment(kept=32, temporary=1), 2**18
    plan = plan_of(own, budget, "axes.seed={range=[0, 4096]}")
    assert plan.programs[0].chunk_shape[0] > 1000
    _, (line,) = run(plan, tmp_path / "out")
    found = re.search(r"runs as it is; for smaller chunks, begin anew with --memory (\w+)$", line)
    assert found is not None
    memory = read_bytes(found[1])
    assert memory is not None
    smaller = plan_of(own, memory, "axes.seed={range=[0, 4096]}")
    assert 0.5 * budget < taken_by(smaller).total <= budget


@pytest.mark.parametrize("cost", [None, experiment(kept=2 * WIDTH * 8, temporary=2**17).cost])
def test_nothing_is_said_of_estimates_that_are_enough(tmp_path: Path, cost: Cost | None) -> None:
    """Those that are measured are: twice what one trajectory takes is more than it needs."""
    own = replace(TOO_LITTLE, cost=cost)
    plan = plan_here(study_of(own), memory_bytes=2**21)
    assert plan.memory_bytes <= 2**21
    assert run(plan, tmp_path / "out")[1] == []


def test_a_plan_without_a_budget_is_not_looked_at() -> None:
    plan = replace(plan_of(TOO_LITTLE, 2**30), budget=None)

    def refuse(*_: object) -> None:
        raise AssertionError

    assert Executor(plan).run(0, exceeding=refuse).arrays["distance"].shape == (8, 1, 5)


def cut(budget: int | None, settled: frozenset[int] = frozenset()) -> Plan:
    """12 points in blocks of 6, on two of four devices."""
    plan = plan_with_layout(study_of(TOO_LITTLE, "axes.seed={range=[0, 12]}"), [(12, 1, 6)])
    plan = replace(plan, device_count=4).in_blocks(0, 6)
    assert plan.programs[0].devices == 2
    return replace(plan, budget=budget, settled=settled)


@pytest.mark.parametrize(
    ("budget", "block", "devices"),
    [
        (1299, 2, 3),  # blocks of 3 go to four devices, which work on 12 points again
        (700, 2, 3),
        (699, 1, 4),
        (500, 1, 4),
    ],
)
def test_blocks_are_made_smaller_until_their_temporaries_fit(
    budget: int, block: int, devices: int
) -> None:
    smaller = in_smaller_blocks(cut(budget), 0, Memory(100, 1200))  # 100 for each of 12 points
    assert smaller is not None
    assert (smaller.programs[0].block, smaller.programs[0].devices) == (block, devices)
    assert smaller.chunks == cut(budget).chunks
    assert (
        smaller.programs[0].devices
        == plan_with_layout(smaller.study, smaller.layout, device_count=4).programs[0].devices
    )


@pytest.mark.parametrize("plan", [cut(499), cut(None), cut(700, frozenset({0}))])
def test_blocks_stay_where_smaller_ones_are_of_no_use_or_not_allowed(plan: Plan) -> None:
    assert in_smaller_blocks(plan, 0, Memory(100, 1200)) is None


def test_a_single_trajectory_can_only_be_allowed_more() -> None:
    (program,) = plan_with_layout(study_of(TOO_LITTLE, "seed=0"), [(1, 1, 1)]).programs
    line = told(program, Memory(2**20, 2**24), 2**20, None)
    assert line.endswith("it is one trajectory and runs as it is; --memory 17MiB allows it")
    assert read_bytes("17MiB") == 2**20 + 2**24


def test_all_workers_are_told_of_once() -> None:
    """Each of them compiles the program, and comes to the same."""
    heard: list[tuple[int, Memory, int | None]] = []
    session: Any = SimpleNamespace(exceeding=lambda p, *more: heard.append((p.index, *more)))
    board = cluster._Board(cut(700), session)
    for _ in range(3):
        board.note({"run": "x", "program": 0, "taken": [100, 1200], "block": 2})
    assert heard == [(0, Memory(100, 1200), 2)]


FILE = """
from dataclasses import replace
from tests.sweep.test_memory import TOO_LITTLE

EXPERIMENT = replace(TOO_LITTLE, name="wrong")
"""


@pytest.mark.slow
def test_workers_come_to_the_same_blocks(tmp_path: Path) -> None:
    """The line is said once, the manifest has the blocks, and the bits are those of a run here."""
    (tmp_path / "wrong.py").write_text(FILE, encoding="utf-8")
    (tmp_path / "study.toml").write_text(TEXT.replace("8]", "24]"), encoding="utf-8")
    study = [str(tmp_path / "study.toml"), "--experiment", str(tmp_path / "wrong.py")]
    options = ["--memory", "128KiB", "--cpu-devices=1", "--no-figure"]
    found = {}
    for name, more in (("here", []), ("there", ["--engine", "dask"])):
        out = tmp_path / name
        command = [sys.executable, "-m", "scbjax", "run", *study, *options, *more]
        done = subprocess.run(
            [*command, "--out", str(out)], capture_output=True, text=True, check=False, cwd=ROOT
        )
        assert done.returncode == 0, done.stderr
        assert (done.stdout + done.stderr).count("it is compiled anew in blocks of") == 1
        manifest = Store(out).read_manifest()
        assert manifest is not None
        with xarray.open_dataset(out / "study.nc") as dataset:
            found[name] = manifest.layout, dataset.load().drop_attrs()
    assert found["here"][0] == found["there"][0]
    assert found["here"][0][0][2] < 24
    xarray.testing.assert_identical(found["here"][1], found["there"][1])
