"""Chunks in the workers of a Dask scheduler: the same bytes as here, whoever is lost meanwhile."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
import xarray
from distributed import Client, KilledWorker, Worker

from scbjax.base import StudyError
from scbjax.cli import main
from scbjax.sweep.engine import cluster, local_workers, remote
from scbjax.sweep.engine.chunks import ChunkResult
from scbjax.sweep.engine.cluster import DaskEngine, connect
from scbjax.sweep.engine.engines import Engine, LocalEngine, Session
from scbjax.sweep.engine.execute import run_study
from scbjax.sweep.engine.here import Place, provenance
from scbjax.sweep.engine.progress import Progress, Reading, SilentProgress
from scbjax.sweep.engine.remote import TOPIC, Recipe, Setup, kind_of
from scbjax.sweep.plan.plans import Plan, make_plan, plan_with_layout
from scbjax.sweep.study.files import parse_study

TEXT = """
title = "A title"
[task]
num_tokens = 3
context_length = {length}
sparsity = 2
[train]
batch_size = {batch}
steps = {steps}
record_every = 10
[record]
variables = ["attention_distance", "stage"]
final = true
[axes]
seed = {{ range = [0, {seeds}] }}
l1 = [1e-5, 1e-4]
"""
SCHEDULER = ("distributed.cli.dask_scheduler", "--port", "0", "--no-dashboard")
WORKER = ("distributed.cli.dask_worker", "--no-nanny", "--nthreads", "1", "--no-dashboard")
# Of 5 s, the least that a scheduler takes: ten heartbeats.
SILENCE = {"DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "5s", "DASK_LOGGING__DISTRIBUTED": "critical"}


def make_chunks(*, seeds: int, length: int = 50, batch: int = 8, steps: int = 40) -> Plan:
    """A plan with a chunk for every seed."""
    text = TEXT.format(seeds=seeds, length=length, batch=batch, steps=steps)
    return plan_with_layout(parse_study(text, "study"), [(1, 2, 1)])


class Watch(SilentProgress):
    """Remembers what it is told, and calls back at every reading."""

    def __init__(self, on_show: Callable[[Reading], None] = lambda _: None) -> None:
        self.readings: list[Reading] = []
        self.said: list[str] = []
        self._on_show = on_show

    def show(self, reading: Reading) -> None:
        self.readings.append(reading)
        self._on_show(reading)

    def say(self, text: str) -> None:
        self.said.append(text)


class Counting:
    """An engine that counts how often each chunk arrives."""

    def __init__(self, place: Place) -> None:
        self._engine = place.engine
        self.arrived: Counter[int] = Counter()

    def run(
        self, plan: Plan, indices: Sequence[int], session: Session
    ) -> Iterator[tuple[int, ChunkResult]]:
        for index, result in self._engine.run(plan, indices, session):
            self.arrived[index] += 1
            yield index, result


def differences(found: Path, expected: Path) -> list[str]:
    """Names of the variables whose bytes differ, or which only one of the datasets has."""
    with xarray.open_dataset(found) as one, xarray.open_dataset(expected) as other:
        names = {str(name) for name in {**one.variables, **other.variables}}
        return sorted(
            name
            for name in names
            if name not in one.variables
            or name not in other.variables
            or one[name].values.tobytes() != other[name].values.tobytes()
        )


def dataset_of(
    plan: Plan,
    out: Path,
    engine: Engine,
    progress: Progress | None = None,
    facts: Mapping[str, str] | None = None,
) -> Path:
    report = run_study(plan, out, progress=progress or SilentProgress(), engine=engine, facts=facts)
    assert report.dataset is not None
    return report.dataset


# ---------------------------------------------------------------------------- in one process


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """A scheduler and a worker that are threads of this process."""
    with Client(
        processes=False,
        n_workers=1,
        threads_per_worker=2,
        dashboard_address="127.0.0.1:0",
        memory_limit=0,
        set_as_default=False,
    ) as client:
        yield client


@pytest.fixture
def engine(client: Client) -> DaskEngine:
    return DaskEngine(client, kind_of(provenance()), Setup(1, "off"))


def test_same_bytes_as_here_also_when_interrupted(engine: DaskEngine, tmp_path: Path) -> None:
    plan = make_chunks(seeds=4)
    halfway = Watch(lambda reading: stop_at(reading, 2))
    report = run_study(plan, tmp_path / "there", progress=halfway, engine=engine)
    assert report.interrupted
    assert 1 <= len(list((tmp_path / "there" / "chunks").iterdir())) < 4
    rest = Watch()
    found = dataset_of(plan, tmp_path / "there", progress=rest, engine=engine)
    # With the worker's compiled program: compilation takes long, and slow tests do it once more.
    here = LocalEngine(lambda plan: remote._executor(Recipe.of(plan)))
    assert differences(found, dataset_of(plan, tmp_path / "here", engine=here)) == []
    assert halfway.said[0] == "compiling the program"
    for watch in (halfway, rest):
        fractions = [reading.fraction for reading in watch.readings]
        assert fractions == sorted(fractions)
    assert rest.readings[-1].trajectories == pytest.approx(8)
    other = DaskEngine(engine._client, {"device": "8 x gpu"}, Setup(1, "off"))
    with pytest.raises(StudyError, match=r"differs .* in its device: 1 x cpu cpu, not 8 x gpu"):
        dataset_of(plan, tmp_path / "other", other)


def stop_at(reading: Reading, seeds: int) -> None:
    if reading.trajectories >= 2 * seeds:
        os.kill(os.getpid(), signal.SIGINT)


def test_a_plan_survives_the_journey() -> None:
    study = parse_study(TEXT.format(seeds=7, length=50, batch=8, steps=40), "study")
    plan = make_plan(study, device_count=3, memory_bytes=10**6, cache_bytes=10**4)
    recipe = Recipe.of(plan)
    assert recipe.plan() == plan
    assert len(repr(recipe)) < 5000
    other = Recipe(**{**vars(recipe), "fingerprint": "0" * 64})
    with pytest.raises(StudyError, match="not 00000000: is scbjax there another version"):
        other.plan()


def test_lost_chunks_are_one_sentence() -> None:
    killed = cluster._Finished("run", 3, KilledWorker("key", None, 3))
    with pytest.raises(StudyError, match=r"chunk 3 was given up: 4 workers ended .*--memory"):
        cluster._result_of(killed)


def test_missing_package_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("scbjax.sweep.engine.places.find_spec", lambda _: None)
    assert main(["run", "quickstart", "--engine", "dask", "--out", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("the extra dask of scbjax brings it, as in pip install 'scbjax[dask]'")


def test_scheduler_is_for_dask(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["run", "quickstart", "--scheduler", "tcp://a:1", "--out", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "scbjax: --scheduler 'tcp://a:1' is only for --engine dask"


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "nowhere", "what://a"])
def test_no_scheduler_is_one_sentence(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 0.2)
    before = set(threading.enumerate())
    with (
        pytest.raises(StudyError, match=f"no Dask scheduler answers at '{address}'") as caught,
        connect(address, Setup()),
    ):
        pass
    # Nothing is left for the garbage collector, although the error is still there.
    assert caught.value.__context__ is not None
    left = {thread.name for thread in set(threading.enumerate()) - before}
    assert "IO loop" not in left


# ---------------------------------------------------------------------------- with processes


class Machines:
    """A scheduler and workers, each a process of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: list[subprocess.Popen[bytes]] = []
        file = folder / "scheduler.json"
        self.scheduler = self._start(*SCHEDULER, "--scheduler-file", str(file))
        while not file.exists() or not file.read_text():
            time.sleep(0.1)
        self.address: str = json.loads(file.read_text())["address"]

    def add(self) -> subprocess.Popen[bytes]:
        """Starts a worker."""
        return self._start(*WORKER, self.address, "--local-directory", str(self._folder))

    def _start(self, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env={**os.environ, **SILENCE},
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._running.append(process)
        return process

    def close(self) -> None:
        for process in self._running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    (tmp_path / "dask").mkdir()
    machines = Machines(tmp_path / "dask")
    yield machines
    machines.close()


def wait_until(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


class Faults:
    """What befalls the workers of a run, one thing after the other, as its readings come in."""

    def __init__(self, machines: Machines, client: Client, pids: dict[str, int]) -> None:
        self._machines = machines
        self._client = client
        self._pids = pids
        self._stages = iter((self.kill, self.add, self.freeze, self.thaw))
        self._next: Callable[[Reading], bool] | None = next(self._stages)
        self.frozen: str | None = None

    def __call__(self, reading: Reading) -> None:
        if self._next is not None and self._next(reading):
            self._next = next(self._stages, None)

    def busy(self) -> list[str]:
        """Workers that have a chunk under way."""
        return [address for address, keys in self._client.processing().items() if keys]

    def kill(self, reading: Reading) -> bool:
        """Kills a worker in the middle of a chunk."""
        if reading.trajectories < 2 or not (busy := self.busy()):
            return False
        os.kill(self._pids.pop(busy[0]), signal.SIGKILL)
        return True

    def add(self, _: Reading) -> bool:
        self._machines.add()
        return True

    def freeze(self, _: Reading) -> bool:
        """Partitions a worker away once the added one has a chunk."""
        busy = self.busy()
        old = [address for address in busy if address in self._pids]
        if len(busy) < 2 or not old:
            return False
        self.frozen = old[0]
        os.kill(self._pids[self.frozen], signal.SIGSTOP)
        return True

    def thaw(self, _: Reading) -> bool:
        """Lets it go on once its chunk is with another worker."""
        assert self.frozen is not None
        if self.frozen in self._client.nthreads():
            return False
        os.kill(self._pids[self.frozen], signal.SIGCONT)
        return True

    @property
    def done(self) -> bool:
        return self._next is None


def losses(client: Client) -> tuple[int, int]:
    """Workers that the scheduler has lost, and the chunks that it took back from them."""
    events = [event for _, event in client.get_events("all")]
    lost = [event for event in events if event.get("action") == "remove-worker"]
    keys = ("processing-tasks", "lost-computed-tasks")
    return len(lost), sum(len(event.get(key, ())) for event in lost for key in keys)


@pytest.mark.slow
def test_workers_may_be_lost(machines: Machines, tmp_path: Path) -> None:
    plan = make_chunks(seeds=16, length=500, batch=32, steps=2000)
    expected = dataset_of(plan, tmp_path / "here", engine=LocalEngine())
    workers = [machines.add(), machines.add()]
    with (
        Client(machines.address, set_as_default=False) as client,
        connect(machines.address, Setup(1, "off")) as place,
    ):
        wait_until(lambda: len(client.nthreads()) == 2)
        faults = Faults(machines, client, client.run(os.getpid))
        watch, engine = Watch(faults), Counting(place)
        found = dataset_of(
            plan, tmp_path / "there", progress=watch, engine=engine, facts=place.facts
        )
        assert faults.done
        for worker in workers:  # the one that was frozen finds that it was given up, and ends
            worker.wait(60)
        lost, redone = losses(client)
    different = differences(found, expected)
    print(
        f"\nworkers lost: {lost} (1 killed, 1 partitioned away), workers added: 1, "
        f"chunks: {len(plan.chunks)}, redone: {redone}, counted twice: "
        f"{sum(count > 1 for count in engine.arrived.values())}, "
        f"differences found: {len(different)}"
    )
    assert different == []
    assert lost == 2
    assert redone >= 2
    assert engine.arrived == dict.fromkeys(range(len(plan.chunks)), 1)
    assert sum("has left" in text for text in watch.said) == 2
    assert sum("has joined" in text for text in watch.said) == 1
    fractions = [reading.fraction for reading in watch.readings]
    assert fractions == sorted(fractions)
    assert fractions[-1] == pytest.approx(1)


@pytest.mark.slow
def test_a_lost_scheduler_ends_the_run(machines: Machines, tmp_path: Path) -> None:
    plan = make_chunks(seeds=8, length=500, batch=32, steps=1000)

    def kill(reading: Reading) -> None:
        if reading.trajectories >= 4:  # the first chunk is stored when the second one ends
            machines.scheduler.kill()

    machines.add()
    with (
        connect(machines.address, Setup(1, "off")) as place,
        pytest.raises(StudyError, match="connection to the scheduler was lost"),
    ):
        dataset_of(plan, tmp_path / "out", progress=Watch(kill), engine=place.engine)
    done = len(list((tmp_path / "out" / "chunks").iterdir()))
    assert 1 <= done < 8
    found = dataset_of(plan, tmp_path / "out", engine=LocalEngine())
    assert differences(found, dataset_of(plan, tmp_path / "here", engine=LocalEngine())) == []


def executing(dask_worker: Worker) -> int:
    """How many tasks a worker is at."""
    return len(dask_worker.state.executing)


def command(study: Path, out: Path, *more: str) -> "subprocess.Popen[str]":
    words = [sys.executable, "-m", "scbjax", "run", str(study), "--out", str(out), "--no-figure"]
    options = ["--cpu-devices", "1", "--compilation-cache", str(study.parent / "cache")]
    return subprocess.Popen(
        [*words, *options, *more], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.slow
def test_ctrl_c_keeps_finished_chunks_and_frees_the_workers(
    machines: Machines, tmp_path: Path
) -> None:
    study, out = tmp_path / "study.toml", tmp_path / "there"
    study.write_text(TEXT.format(seeds=3, length=2000, batch=64, steps=20000))
    dask = ("--engine", "dask", "--scheduler", machines.address, "--memory", "500kB")
    machines.add()
    with Client(machines.address, set_as_default=False) as client:
        run = command(study, out, *dask)
        wait_until(lambda: len(list(out.glob("chunks/*.npz"))) > 0)
        wait_until(lambda: any(client.processing().values()))
        run.send_signal(signal.SIGINT)
        printed, _ = run.communicate(timeout=60)
        assert run.returncode == 130, printed
        assert f"--engine dask --scheduler {machines.address}" in printed
        wait_until(lambda: not any(client.run(executing).values()))
        # It has given up the chunk in the middle.
        reports = [event for _, event in client.get_events(TOPIC) if "index" in event]
        assert reports[-1]["records_done"] < 2001
    again = command(study, out, *dask)
    printed, _ = again.communicate(timeout=300)
    assert again.returncode == 0, printed
    here = command(study, tmp_path / "here", "--memory", "500kB")
    assert here.communicate(timeout=300)[0]
    assert differences(out / "study.nc", tmp_path / "here" / "study.nc") == []


@pytest.mark.slow
def test_workers_of_this_machine_end_with_the_command(tmp_path: Path) -> None:
    study = tmp_path / "study.toml"
    study.write_text(TEXT.format(seeds=4, length=50, batch=8, steps=40))
    for name, more in (("here", ()), ("there", ("--engine", "dask"))):
        run = command(study, tmp_path / name, *more)
        printed, _ = run.communicate(timeout=300)
        assert run.returncode == 0, printed
    assert differences(tmp_path / "there" / "study.nc", tmp_path / "here" / "study.nc") == []
    left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    assert "dask_worker tcp://127.0.0.1" not in left.stdout


@pytest.mark.slow
def test_a_worker_sees_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_workers, "probe_devices", lambda: ("gpu", 2))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    with (
        local_workers.local_workers(None) as started,
        Client(started.address, set_as_default=False) as client,
    ):
        client.wait_for_workers(2, timeout=120)
        seen = client.run(os.getenv, "CUDA_VISIBLE_DEVICES")
    assert sorted(seen.values()) == ["5", "7"]
