"""Running a study: as single runs would, compiled once, to the same bits after interruptions."""

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray
from numpy.typing import NDArray

from scbjax.base import StudyError
from scbjax.costs import CACHE_BYTES
from scbjax.experiments.scb_cost import COST
from scbjax.recorded import OBSERVABLES, as_record, record_name
from scbjax.settings import Settings
from scbjax.simulation import simulate
from scbjax.sweep.engine.chunks import ChunkResult, Executor
from scbjax.sweep.engine.engines import LocalEngine, Session
from scbjax.sweep.engine.execute import RunReport, run_study
from scbjax.sweep.engine.here import plan_here
from scbjax.sweep.engine.inputs import chunk_inputs
from scbjax.sweep.engine.mapped import over_axis, prepare as prepare_chunk
from scbjax.sweep.engine.progress import Reading, SilentProgress
from scbjax.sweep.plan.plans import Chunk, Plan, make_plan, plan_with_layout
from scbjax.sweep.results import dataset as datasets
from scbjax.sweep.results.dataset import checksum_path
from scbjax.sweep.results.store import Store, status
from scbjax.sweep.study.files import Study, parse_study
from scbjax.task import random_task, related_task
from scbjax.training import train

# Signals and distances are differences of numbers of size one, whose float32 has steps of 1e-7.
ROUNDED = 5e-7
TEXT = """
title = "A title"
[task]
num_tokens = 3
context_length = 50
[train]
batch_size = 8
steps = 40
record_every = 10
[record]
variables = ["attention_distance", "alpha_value", "batch_loss", "nonzeros", "stage", "samples"]
[axes]
seed = { range = [0, 3] }
sparsity = [1, 4]
"""


def make_study(*overrides: str) -> Study:
    return parse_study(TEXT, "study", overrides)


def make_simulation(*overrides: str) -> Study:
    return parse_study(f'experiment = "simulated"\n{TEXT}', "study", overrides)


def make_plan_of(study: Study, outer: int, inner: int) -> Plan:
    """A plan with chunks of the given shape, run point by point along the outer layer."""
    (program,) = make_plan(study).programs
    budget = COST.chunk_bytes(program.fixed, (outer, inner), 1)
    return make_plan(study, memory_bytes=budget, cache_bytes=1)


class Recorder(SilentProgress):
    """Remembers what it is told, and calls back at every reading."""

    def __init__(self, on_show: Callable[[int], None] = lambda _: None) -> None:
        self.readings: list[Reading] = []
        self.said: list[str] = []
        self._on_show = on_show

    def show(self, reading: Reading) -> None:
        self.readings.append(reading)
        self._on_show(len(self.readings))

    def say(self, text: str) -> None:
        self.said.append(text)


class CountingEngine(LocalEngine):
    """The local engine with one executor for all sessions; remembers which chunks it ran."""

    def __init__(self, plan: Plan) -> None:
        executor = Executor(plan, segment_seconds=0)  # a segment for every record
        super().__init__(lambda _: executor)
        self.ran: list[int] = []

    def run(
        self, plan: Plan, indices: Sequence[int], session: Session
    ) -> Iterator[tuple[int, ChunkResult]]:
        for index, result in super().run(plan, indices, session):
            self.ran.append(index)
            yield index, result


run = partial(run_study, progress=SilentProgress())


def load(report: RunReport) -> xarray.Dataset:
    assert report.dataset is not None
    with xarray.open_dataset(report.dataset) as dataset:
        return dataset.load()


def assert_same_bits(found: xarray.Dataset, expected: xarray.Dataset) -> None:
    assert found.variables.keys() == expected.variables.keys()
    for name in expected.variables:
        np.testing.assert_array_equal(found[name].values, expected[name].values, str(name))


def assert_same_results(found: xarray.Dataset, expected: xarray.Dataset) -> None:
    for name in expected.data_vars:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-7)


draw_task = jax.jit(partial(random_task, num_tokens=3, context_length=50))


def key_of(seed: int, stream: int) -> jax.Array:
    """The key of a part of a trajectory: 0 is the task, 2 are the batches."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(0), stream), seed)


def single_runs(
    settings: Settings, task_seeds: Sequence[int], data_seeds: Sequence[int], sparsities: list[int]
) -> dict[str, NDArray[Any]]:
    """The records of `train` for every (seed, sparsity), one run at a time."""
    learn = jax.jit(train)
    shape = (len(data_seeds), len(sparsities), settings.steps // settings.record_every + 1)
    found = {name: np.zeros(shape) for name in map(record_name, as_record(settings.record))}
    for i, (task_seed, data_seed) in enumerate(zip(task_seeds, data_seeds, strict=True)):
        for j, sparsity in enumerate(sparsities):
            task = draw_task(key_of(task_seed, 0), sparsity=sparsity)
            for name, record in learn(key_of(data_seed, 2), task, settings).records.items():
                found[name][i, j] = record
    return found


def test_a_sweep_equals_the_loop_over_single_runs(tmp_path: Path) -> None:
    seeds, sparsities = list(range(8)), [1, 2, 3, 5]
    study = make_study(f"axes.seed={seeds}", f"axes.sparsity={sparsities}")
    dataset = load(run(make_plan(study), tmp_path / "out"))
    settings = Settings(batch_size=8, steps=40, record_every=10, record=study.variables)
    for name, records in single_runs(settings, seeds, seeds, sparsities).items():
        np.testing.assert_allclose(dataset[name], records, rtol=1e-4, atol=ROUNDED, err_msg=name)


@pytest.mark.slow
def test_a_simulation_equals_single_simulations(tmp_path: Path) -> None:
    study = make_simulation("context_length=1000", "tagged_positions=20")
    dataset = load(run(make_plan(study), tmp_path / "out"))
    settings = Settings(batch_size=8, steps=40, record_every=10, record=study.variables)
    learn = jax.jit(partial(simulate, context_length=1000))
    draw = jax.jit(partial(random_task, num_tokens=3, context_length=20))
    for seed in range(3):
        for place, sparsity in enumerate([1, 4]):
            task = draw(key_of(seed, 0), sparsity=sparsity)
            found = dataset.isel(seed=seed, sparsity=place)
            for name, record in learn(key_of(seed, 2), task, settings).records.items():
                if name == "nonzeros":
                    continue  # an entry at the edge counts or not, by rounding
                # A signal is a difference of numbers of size one.
                np.testing.assert_allclose(found[name], record, rtol=1e-4, atol=1e-6, err_msg=name)
            signal = np.sum(np.sum(np.square(task.pattern), axis=0) * task.stationary) - 1 / 1000
            assert found.pattern_signal == pytest.approx(float(signal), rel=1e-5)


def test_arms_of_a_seed_share_a_program_the_task_and_the_batches(tmp_path: Path) -> None:
    # Both arms leave stage 1, and the proximal arm is in stage 3 at the end.
    study = make_study(
        "seed=0", "task_seed=7", "axes.data_seed=[0, 1]", "train.batch_size=64",
        'axes.optimizer=["proximal", "sgd"]',
        "learning_rate_1=0.5", "learning_rate_2=0.2", "switch_level=0.2", "stop_level=0.3",
    )  # fmt: skip
    plan = make_plan(study)
    assert len(plan.programs) == 1
    dataset = load(run(plan, tmp_path / "out"))
    proximal, sgd = (dataset.sel(optimizer=name) for name in ("proximal", "sgd"))
    assert (proximal.stage.isel(step=-1) == 3).any()
    assert (sgd.stage.isel(step=-1) == 2).all()
    settings = Settings(
        batch_size=64, steps=40, record_every=10, optimizer="sgd", record=study.variables,
        learning_rate_1=0.5, learning_rate_2=0.2, switch_level=0.2, stop_level=0.3,
    )  # fmt: skip
    expected = single_runs(settings, [7, 7], [0, 1], [1, 4])
    for name, records in expected.items():
        found = sgd[name].transpose("data_seed", "sparsity", "step")
        np.testing.assert_allclose(found, records, rtol=1e-4, atol=ROUNDED, err_msg=name)
    signal_of_task = dataset.transition_signal.values
    assert (signal_of_task == signal_of_task.flat[0]).all()
    first = {"step": 1, "sparsity": 0}  # before the arms part
    np.testing.assert_array_equal(proximal.batch_loss[first], sgd.batch_loss[first])
    assert len(np.unique(sgd.batch_loss[first])) == 2  # other data seeds, other batches


@pytest.mark.slow
def test_attention_maps_share_tasks_and_batches_across_programs(tmp_path: Path) -> None:
    # With A held at its start, V is the same function of the batches whatever the map.
    study = make_study(
        "axes.seed=[0, 1]", "sparsity=2", "optimizer='raw_sgd'", "scale_rates=false",
        "axes.attention_map=['linear', 'softmax']", "axes.attention_rate_ratio=[0.0, 1000.0]",
        "learning_rate_1=0.5", "switch_level=inf", "record.truth=true", "record.final=true",
        "record.snapshots=[40]", "record.variables=['attention_distance', 'batch_loss']",
    )  # fmt: skip
    plan = make_plan(study)
    assert len(plan.programs) == 2
    dataset = load(run(plan, tmp_path / "out"))
    for seed in (0, 1):
        kept = dataset.sel(seed=seed).isel(attention_map=0, attention_rate_ratio=0)
        for name, array in draw_task(key_of(seed, 0), sparsity=2)._asdict().items():
            np.testing.assert_allclose(kept[name], array, rtol=1e-6, atol=1e-7)
    frozen, moving = (dataset.sel(attention_rate_ratio=ratio) for ratio in (0, 1000))
    linear, softmax = (frozen.sel(attention_map=name) for name in ("linear", "softmax"))
    np.testing.assert_allclose(linear.value, softmax.value, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(linear.batch_loss[:, 1:], softmax.batch_loss[:, 1:], rtol=1e-5)
    assert abs(linear.value[0] - linear.value[1]).max() > 0.01  # other seeds, other batches
    np.testing.assert_allclose(frozen.attention, 1 / 50, rtol=1e-5)
    # What is kept of softmax is the attention, not the logits.
    found = moving.sel(attention_map="softmax")
    np.testing.assert_allclose(found.attention.sum("position"), 1, rtol=1e-5)
    assert (found.attention > 0).all()
    assert found.attention.max() > 0.1
    np.testing.assert_array_equal(found.attention_snapshots.isel(snapshot=0), found.attention)
    distance = ((found.attention - found.pattern) ** 2 * found.stationary.values[:, None, :]).sum(
        ["position", "query"]
    ) ** 0.5
    np.testing.assert_allclose(found.attention_distance.isel(step=-1), distance, rtol=1e-5)


class Kept(NamedTuple):
    """A plan that has been run, with its compiled program for further runs."""

    plan: Plan
    engine: CountingEngine
    report: RunReport
    dataset: xarray.Dataset


def keep(plan: Plan, out: Path) -> Kept:
    engine = CountingEngine(plan)
    report = run(plan, out, engine=engine)
    return Kept(plan, engine, report, load(report))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    """The study in one chunk and one block."""
    return keep(make_plan(make_study(), cache_bytes=None), tmp_path_factory.mktemp("whole") / "out")


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    """The study in two chunks, the second of them padded, with everything that can be kept."""
    study = make_study("record.snapshots=[0, 20, 40]", "record.final=true")
    return keep(make_plan_of(study, 2, 2), tmp_path_factory.mktemp("cut") / "out")


@pytest.mark.slow
def test_tagging_all_positions_is_no_simulation(tmp_path: Path, whole: Kept) -> None:
    study = make_simulation("tagged_positions=50")
    assert_same_bits(load(run(make_plan(study, cache_bytes=None), tmp_path / "out")), whole.dataset)


def test_a_program_is_compiled_once_whatever_the_chunks_and_segments(
    cut: Kept, tmp_path: Path
) -> None:
    plan, store = cut.plan, Store(cut.report.out)
    seconds = [store.load_chunk(plan, chunk)[1]["compile_seconds"] for chunk in plan.chunks]
    assert seconds[0] > 0
    assert seconds[1:] == [0]
    compiled: list[str] = []

    def listen(event: str, duration_secs: float, **_: str | int) -> None:  # noqa: ARG001
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    # It stays: the oldest JAX can't unregister it, and it does nothing but count.
    jax.monitoring.register_event_duration_secs_listener(listen)
    run(plan, tmp_path / "out", engine=cut.engine)
    assert compiled == []
    jax.jit(lambda x: x + 1)(np.float32(0))
    assert compiled  # or this test would not notice


@pytest.mark.slow
def test_a_study_that_has_ended_leaves_no_programs(tmp_path: Path) -> None:
    """A search runs many studies in one process."""
    held = []
    for number in range(3):
        run(make_plan(make_study(f"root_seed={number}")), tmp_path / str(number))
        gc.collect()
        held.append((len(jax.devices()[0].client.live_executables()), len(jax.live_arrays())))
    assert held[0] == held[1] == held[2]


def test_padding_is_dropped(cut: Kept, whole: Kept) -> None:
    assert [chunk.shape for chunk in cut.plan.chunks] == [(2, 2), (1, 2)]
    assert cut.plan.layout == ((2, 2, 1),)
    assert whole.plan.layout == ((3, 2, 3),)
    arrays, _ = Store(cut.report.out).load_chunk(cut.plan, cut.plan.chunks[1])
    assert all(array.shape[:2] == (1, 2) for array in arrays.values())
    assert_same_results(cut.dataset[list(whole.dataset.data_vars)], whole.dataset)


def test_results_do_not_depend_on_chunks_or_the_order_of_axes_and_points(
    tmp_path: Path, whole: Kept
) -> None:
    axes = "[axes]\nsparsity = [4, 2, 1]\nseed = [2, 0]\n"
    study = parse_study(TEXT.partition("[axes]")[0] + axes, "study")
    plan = make_plan_of(study, 1, 2)
    assert [chunk.shape for chunk in plan.chunks] == [(1, 2), (1, 1)] * 2
    dataset = load(run(plan, tmp_path / "out"))
    assert dataset.attention_distance.dims == ("sparsity", "seed", "step")
    found = dataset.sel(sparsity=[1, 4]).transpose("seed", "sparsity", "step")
    assert_same_results(found, whole.dataset.sel(seed=[2, 0]))


def test_the_constants_of_each_task_are_kept(whole: Kept) -> None:
    task = draw_task(key_of(1, 0), sparsity=4)
    p, mu, q = (np.asarray(array, float) for array in task)
    point = whole.dataset.sel(seed=1, sparsity=4)
    assert float(point.stationary_norm) == pytest.approx(mu @ mu, rel=1e-5)
    assert float(point.transition_signal) == pytest.approx((p**2 @ mu).sum() - mu @ mu, rel=1e-4)
    assert float(point.pattern_signal) == pytest.approx((q**2 @ mu).sum() - 1 / 50, rel=1e-4)


def test_snapshots_and_final_matrices(cut: Kept) -> None:
    task = draw_task(key_of(1, 0), sparsity=4)
    mu, pattern = np.asarray(task.stationary), np.asarray(task.pattern)
    dataset, point = cut.dataset, cut.dataset.sel(seed=1, sparsity=4)
    np.testing.assert_allclose(dataset.attention_snapshots.sel(snapshot=0), 1 / 50, rtol=1e-6)
    start = np.repeat(mu[:, None], 3, axis=1)
    np.testing.assert_allclose(point.value_snapshots.sel(snapshot=0), start, rtol=1e-5)
    np.testing.assert_array_equal(dataset.attention, dataset.attention_snapshots.sel(snapshot=40))
    np.testing.assert_array_equal(dataset.value, dataset.value_snapshots.sel(snapshot=40))
    for step in (20, 40):
        difference = point.attention_snapshots.sel(snapshot=step).values - pattern
        distance = np.sqrt((difference**2 @ mu).sum())
        assert float(point.attention_distance.sel(step=step)) == pytest.approx(distance, rel=1e-4)


def test_a_diverging_trajectory_leaves_its_neighbours_alone(tmp_path: Path) -> None:
    # Two chunks of one program, that differ in the rate of their second trajectory alone. The
    # switch step is not used; it makes the points of the zip different.
    zipped = (
        "[[zip]]\nname = 'arm'\nseed = [0, 0, 0, 0, 0, 0]\nswitch_step = [1, 2, 3, 4, 5, 6]\n"
        "learning_rate_1 = [0.02, 0.03, 0.04, 0.02, 1e30, 0.04]\n"
    )
    text = TEXT.partition("[axes]")[0].replace("num_tokens", "sparsity = 2\nnum_tokens")
    plan = make_plan_of(parse_study(text + zipped, "study"), 3, 1)
    assert [chunk.shape for chunk in plan.chunks] == [(3, 1), (3, 1)]
    progress = Recorder()
    report = run(plan, tmp_path / "out", progress=progress)
    dataset = load(report)
    assert report.diverged == 1
    assert dataset.diverged_at.values.tolist() == [-1, -1, -1, -1, 10, -1]
    wild = dataset.isel(arm=4)
    for name in ("attention_distance", "alpha_value", "batch_loss"):
        assert np.isnan(wild[name][1:]).all()
    assert np.isfinite(wild.attention_distance[0])
    for variable in dataset.data_vars.values():
        for tame, neighbour in ((0, 3), (2, 5)):
            np.testing.assert_array_equal(variable[neighbour], variable[tame], str(variable.name))
    assert progress.said[0].startswith("warning: learning_rate_1 = 1e+30 cannot work: ")
    told = "  seed = 0, switch_step = 5, learning_rate_1 = 1e+30: by step 10; likely cause: lear"
    assert progress.said[-1].startswith(told)


# -------------------------------------------------------------------- interruptions and damage


def interrupt_at(reading: int) -> Recorder:
    def interrupt(count: int) -> None:
        if count == reading:
            signal.raise_signal(signal.SIGINT)

    return Recorder(interrupt)


def test_an_interrupted_run_continues_to_the_same_bits(tmp_path: Path, cut: Kept) -> None:
    out, stops = tmp_path / "out", 0
    while True:
        progress = interrupt_at(2)  # the first reading comes before the first segment
        report = run(cut.plan, out, engine=cut.engine, progress=progress)
        if report.dataset is not None:
            break
        assert report.interrupted
        assert any("stopping after this segment" in text for text in progress.said)
        stops += 1
        assert stops < 10
    assert stops > 4
    assert_same_bits(load(report), cut.dataset)
    assert not list((out / "checkpoints").glob("*"))


def test_an_interrupt_leaves_the_signal_handlers_as_they_were(tmp_path: Path, cut: Kept) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    assert run(cut.plan, tmp_path / "out", engine=cut.engine, progress=interrupt_at(3)).interrupted
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_crash_loses_only_what_came_after_the_last_checkpoint(tmp_path: Path, cut: Kept) -> None:
    def crash(count: int) -> None:
        if count == 4:
            raise RuntimeError("power cut")

    out = tmp_path / "out"
    with pytest.raises(RuntimeError, match="power cut"):
        run(cut.plan, out, engine=cut.engine, progress=Recorder(crash), checkpoint_seconds=0)
    assert status(out).checkpoints == 1
    progress = Recorder()
    report = run(cut.plan, out, engine=cut.engine, progress=progress)
    assert progress.readings[1].fraction > 0.3  # of 5 records 3 were saved, in the larger chunk
    assert_same_bits(load(report), cut.dataset)


TRANSFER = """
[task]
num_tokens = 3
context_length = 50
sparsity = 2
transition_signal = 0.25
[train]
batch_size = 8
steps = 10
record_every = 10
start = "transfer"
[transfer]
first_samples = 64
[record]
variables = ["alpha_value", "alpha_attention", "samples"]
[axes]
seed = { range = [0, 4] }
correlation = [0.0, 0.5, 1.0]
"""


@pytest.mark.slow
def test_a_sweep_of_transfers_equals_single_runs(tmp_path: Path) -> None:
    study = parse_study(TRANSFER, "study")
    plan = plan_with_layout(study, [(4, 3, 2)])  # two blocks
    dataset = load(run(plan, tmp_path / "out"))
    settings = Settings(
        batch_size=8,
        steps=10,
        record_every=10,
        start="transfer",
        first_samples=64,
        record=study.variables,
    )

    @jax.jit
    def learn(seed: jax.Array, correlation: jax.Array) -> dict[str, jax.Array]:
        keys = (jax.random.fold_in(jax.random.key(0), stream) for stream in (0, 2, 3))
        task_key, data_key, source_key = (jax.random.fold_in(key, seed) for key in keys)
        task = random_task(
            task_key, num_tokens=3, context_length=50, sparsity=2, transition_signal=0.25
        )
        source = related_task(source_key, task, correlation=correlation)
        return train(data_key, task, settings, source).records

    for i in range(4):
        for j, correlation in enumerate((0.0, 0.5, 1.0)):
            for name, record in learn(np.int32(i), np.float32(correlation)).items():
                found = dataset[name].values[i, j]
                np.testing.assert_allclose(found, record, rtol=1e-4, atol=1e-6)
    # With rho = 1 P_hat is P, and alpha_V at the start is theta.
    np.testing.assert_allclose(dataset["alpha_value"][:, 2, 0], 0.2, rtol=1e-4)
    assert np.all(np.diff(dataset["alpha_value"][:, :, 0], axis=1) > 1e-4)


def test_tokens_of_a_transfer_are_shared_along_the_inner_layer() -> None:
    (program,) = make_plan(
        parse_study(TRANSFER, "study", ("batch_size=4", "axes.correlation=[0, 0.5, 0.8, 0.9, 1]"))
    ).programs
    inputs = chunk_inputs(program, Chunk(0, 0, (0, 1), (0, 1)))
    prepare = partial(prepare_chunk, program, program.chunk_shape)
    shapes = {aval.shape for aval in unsigned(jax.make_jaxpr(prepare)(inputs).jaxpr)}
    assert any({50, 4} <= set(shape) for shape in shapes)
    assert not any({50, 4, 5} <= set(shape) for shape in shapes)


def unsigned(jaxpr: Any) -> Iterator[Any]:  # noqa: ANN401
    """All arrays of unsigned integers that a jaxpr makes: tokens, and random words."""
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            if jax.numpy.issubdtype(variable.aval.dtype, jax.numpy.unsignedinteger):
                yield variable.aval
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=is_jaxpr):
            if is_jaxpr(inner):
                yield from unsigned(getattr(inner, "jaxpr", inner))


def is_jaxpr(item: object) -> bool:
    return hasattr(item, "eqns") or hasattr(item, "jaxpr")


def test_a_complete_study_is_left_alone(tmp_path: Path, cut: Kept) -> None:
    first = run(cut.plan, tmp_path / "out", engine=cut.engine)
    assert (first.already_complete, first.interrupted) == (False, False)
    cut.engine.ran.clear()
    times = {path: path.stat().st_mtime_ns for path in first.out.rglob("*")}
    again = run(cut.plan, tmp_path / "out", engine=cut.engine)
    assert (again.already_complete, again.dataset) == (True, first.dataset)
    assert cut.engine.ran == []
    assert {path: path.stat().st_mtime_ns for path in first.out.rglob("*")} == times


def test_a_damaged_chunk_is_done_again_and_no_other(tmp_path: Path, cut: Kept) -> None:
    report = run(cut.plan, tmp_path / "out", engine=cut.engine)
    assert report.dataset is not None
    report.dataset.unlink()
    chunk = report.out / "chunks" / "00001.npz"
    chunk.write_bytes(chunk.read_bytes()[:-100])
    cut.engine.ran.clear()
    progress = Recorder()
    report = run(cut.plan, tmp_path / "out", engine=cut.engine, progress=progress)
    assert cut.engine.ran == [1]
    assert any("chunk 1 is damaged" in text for text in progress.said)
    assert_same_bits(load(report), cut.dataset)


def test_a_damaged_dataset_is_written_again_from_the_chunks(tmp_path: Path, cut: Kept) -> None:
    report = run(cut.plan, tmp_path / "out", engine=cut.engine)
    assert report.dataset is not None
    report.dataset.write_bytes(report.dataset.read_bytes()[:-100])
    cut.engine.ran.clear()
    report = run(cut.plan, tmp_path / "out", engine=cut.engine)
    assert (report.already_complete, cut.engine.ran) == (False, [])
    assert_same_bits(load(report), cut.dataset)


def test_a_dataset_can_be_read_while_it_is_written_again(
    tmp_path: Path, cut: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = run(cut.plan, tmp_path / "out", engine=cut.engine)
    assert report.dataset is not None
    checksum_path(report.dataset).unlink()
    written: list[str] = []

    def write_and_read(path: Path, name: str, *rest: Any) -> None:  # noqa: ANN401
        write_variable(path, name, *rest)
        assert_same_bits(load(report), cut.dataset)
        assert status(report.out).dataset == report.dataset
        written.append(name)

    write_variable = datasets._write_variable
    monkeypatch.setattr(datasets, "_write_variable", write_and_read)
    with xarray.open_dataset(report.dataset) as opened_before:
        assert not run(cut.plan, report.out, engine=cut.engine).already_complete
        assert_same_bits(opened_before.load(), cut.dataset)
    assert set(written) == set(cut.dataset.data_vars)
    assert_same_bits(load(report), cut.dataset)


def test_a_damaged_checkpoint_is_left_out(tmp_path: Path, cut: Kept) -> None:
    out = tmp_path / "out"
    assert run(cut.plan, out, engine=cut.engine, progress=interrupt_at(3)).interrupted
    (checkpoint,) = (out / "checkpoints").glob("*.npz")
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    progress = Recorder()
    report = run(cut.plan, out, engine=cut.engine, progress=progress)
    assert any("checkpoint of chunk 0 is damaged" in text for text in progress.said)
    assert_same_bits(load(report), cut.dataset)


def test_a_damaged_manifest_is_written_again_for_the_same_study(tmp_path: Path, cut: Kept) -> None:
    out = tmp_path / "out"
    assert run(cut.plan, out, engine=cut.engine, progress=interrupt_at(7)).interrupted
    Store(out).manifest_path.write_text("{")
    progress = Recorder()
    report = run(cut.plan, out, engine=cut.engine, progress=progress)
    assert any("manifest.json is damaged" in text for text in progress.said)
    assert_same_bits(load(report), cut.dataset)


def test_a_run_goes_on_in_the_chunks_it_was_cut_into(tmp_path: Path, cut: Kept) -> None:
    out = tmp_path / "out"
    assert run(cut.plan, out, engine=cut.engine, progress=interrupt_at(7)).interrupted
    other = make_plan(cut.plan.study)
    assert other.layout != cut.plan.layout
    assert_same_bits(load(run(other, out, engine=cut.engine)), cut.dataset)


def test_other_settings_are_refused(tmp_path: Path, cut: Kept) -> None:
    out = tmp_path / "out"
    assert run(cut.plan, out, engine=cut.engine, progress=interrupt_at(2)).interrupted
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    other = make_plan(make_study("train.l1=0.5"))
    with pytest.raises(StudyError, match=r"holds the results of other settings .* --force"):
        run(other, out)
    (out / "manifest.json").unlink()  # the results are still there without it
    with pytest.raises(StudyError, match="other settings"):
        run(other, out)
    del before[out / "manifest.json"]
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_force_moves_the_old_results_aside(tmp_path: Path, cut: Kept) -> None:
    out = tmp_path / "out"
    first = run(cut.plan, out, engine=cut.engine)
    assert first.dataset is not None
    content = first.dataset.read_bytes()
    progress = Recorder()
    again = run(cut.plan, out, engine=cut.engine, force=True, progress=progress)
    assert not again.already_complete
    assert (tmp_path / "out.old-1" / "study.nc").read_bytes() == content
    assert progress.said[0].endswith("out.old-1")


def test_force_leaves_a_directory_alone_that_holds_no_results(tmp_path: Path, cut: Kept) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    run(cut.plan, tmp_path / "out", engine=cut.engine, force=True)
    assert (tmp_path / "out" / "thesis.tex").exists()


def test_an_unwritable_directory_is_refused_before_anything_runs(tmp_path: Path, cut: Kept) -> None:
    (tmp_path / "file").touch()
    cut.engine.ran.clear()
    with pytest.raises(StudyError, match="can't be written"):
        run(cut.plan, tmp_path / "file" / "out", engine=cut.engine)
    assert cut.engine.ran == []


def test_progress_rises_to_everything_with_a_live_metric(tmp_path: Path, cut: Kept) -> None:
    progress = Recorder()
    report = run(cut.plan, tmp_path / "out", engine=cut.engine, progress=progress)
    assert progress.said[-1].startswith("6 trajectories in 0:0")
    fractions = [reading.fraction for reading in progress.readings]
    assert fractions == sorted(fractions)
    assert fractions[0] == 0
    assert fractions[-1] == pytest.approx(1)
    last = progress.readings[-1]
    assert last.trajectories == pytest.approx(6)
    chunk = load(report).attention_distance.isel(seed=2, step=-1)  # the last chunk
    assert last.metric is not None
    assert last.metric[0] == "attention_distance"
    assert last.metric[1] == pytest.approx(float(np.median(chunk)))
    # Of the whole run: 6 trajectories of 40 steps, with 8 x 50 tokens each.
    assert last.tokens_per_second == pytest.approx(400 * last.steps_per_second)
    assert last.steps_per_second == pytest.approx(240 / report.run_seconds, rel=0.01)


def test_the_dataset_says_how_it_was_made(whole: Kept) -> None:
    assert whole.dataset.attrs["title"] == "A title"
    assert set(whole.dataset.data_vars) == {
        *make_study().variables, "transition_signal", "pattern_signal", "stationary_norm",
        "diverged_at",
    }  # fmt: skip
    for name in make_study().variables:
        entry = OBSERVABLES[name]
        expected = {"long_name": entry.long_name, "units": entry.units, "symbol": entry.symbol}
        assert whole.dataset[name].attrs == expected
        assert whole.dataset[name].dtype == entry.dtype
    assert '"jax": "' in whole.dataset.attrs["versions"]
    assert whole.dataset.attrs["device"].startswith("1 x cpu")
    assert whole.dataset.attrs["rng_implementation"].startswith("threefry2x32")
    assert 0 < whole.dataset.attrs["compile_seconds"] < whole.dataset.attrs["wall_seconds"]


def test_the_plan_suits_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    study = make_study("axes.seed={range=[0, 1000]}", "context_length=5000", "batch_size=64")
    on_cpu = plan_here(study)
    assert on_cpu.layout == make_plan(study).layout
    on_cpu_block, cpu_values = on_cpu.layout[0][2], on_cpu.programs[0].fixed
    inner = on_cpu.programs[0].inner.size
    # As many outer points at a time as fit the cache, give or take the evening out of blocks.
    assert on_cpu_block * COST.step_bytes(cpu_values, inner) <= CACHE_BYTES
    assert 2 * on_cpu_block * COST.step_bytes(cpu_values, inner) > 0.5 * CACHE_BYTES
    device = SimpleNamespace(platform="gpu", memory_stats=lambda: {"bytes_limit": 2**30})
    monkeypatch.setattr(jax, "local_devices", lambda: [device, device])
    on_gpus = plan_here(study)
    (outer, _, block), values = on_gpus.layout[0], on_gpus.programs[0].fixed
    assert outer % (2 * block) == 0
    # As much at a time as fits into half of what both have together.
    assert 2**29 < COST.chunk_bytes(values, (2 * block, 2), 2 * block) <= 2**30
    assert plan_here(study, memory_bytes=2**28).layout[0][2] < block


# ---------------------------------------------------------------------- in processes of their own

SCRIPT = """
import re, signal, sys
from pathlib import Path
import jax
from scbjax.sweep.engine import chunks
from scbjax.sweep.engine.execute import run_study
from scbjax.sweep.plan.plans import make_plan
from scbjax.sweep.engine.progress import SilentProgress
from scbjax.sweep.study.files import load_study

class Interrupting(SilentProgress):
    shown = 0
    def show(self, reading):
        self.shown += 1
        for _ in range(int(sys.argv[3]) if self.shown == 2 else 0):
            signal.raise_signal(signal.SIGINT)

compiled = []
def compile_and_keep(program, ahead, compile=chunks.compile_program):
    compiled.append(compile(program, ahead))
    return compiled[-1]
chunks.compile_program = compile_and_keep

study = load_study(sys.argv[1], sys.argv[4:])
plan = make_plan(study, device_count=jax.local_device_count())
report = run_study(plan, Path(sys.argv[2]), progress=Interrupting())
code = compiled[0].prepare.as_text() + compiled[0].segment.as_text()
mesh = compiled[0].segment.input_shardings[0][1].stationary.mesh
print(mesh.size, plan.layout, report.interrupted)
sent = "all-gather|all-reduce|all-to-all|collective|reduce-scatter|send|recv|copy-start"
print(len(re.findall("while", code)) > 0, sorted(set(re.findall(sent, code))))
"""


def run_process(
    tmp_path: Path, *overrides: str, signals: int = 0, devices: int = 1
) -> subprocess.CompletedProcess[str]:
    (tmp_path / "study.toml").write_text(TEXT)
    flags = f"--xla_force_host_platform_device_count={devices}"
    arguments = [str(tmp_path / "study.toml"), str(tmp_path / "out"), str(signals), *overrides]
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow  # which is how programs are compiled for users: bits are theirs
def test_eight_devices_give_the_same_bits_and_send_nothing(tmp_path: Path, cut: Kept) -> None:
    found = run_process(tmp_path, "axes.seed={range=[0, 8]}", devices=8)
    assert found.stdout == "8 ((8, 2, 1),) False\nTrue []\n", found.stderr
    with xarray.open_dataset(tmp_path / "out" / "study.nc") as dataset:
        assert dataset.attrs["device"].startswith("8 x cpu")
        # Both are worked through one outer point at a time, so that the same program does each.
        names = list(dataset.data_vars)
        assert_same_bits(dataset.sel(seed=cut.dataset.seed), cut.dataset[names])


def test_a_second_interrupt_ends_the_process_and_damages_nothing(
    tmp_path: Path, whole: Kept
) -> None:
    assert run_process(tmp_path, signals=2).returncode == -signal.SIGINT
    assert not (tmp_path / "out" / "study.nc").exists()
    report = run(whole.plan, tmp_path / "out", engine=whole.engine)
    assert_same_bits(load(report), whole.dataset)


def test_layers_of_one_point_are_taken_off_and_put_on() -> None:
    """What vmap gives, with the branch of a condition left a branch."""

    def function(x: jax.Array, shared: jax.Array, pair: Any) -> Any:  # noqa: ANN401
        larger = jax.lax.cond(x[0] > 0, lambda y: y + shared, lambda y: y, pair[0])
        return {"larger": larger, "other": pair[1]}

    arguments = jnp.ones((1, 2)), jnp.arange(2.0), (jnp.full((1, 2), 3.0), jnp.ones(3))
    axes = (0, None, (0, None))
    alone = over_axis(function, axes, 1)
    chex.assert_trees_all_equal(
        alone(*arguments), jax.vmap(function, axes, axis_size=1)(*arguments)
    )
    assert "cond" in str(jax.make_jaxpr(alone)(*arguments))
