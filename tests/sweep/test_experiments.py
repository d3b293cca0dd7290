"""Experiments of a user's own: one file, and all that the engine does for the library's."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest
import xarray
from numpy.testing import assert_allclose

import scbjax
from scbjax.base import RECORD_EVERY, STEPS, Experiment, Functions, Parameter, StudyError, Variable
from scbjax.cli import main
from scbjax.experiments import of_parts
from scbjax.sweep.engine.chunks import Executor
from scbjax.sweep.engine.engines import LocalEngine
from scbjax.sweep.engine.execute import run_study
from scbjax.sweep.engine.here import plan_here
from scbjax.sweep.engine.progress import Reading, SilentProgress
from scbjax.sweep.engine.remote import Recipe
from scbjax.sweep.plan.plans import plan_with_layout
from scbjax.sweep.study.experiments import (
    calling,
    experiments_in,
    find_experiment,
    load_experiments,
)
from scbjax.sweep.study.files import Study, fingerprint, load_study, parse_study, to_toml
from scbjax.values import Interval

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
HEADS, STUDY = EXAMPLES / "heads.py", EXAMPLES / "heads.toml"
SHORT = ("steps=40", "record_every=10", "axes.seed=[0, 1, 2]", "axes.rate=[0.01, 0.05]")


@pytest.fixture(scope="module", autouse=True)
def promotion() -> Iterator[None]:
    """As users have it: optax's own code does not bear the strict one of our tests."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module")
def heads() -> tuple[Experiment, ...]:
    return load_experiments(HEADS)


@pytest.fixture(scope="module")
def study(heads: tuple[Experiment, ...]) -> Study:
    return load_study(STUDY, SHORT, experiments=heads)


@pytest.fixture(scope="module")
def whole(study: Study, tmp_path_factory: pytest.TempPathFactory) -> xarray.Dataset:
    return run(study, tmp_path_factory.mktemp("whole"))


def run(study: Study, out: Path, on_show: Callable[[int], None] = lambda _: None) -> xarray.Dataset:
    """The dataset of a study, run in chunks of two seeds, a segment for each record."""
    plan = plan_with_layout(study, [(2, 2, 1)])
    engine = LocalEngine(lambda plan: Executor(plan, segment_seconds=0))
    report = run_study(plan, out, progress=Watch(on_show), engine=engine)
    if report.dataset is None:
        assert report.interrupted
        return xarray.Dataset()
    with xarray.open_dataset(report.dataset) as dataset:
        return dataset.load()


class Watch(SilentProgress):
    """Calls back at every reading."""

    def __init__(self, on_show: Callable[[int], None]) -> None:
        self._count, self._on_show = 0, on_show

    def show(self, reading: Reading) -> None:  # noqa: ARG002 - the protocol's
        self._count += 1
        self._on_show(self._count)


def test_records_are_those_of_the_functions_called_one_by_one(
    whole: xarray.Dataset, heads: tuple[Experiment, ...]
) -> None:
    assert whole.entropy.dims == ("seed", "rate", "step", "head")
    assert whole.batch_loss.shape == (3, 2, 5)
    (experiment,) = heads
    fixed = {"model.heads": 2, "train.record_every": 10, "train.batch_size": 64}
    functions = experiment.build(fixed, {})
    values = {"train.rate": np.float32(0.05)}
    keys = keys_of(seed=2)
    task = functions.draw(keys, values)
    state = functions.start(keys, values, task)
    take = jax.jit(lambda state, index: functions.take_record(keys, values, task, state, index))
    for index in range(5):
        state, record = take(state, index)
        for name in ("batch_loss", "entropy"):
            found = whole[name].isel(step=index).sel(seed=2, rate=0.05)
            assert_allclose(found, record[name], rtol=5e-4)


def keys_of(seed: int) -> scbjax.base.Keys:
    """By the rule that docs/studies.md gives."""

    def key(_: str, stream: int) -> jax.Array:
        root = jax.random.key(0, impl="threefry2x32")
        return jax.random.fold_in(jax.random.fold_in(root, stream), seed)

    return scbjax.base.Keys(key)


def test_learners_of_a_seed_share_their_task_and_batches(whole: xarray.Dataset) -> None:
    at_start = whole.entropy.isel(step=0, head=0)
    assert_allclose(at_start.isel(rate=0), at_start.isel(rate=1), rtol=1e-6)
    assert len(np.unique(at_start.isel(rate=0))) == 3


def test_a_run_that_was_stopped_goes_on_bit_for_bit(
    study: Study, whole: xarray.Dataset, tmp_path: Path
) -> None:
    def interrupt(reading: int) -> None:
        if reading == 3:
            signal.raise_signal(signal.SIGINT)

    assert not run(study, tmp_path / "out", interrupt)
    assert list((tmp_path / "out").glob("checkpoints/*.npz"))
    xarray.testing.assert_identical(run(study, tmp_path / "out").drop_attrs(), whole.drop_attrs())


def test_the_file_is_kept_and_belongs_to_the_fingerprint(
    study: Study, whole: xarray.Dataset, tmp_path: Path
) -> None:
    text = HEADS.read_text(encoding="utf-8")
    assert whole.attrs["experiment"] == text
    run(study, tmp_path / "out")
    assert (tmp_path / "out" / "experiment.py").read_text(encoding="utf-8") == text
    changed = experiments_in(text.replace("0.1 * logits", "0.2 * logits"), "heads.py")
    other = load_study(STUDY, SHORT, experiments=changed)
    assert to_toml(other) == to_toml(study)
    assert fingerprint(other) != fingerprint(study)
    with pytest.raises(StudyError, match="begun with another version of the file of experiment"):
        run(other, tmp_path / "out")


def test_a_study_is_its_text_and_the_file(study: Study, heads: tuple[Experiment, ...]) -> None:
    text = to_toml(study)
    assert 'experiment = "heads"' in text
    assert parse_study(text, study.name, experiments=heads) == study
    with pytest.raises(StudyError, match=r"no experiment 'heads'.* comes with --experiment FILE"):
        parse_study(text, study.name)
    recipe = Recipe.of(plan_with_layout(study, [(2, 2, 1)]))
    assert recipe.plan().fingerprint == fingerprint(study)


@pytest.mark.slow
def test_an_experiment_is_run_from_python(
    whole: xarray.Dataset, heads: tuple[Experiment, ...]
) -> None:
    """The value itself, which need not be in a file."""
    axes = {"seed": np.arange(3), "rate": (0.01, 0.05)}
    steps = {"steps": 40, "record_every": 10}
    found = scbjax.sweep.run(heads[0], set=steps, axes=axes, progress=False)
    assert found.entropy.dims == whole.entropy.dims
    for name in whole.data_vars:
        assert_allclose(found[name], whole[name], rtol=5e-4, atol=1e-6)
    with pytest.raises(StudyError, match=r"unknown field 'rat'; did you mean 'rate'\?"):
        scbjax.sweep.run(heads[0], set={**steps, "rat": 0.1}, progress=False)
    with pytest.raises(StudyError, match=r"experiment must be a scbjax.base.Experiment or"):
        scbjax.sweep.run("quickstart", experiment=3, progress=False)  # type: ignore[arg-type]


@pytest.mark.slow
def test_data_of_ones_own_are_swept(tmp_path: Path) -> None:
    """A static parameter of the source makes programs of their own; the held-out loss falls."""
    out = tmp_path / "out"
    found = scbjax.sweep.run(
        EXAMPLES / "letters.toml",
        experiment=EXAMPLES / "letters.py",
        set={"steps": 100, "rate": 0.02},
        axes={"seed": [0, 1]},
        out=out,
        progress=False,
    )
    assert found.held_out_loss.dims == ("seed", "context_length", "step")
    losses = found.held_out_loss.isel(step=[0, -1]).to_numpy()
    assert np.all(losses[..., 1] < 0.7 * losses[..., 0])
    assert (out / "experiment.py").is_file()


@pytest.mark.slow
def test_a_number_of_an_attention_map_is_swept() -> None:
    """A temperature is traced, one program; the lower it is, the less entropy is left."""
    found = scbjax.sweep.run(
        EXAMPLES / "temperature.toml",
        experiment=EXAMPLES / "temperature.py",
        axes={"seed": [0, 1], "temperature": [0.1, 3.0]},
        progress=False,
    )
    entropy = found.entropy.isel(step=[0, -1]).transpose("temperature", "seed", "step").to_numpy()
    np.testing.assert_allclose(entropy[..., 0], np.log(50), rtol=1e-5)  # even at the start
    assert np.all(entropy[0, :, 1] < 0.5 * entropy[1, :, 1])
    assert np.all(found.attention_distance.isel(step=-1) < found.attention_distance.isel(step=0))


def test_the_sizes_of_records_are_worked_out_once(heads: tuple[Experiment, ...]) -> None:
    """They are asked for each chunk that is read, and a learner takes seconds to be traced."""
    (experiment,) = heads
    values = {"model.heads": 2, "train.steps": 40, "train.record_every": 10, "train.batch_size": 64}
    assert experiment.sizes(values) == {"head": 2}
    hits = of_parts._traced_sizes.cache_info().hits
    assert experiment.sizes({**values, "train.rate": 0.5}) == {"head": 2}
    assert of_parts._traced_sizes.cache_info().hits == hits + 1


def test_an_axis_that_changes_the_size_of_a_record_is_refused(
    heads: tuple[Experiment, ...],
) -> None:
    with pytest.raises(StudyError, match=r"entropy needs arrays of one shape, but model.heads"):
        load_study(STUDY, ["axes.heads=[1, 2]"], experiments=heads)


def test_memory_is_asked_of_the_compiler(study: Study) -> None:
    (program,) = plan_here(study, memory_bytes=2**30).programs
    task, params = 3 * 3 + 3 + 20 * 3, 2 * (3 * 3 + 20 * 3)
    least = 4 * (task + 3 * params + 5 * (1 + 2))  # Adam keeps two more of the parameters
    assert least <= program.cost.kept_bytes({}) <= 1.2 * least
    assert program.cost.temporary_bytes({}) > 64 * 20  # the batch
    with pytest.raises(StudyError, match=r"one trajectory needs about .* more than the memory"):
        plan_here(study, memory_bytes=10_000)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("x = ", r"mine.py, line 1: SyntaxError: invalid syntax"),
        ("import math\nmath.sqrt(-1)", r"mine.py, line 2: ValueError: .+"),
        ("x = 1", r"mine.py defines no experiment: give it one, a scbjax.base.Experiment"),
        ("raise StopIteration", r"mine.py, line 1: NameError|mine.py, line 1: StopIteration"),
    ],
)
def test_a_file_that_fails_is_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(StudyError, match=sentence):
        experiments_in(text, "mine.py")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"nope.py can't be read: No such file"):
        load_experiments(tmp_path / "nope.py")
    (tmp_path / "latin.py").write_bytes(b"# \xe9")
    with pytest.raises(StudyError, match="the text is not UTF-8"):
        load_experiments(tmp_path / "latin.py")


def test_experiments_are_found_by_name(heads: tuple[Experiment, ...]) -> None:
    assert find_experiment("scb").name == "scb"
    assert find_experiment("heads", heads) is heads[0]
    with pytest.raises(StudyError, match=r"no experiment 'scp'; did you mean 'scb'\?"):
        find_experiment("scp")
    with pytest.raises(StudyError, match="experiment must be a string, got 3"):
        parse_study("experiment = 3", "x")


def nothing(*_: object) -> Functions:
    raise AssertionError


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"name": "two words"}, "name of an experiment must be letters, digits and _"),
        ({"parameters": (STEPS,)}, "lacks the parameters train.record_every"),
        ({"variables": {}}, "records nothing"),
        (
            {
                "parameters": (
                    STEPS,
                    RECORD_EVERY,
                    Parameter("a.rate", float, 0.1, "traced", "inner", "Rate"),
                    Parameter("b.rate", float, 0.1, "traced", "inner", "Rate"),
                )
            },
            "two parameters called 'rate'",
        ),
    ],
)
def test_an_experiment_that_does_not_fit_is_one_sentence(
    changes: dict[str, object], sentence: str
) -> None:
    whole: dict[str, object] = {
        "name": "mine",
        "parameters": (STEPS, RECORD_EVERY),
        "build": nothing,
        "variables": {"loss": Variable("loss")},
    }
    with pytest.raises(StudyError, match=sentence):
        Experiment(**{**whole, **changes})  # type: ignore[arg-type]


def test_a_search_needs_rules(heads: tuple[Experiment, ...]) -> None:
    search = ("search.field=rate", "search.first=0.01", "search.last=0.1")
    with pytest.raises(StudyError, match=r"search.field has no meaning for experiment 'heads'"):
        load_study(STUDY, ["rate=0.1", *search], experiments=heads)


TEMPERATURE = (EXAMPLES / "temperature.py").read_text(encoding="utf-8")
MISTAKES = {
    "a key that is misspelt": (
        'values["temperature"]', 'values["temp"]',
        r"fails \(mine.py, line 19\): KeyError: 'temp'; with SCBJAX_TRACEBACK=1",
    ),
    "a number that the library refuses": (
        "sparsity=2", "sparsity=60",
        r"fails: ValueError: sparsity is 60; it must be between 1 and context_length = 50",
    ),
    "an array without dimensions": (
        "columns @ view.task.stationary", "columns",
        r"record 'entropy' has shape \[3\]; its dims must name each axis",
    ),
    "an optimiser that is not called": (
        "optax.adam(0.02)", "optax.adam",
        r"optimizer is the function optax.adam itself; it must be what that gives",
    ),
    "a learner that takes too little": (
        "def make(source, static, **given)", "def make(source, static)",
        r"must take \(source, static, \*, batch_size, record_every, record\)",
    ),
    "arguments the other way round": (
        "def init(key, task)", "def init(task, key)",
        r"fails \(mine.py, line 15\): TypeError: task is a scalar key",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_in_ones_own_code_is_one_sentence(case: str) -> None:
    right, wrong, sentence = MISTAKES[case]
    assert right in TEMPERATURE
    given = experiments_in(TEMPERATURE.replace(right, wrong), "mine.py")
    study = load_study(EXAMPLES / "temperature.toml", ["steps=10", "record_every=10"],
                       experiments=given)  # fmt: skip
    with pytest.raises(StudyError, match=sentence) as caught:
        plan_here(study, memory_bytes=2**30)
    assert "\n" not in str(caught.value)


def test_a_mistake_of_the_library_stays_one() -> None:
    own = find_experiment("scb")
    with pytest.raises(KeyError, match="oops"), calling(own):
        raise KeyError("oops")
    with pytest.raises(StudyError, match=r"'scb' fails .*: KeyError: 'oops'") as caught:  # noqa: SIM117
        with calling(replace(own)):  # the user's, though it is called the same
            raise KeyError("oops")
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"kind": "trace"}, r"'train.x' has the kind 'trace'; it must be one of static, traced"),
        ({"layer": "iner"}, r"has the layer 'iner'; .*did you mean 'inner'\?"),
        ({"type": "float"}, r"has the type 'float'; it must be one of int, float, bool, str"),
        (
            {"path": "train x"},
            r"parameter 'train x' must be called by letters, digits, _ and a dot",
        ),
        ({"default": "one"}, r"has the default 'one'; it must be a number"),
        ({"default": True}, r"has the default True; it must be a number"),
        ({"check": Interval(0, 1), "default": 2.0}, r"has the default 2.0; .* from 0 to 1"),
    ],
)
def test_a_parameter_that_is_none_is_one_sentence(change: dict[str, Any], sentence: str) -> None:
    right = Parameter("train.x", float, 1.0, "traced", "inner", "x")
    with pytest.raises(StudyError, match=sentence):
        replace(right, **change)


def test_a_parameter_stands_in_a_table(heads: tuple[Experiment, ...]) -> None:
    (experiment,) = heads
    bare = Parameter("rate", float, 1.0, "traced", "inner", "Rate")
    with pytest.raises(StudyError, match=r"parameter 'rate' in no table .* 'train.rate'"):
        replace(experiment, parameters=(STEPS, RECORD_EVERY, bare))


@pytest.mark.slow
def test_the_command_runs_a_file_when_asked_and_only_then(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(HEADS, "heads.py")
    shutil.copy(STUDY, "heads.toml")
    asked = ["--experiment", "heads.py"]
    short = [f"--set={override}" for override in SHORT]
    assert main(["run", "heads.toml", *asked, *short]) == 0
    assert Path("figures/out/heads.png").is_file()
    assert main(["verify", "results/heads", *asked]) == 0
    assert "the same, bit for bit" in capsys.readouterr().out
    assert main(["status", "results/heads", *asked]) == 0
    assert "100%" in capsys.readouterr().out
    assert main(["rerun", "results/heads/heads.nc", *asked]) == 0
    assert main(["show", "heads.toml", *asked]) == 0
    assert main(["run", "heads.toml"]) == 2
    assert "there is no experiment 'heads'" in capsys.readouterr().err
    with Path("heads.py").open("a") as file:
        file.write("# another version\n")
    assert main(["run", "heads.toml", *asked, *short]) == 2
    assert "begun with another version" in capsys.readouterr().err


@pytest.mark.slow
def test_dask_sends_the_file_to_its_workers(tmp_path: Path, whole: xarray.Dataset) -> None:
    short = [f"--set={override}" for override in SHORT]
    command = [sys.executable, "-m", "scbjax", "run", str(STUDY), "--experiment", str(HEADS)]
    options = ["--out", str(tmp_path / "out"), "--engine", "dask", "--cpu-devices=1", "--no-figure"]
    done = subprocess.run([*command, *short, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with xarray.open_dataset(tmp_path / "out" / "heads.nc") as dataset:
        for name in whole.data_vars:
            assert_allclose(dataset[name], whole[name], rtol=1e-4, atol=1e-6)
        assert json.loads(dataset.attrs["settings"])["model.heads"] == 2


def test_a_source_may_draw_by_traced_values() -> None:
    """A level of the outer layer is what is learned; a rate of the inner layer is not."""
    level = Parameter("data.level", float, 0.0, "traced", "outer", "Level of what is learned")
    rate = Parameter("train.rate", float, 0.5, "traced", "inner", "Rate")
    source = scbjax.Source(
        draw=lambda _, values: values["level"],
        sample=lambda _, level, size: jax.numpy.full((size,), level),
    )
    model = scbjax.Model(
        init=lambda _, level: jax.numpy.zeros_like(level),
        loss=lambda params, batch: ((params - batch) ** 2).mean() / 2,
    )

    def make(source: scbjax.Source, _: object, **given: Any) -> scbjax.Learner:  # noqa: ANN401
        return scbjax.learner(source, model, lambda _, v, __: optax.sgd(v["rate"]), **given)

    seen = scbjax.Observable(lambda view: view.params, name="seen")
    own = scbjax.learning("level", source, make, record=(seen,), parameters=(level, rate))
    study = {
        "experiment": "level",
        "train": {"batch_size": 2, "steps": 2, "record_every": 1},
    }
    axes = {"level": [1.0, 3.0], "rate": [0.5, 1.0]}
    found = scbjax.sweep.run(study, experiment=own, axes=axes, progress=False).seen
    for at in axes["level"]:
        half, whole = (found.sel(level=at, rate=rate) for rate in axes["rate"])
        np.testing.assert_allclose(half, [0.0, at / 2, at * 3 / 4], rtol=1e-6)
        np.testing.assert_allclose(whole, [0.0, at, at], rtol=1e-6)
