"""The explorer: what of a study it shows, what it leaves out, what it says, what it writes."""

from __future__ import annotations

import base64
import gzip
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, strategies as st
from numpy.typing import NDArray

import scbjax
from scbjax import cli
from scbjax.base import StudyError
from scbjax.exploring.choosing import choose
from scbjax.exploring.gathering import gather, range_of, scale_of
from scbjax.exploring.opening import Whole, opened_results
from scbjax.exploring.page import empty_size
from scbjax.exploring.thinning import (
    MAX_COLUMNS,
    MAX_FRAMES,
    MAX_ROWS,
    Shape,
    Sizes,
    evenly,
    largest_rows,
    thin,
)
from scbjax.exploring.words import axis_points, left_out
from scbjax.sweep.engine.engines import LocalEngine
from scbjax.sweep.engine.execute import run_study
from scbjax.sweep.engine.here import plan_here
from scbjax.sweep.engine.progress import Reading, SilentProgress
from scbjax.sweep.plan.plans import Plan
from scbjax.sweep.results.dataset import read_dataset
from scbjax.sweep.results.partial import read_partial
from scbjax.sweep.results.store import status
from scbjax.sweep.study.files import parse_study

pytest.importorskip("bokeh", reason="the extra explore is not installed")

HALF: Final = 2.0**-11
"""The largest relative error of rounding to float16."""
LEAST: Final = 2.0**-25
"""Half of the least number of float16."""
EVERY: Final = 10


def made(
    seeds: int = 3,
    length: int = 6,
    tokens: int = 2,
    frames: int = 4,
    steps: int = 60,
    **axes: list[Any],
) -> xr.Dataset:
    """A study whose A goes from uniform to Q, and V to P, in equal steps."""
    rng = np.random.default_rng(0)
    shape = (seeds, *map(len, axes.values()))
    pattern = np.zeros((seeds, length, tokens), np.float32)
    for seed in range(seeds):
        for query in range(tokens):
            pattern[seed, rng.choice(length, 2, replace=False), query] = 0.25, 0.75
    transition = rng.dirichlet(np.ones(tokens), (seeds, tokens)).swapaxes(1, 2).astype(np.float32)
    taken = np.linspace(0, steps // EVERY, frames).round().astype(int) * EVERY
    speed = rng.uniform(0.7, 1.0, shape)[..., None] * taken / steps
    wide = (slice(None), *(None,) * len(axes), None)
    share = speed[..., None, None]
    attention = (1 - share) / length + share * pattern[wide]
    value = (1 - share) / tokens + share * transition[wide]
    distance = rng.uniform(0, 1, (*shape, steps // EVERY + 1)).astype(np.float32)
    dims = ("seed", *axes)
    settings = {
        "train.steps": steps,
        "train.record_every": EVERY,
        "record.snapshots": taken.tolist(),
        "task.context_length": length,
    }
    return xr.Dataset(
        {
            "attention_snapshots": (
                (*dims, "snapshot", "position", "query"),
                attention.astype(np.float32),
            ),
            "value_snapshots": (
                (*dims, "snapshot", "token_out", "token_in"),
                value.astype(np.float32),
            ),
            "pattern": (("seed", "position", "query"), pattern),
            "transition": (("seed", "token_out", "token_in"), transition),
            "attention_distance": ((*dims, "step"), distance),
            "value_distance": ((*dims, "step"), distance / 2),
            "diverged_at": (dims, np.full(shape, -1, np.int32)),
        },
        coords={
            "seed": np.arange(seeds) + 100,
            "step": np.arange(0, steps + 1, EVERY),
            "snapshot": taken,
            **axes,
        },
        attrs={
            "title": "A <study> of $5",
            "name": "made",
            "settings": json.dumps(settings),
            "study": "title = 'made'",
        },
    )


# ----------------------------------------------------------------------------------- thinning


@given(st.integers(1, 5000), st.integers(1, 300))
def test_even_places_keep_both_ends(count: int, most: int) -> None:
    places = evenly(count, most)
    assert len(set(places.tolist())) == len(places) == min(count, most)
    assert places[0] == 0
    if most > 1:
        assert places[-1] == count - 1
        gaps = np.diff(places)
        assert gaps.size == 0 or gaps.max() - gaps.min() <= 1


SIZES = st.builds(
    Sizes,
    axes=st.dictionaries(st.sampled_from("abc"), st.integers(1, 3000)),
    frames=st.integers(1, 2000),
    records=st.integers(1, 5000),
    curves=st.integers(0, 9),
    matrices=st.just(
        {"attention": Shape(5000, 300, True, True), "value": Shape(300, 300, False, False)}
    ),
)


@given(SIZES, st.integers(100_000, 20_000_000))
def test_what_is_kept_is_within_the_budget_and_no_more_than_there_is(
    sizes: Sizes, budget: int
) -> None:
    kept = thin(sizes, budget)
    assert kept.bytes <= budget
    assert all(1 <= kept.axes[axis] <= count for axis, count in sizes.axes.items())
    assert kept.frames <= min(sizes.frames, MAX_FRAMES)
    for shape in kept.matrices.values():
        assert (shape.rows, shape.columns) <= (MAX_ROWS, MAX_COLUMNS)


def test_what_fits_is_kept_and_a_larger_budget_keeps_more() -> None:
    sizes = Sizes({"seed": 100, "l1": 5}, 50, 100, 2, {"attention": Shape(20, 3, True, True)})
    assert thin(sizes, sizes.bytes) == sizes
    less = thin(sizes, sizes.bytes // 3)
    # The longest axis goes first; nothing else is touched while it has many points.
    assert less.axes["l1"] == 5
    assert less.frames == 50
    assert 20 < less.axes["seed"] < 34
    assert less.bytes > 0.8 * sizes.bytes / 3


def test_a_budget_for_nothing_is_refused() -> None:
    sizes = Sizes({"seed": 100}, 50, 100, 2, {"attention": Shape(20, 3, True, True)})
    with pytest.raises(StudyError, match=r"a page of one trajectory takes \d+ bytes"):
        thin(sizes, 100)


def test_rows_that_matter_are_the_support_and_the_largest_weights() -> None:
    rng = np.random.default_rng(1)
    learned = rng.normal(size=(4, 200, 3))
    truth = np.zeros((200, 3))
    truth[[7, 190], [0, 2]] = 0.5, 0.1
    rows = largest_rows(learned, truth, 10)
    assert rows.tolist() == sorted(rows.tolist())
    assert {7, 190} < set(rows.tolist())
    others = [row for row in range(200) if row not in (7, 190)]
    others.sort(key=lambda row: -np.abs(learned[:, row]).max())
    assert set(rows.tolist()) == {7, 190, *others[:8]}
    assert largest_rows(learned, truth, 1).tolist() == [7]
    assert largest_rows(np.full((1, 9, 2), np.nan), None, 3).tolist() == [0, 1, 2]


# ---------------------------------------------------------------------------------- gathering


def written(page: str) -> dict[str, Any]:
    """The arguments of the script of a page, its arrays decoded from the page itself."""
    (text,) = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.DOTALL)
    found: list[dict[str, Any]] = []

    def walk(node: object) -> None:
        if isinstance(node, dict):
            if node.get("name") == "CustomJS" and "args" in node.get("attributes", {}):
                found.append(dict(node["attributes"]["args"]["entries"]))
            for child in node.values():
                walk(child)
        elif isinstance(node, list):
            for child in node:
                walk(child)

    walk(json.loads(text))
    (arguments,) = (entry for entry in found if "arrays" in entry)
    return {name: decoded(value) for name, value in arguments.items()}


def decoded(value: Any) -> Any:  # noqa: ANN401 - whatever the page holds
    if isinstance(value, list):
        return [decoded(each) for each in value]
    if isinstance(value, dict) and value.get("type") == "ndarray":
        raw = base64.b64decode(value["array"]["data"])
        raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw  # as newer releases do
        return np.frombuffer(raw, value["dtype"])
    return value


def page_of(dataset: xr.Dataset, tmp_path: Path, **given: Any) -> str:  # noqa: ANN401
    return scbjax.explore(dataset, tmp_path / "page.html", **given).read_text(encoding="utf-8")


def close(found: NDArray[Any], wanted: NDArray[Any]) -> bool:
    """Whether numbers are those of a dataset, rounded to float16."""
    wanted = wanted.astype(np.float64)
    return bool((np.abs(found.astype(np.float64) - wanted) <= HALF * np.abs(wanted) + LEAST).all())


def test_a_page_holds_the_numbers_of_the_dataset(tmp_path: Path) -> None:
    dataset = made(l1=[0.0, 1e-4])
    data = written(page_of(dataset, tmp_path))
    meta = json.loads(data["meta"])
    assert meta["steps"] == dataset.snapshot.to_numpy().tolist()
    for place, (name, truth) in enumerate((("attention", "pattern"), ("value", "transition"))):
        snapshots = dataset[f"{name}_snapshots"].to_numpy()
        learned = data["arrays"][5 * place].view(np.float16).reshape(6, *snapshots.shape[2:])
        assert close(learned, snapshots.reshape(learned.shape))
        right = data["arrays"][5 * place + 1].view(np.float16).reshape(3, 2, *snapshots.shape[3:])
        assert close(right, dataset[truth].to_numpy()[:, None].repeat(2, 1))
        assert ((right == 0) == (dataset[truth].to_numpy()[:, None] == 0)).all()
    curves = data["curves"].reshape(6, 2, -1)
    assert meta["names"] == ["attention_distance", "value_distance"]
    for place, name in enumerate(meta["names"]):
        assert (curves[:, place] == dataset[name].to_numpy().reshape(6, -1)).all()
    assert [axis["points"] for axis in meta["axes"]] == [["100", "101", "102"], ["0", "1e-4"]]


def test_the_axes_may_stand_in_any_order_and_the_truth_need_not_have_them(tmp_path: Path) -> None:
    dataset = made(l1=[0.0, 1e-4])
    other = dataset.transpose("l1", "query", "snapshot", "seed", ...)
    first, second = (
        written(page_of(each, tmp_path))["arrays"][0].reshape(2, 3, 4, 6, 2)
        for each in (dataset.transpose("l1", "seed", ...), other.transpose(..., "query"))
    )
    assert (first == second).all()


def test_of_many_positions_those_that_matter_are_written_and_the_rest_is_summed_up() -> None:
    dataset = made(seeds=2, length=300, tokens=3)
    found = Whole(dataset, "made")
    data = gather(found, choose(found), 10**7)
    own = data.matrices[0]
    snapshots, pattern = (dataset[n].to_numpy() for n in ("attention_snapshots", "pattern"))
    assert own.rows.shape == (2, MAX_ROWS)
    for seed in range(2):
        rows, support = own.rows[seed], np.flatnonzero(pattern[seed].any(axis=1))
        assert set(support.tolist()) <= set(rows.tolist())
        assert close(own.learned[seed], snapshots[seed][:, rows])
        assert close(own.truth[seed], pattern[seed][rows])
        hidden = np.delete(snapshots[seed], rows, axis=1)
        assert np.allclose(own.elsewhere[seed, :, 0], np.abs(hidden).max(axis=(1, 2)))
        assert np.allclose(own.elsewhere[seed, :, 1], np.abs(hidden).sum(axis=1).mean(axis=-1))
    assert any("Of the 300 rows of A (positions) 48 are shown" in text for text in left_out(data))


def test_of_many_tokens_the_same_are_kept_everywhere() -> None:
    dataset = made(seeds=1, length=40, tokens=80)
    found = Whole(dataset, "made")
    attention, value = gather(found, choose(found), 10**7).matrices
    assert attention.column_names == value.column_names == tuple(map(str, evenly(80, MAX_COLUMNS)))
    assert (value.rows == evenly(80, MAX_COLUMNS)).all()
    rows, columns = np.ix_(evenly(80, MAX_COLUMNS), evenly(80, MAX_COLUMNS))
    assert close(value.learned[0], dataset["value_snapshots"].to_numpy()[0][:, rows, columns])


def test_the_matrices_at_the_end_are_the_last_frame() -> None:
    dataset = made(frames=3).isel(snapshot=[0, 1])
    full = made(frames=3)
    last = full.isel(snapshot=-1).drop_vars("snapshot")
    dataset = dataset.assign(attention=last["attention_snapshots"], value=last["value_snapshots"])
    found = Whole(dataset, "made")
    choice = choose(found)
    assert choice.steps == (0, 30, 60)
    data = gather(found, choice, 10**7)
    assert close(data.matrices[0].learned, full["attention_snapshots"].to_numpy())


def test_matrices_that_were_recorded_along_the_step_are_shown() -> None:
    full = made(frames=7)
    names = {"attention_snapshots": "attention", "value_snapshots": "value"}
    own = full[[*names]].drop_vars("snapshot").rename(names).rename(snapshot="step")
    found = Whole(own.assign(pattern=full["pattern"]), "made")
    choice = choose(found)
    assert choice.steps == tuple(range(7))
    assert [shown.has_truth for shown in choice.matrices] == [True, False]
    data = gather(found, choice, 10**7)
    assert close(data.matrices[1].learned, full["value_snapshots"].to_numpy())
    assert np.isnan(data.matrices[1].truth).all()


def test_ten_thousand_trajectories_fit_into_the_budget(tmp_path: Path) -> None:
    dataset = made(seeds=100, length=12, frames=11, l1=list(np.geomspace(1e-5, 1e-2, 100)))
    said: list[str] = []
    path = scbjax.explore(dataset, tmp_path / "page.html", budget="4MB", say=said.append)
    assert path.stat().st_size <= 4_000_000
    (told,) = (text for text in said if "trajectories" in text)
    seeds, l1 = map(int, re.findall(r"(\d+) of 100 points", told))
    assert f"Of 10000 trajectories {seeds * l1} are kept" in told
    page = path.read_text(encoding="utf-8")
    assert told in page
    assert dataset.seed.to_numpy()[-1] == 199
    data = written(page)
    # What there is room for is used, also where Bokeh compresses what it writes.
    assert path.stat().st_size > 0.7 * 4_000_000
    size = sum(each.nbytes for each in (*data["arrays"], data["curves"]))
    assert size * 4 / 3 > 0.85 * (4_000_000 - empty_size())
    axes = json.loads(data["meta"])["axes"]
    assert [axis["points"][0] for axis in axes] == ["100", "1e-5"]
    assert [axis["points"][-1] for axis in axes] == ["199", "0.01"]


def test_what_diverges_does_not_spoil_the_scale() -> None:
    rng = np.random.default_rng(2)
    truth = rng.uniform(0, 1, (5, 2))
    learned = rng.uniform(0, 1, (3, 5, 2))
    low, high = scale_of(learned, truth)
    assert (low, high) == (0, np.float32(max(learned.max(), truth.max())))
    learned[2] = 1e30, np.nan
    learned[1, 0] = -1e9
    low, high = scale_of(learned, truth)
    assert np.float32(1.5 * truth.max()) == high
    assert low == -high / 2
    assert scale_of(np.zeros((1, 2, 2)), np.full((2, 2), np.nan)).tolist() == [0, 1]


def test_the_axis_of_curves_is_that_of_runs_that_did_not_diverge() -> None:
    curves = np.array([[[0.5, 1.0]], [[1e9, np.inf]]])
    low, high = range_of(curves, np.array([True, False]))
    assert low == 0
    assert 1.0 < high < 1.1
    assert range_of(curves[1:], np.array([False]))[1] > 1e9
    assert range_of(np.zeros((1, 1, 0)), np.array([True]))[1] > 0


def test_points_of_a_zip_are_told_by_their_texts_and_what_tells_them_apart() -> None:
    coords = {
        "optimizer": ("arm", ["sgd", "sgd", "proximal"]),
        "rate": ("arm", [0.1, 0.2, 0.2]),
        "flip": ("arm", [True, True, True]),
    }
    frame = xr.Dataset(coords=coords)
    assert axis_points(frame, "arm") == ["sgd, rate 0.1", "sgd, rate 0.2", "proximal, rate 0.2"]
    assert axis_points(frame.isel(arm=[1, 2]), "arm") == ["sgd", "proximal"]


# ------------------------------------------------------------------------------- what is said


def test_a_page_fetches_nothing(tmp_path: Path) -> None:
    page = page_of(made(), tmp_path)
    assert "default-src 'none'" in page
    own = re.sub(r"<script.*?</script>|<style.*?</style>", "", page, flags=re.DOTALL)
    assert not re.findall(r"\b(?:src|href|action|data)\s*=", own)
    assert not re.findall(r"<(?:link|img|iframe|object|embed|base)\b", own)
    assert not re.findall(r"<script[^>]*\bsrc\s*=", page)
    style = "".join(re.findall(r"<style.*?</style>", page, flags=re.DOTALL))
    assert "url(" not in style
    assert "@import" not in style


def test_a_page_says_what_it_is(tmp_path: Path) -> None:
    page = page_of(made().drop_vars("transition"), tmp_path)
    assert "<h1>A &lt;study&gt; of $5</h1>" in page
    assert "study made, T = 6" in page
    assert "P is not shown: the study was run without record.truth." in page
    assert "Nothing was left out of this page." in page


def test_of_steps_what_is_left_out_is_said() -> None:
    found = Whole(made(seeds=1, frames=151, steps=1500), "made")
    data = gather(found, choose(found), 10**7)
    assert left_out(data)[0] == "Of 151 steps with matrices 100 are kept, evenly chosen."
    assert data.steps[0] == 0
    assert data.steps[-1] == 1500
    assert set(data.steps) <= set(data.record_steps)


NO_SNAPSHOTS = """
[task]
num_tokens = 2
context_length = 6
sparsity = 1
[train]
batch_size = 4
steps = 400
record_every = 4
"""


def test_a_study_without_snapshots_is_told_how_to_record_them() -> None:
    study = parse_study(NO_SNAPSHOTS, "own")
    settings = json.dumps(dict(study.base))
    dataset = made().drop_vars(["attention_snapshots", "value_snapshots"])
    dataset.attrs |= {"settings": settings, "name": "own", "study": NO_SNAPSHOTS}
    with pytest.raises(StudyError, match="has no snapshots of A and V to explore") as caught:
        choose(Whole(dataset, "own.nc"))
    command = shlex.split(str(caught.value).partition("record them with: ")[2])
    assert command[:3] == ["scbjax", "run", "own.toml"]
    overrides = [command[n + 1] for n, word in enumerate(command) if word == "--set"]
    again = parse_study(NO_SNAPSHOTS, "own", overrides)
    assert again.truth
    assert again.final
    assert (again.snapshots[0], again.snapshots[-1], len(again.snapshots)) == (0, 400, 21)


def test_matrices_at_the_end_alone_are_no_snapshots() -> None:
    dataset = made().isel(snapshot=-1, drop=True)
    names = {"attention_snapshots": "attention", "value_snapshots": "value"}
    with pytest.raises(StudyError, match="has no snapshots"):
        choose(Whole(dataset.rename(names), "own.nc"))


def test_an_experiment_that_keeps_no_matrices_is_named() -> None:
    dataset = made().drop_vars(["attention_snapshots", "value_snapshots"])
    dataset.attrs["study"] = "experiment = 'maps'"
    with pytest.raises(StudyError, match="the experiment 'maps' keeps no matrices"):
        choose(Whole(dataset, "own.nc"))


def saved(tmp_path: Path, dataset: xr.Dataset | None = None) -> Path:
    path = tmp_path / "made" / "made.nc"
    path.parent.mkdir(parents=True)
    (made() if dataset is None else dataset).to_netcdf(path, engine="h5netcdf")
    return path


def test_the_command_writes_beside_the_dataset_and_prints_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(tmp_path)
    for what in (path, path.parent):
        assert cli.main(["explore", str(what)]) == 0
        assert capsys.readouterr().out == f"{path.parent / 'made-explore.html'}\n"
    assert cli.main(["explore", "made", "--results", str(tmp_path)]) == 0
    assert written((path.parent / "made-explore.html").read_text(encoding="utf-8"))
    out = tmp_path / "new" / "page.html"
    assert cli.main(["explore", str(path), "--out", str(out)]) == 0
    assert out.is_file()


def test_another_file_is_not_written_over_without_being_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = saved(tmp_path), tmp_path / "mine.html"
    out.write_text("<p>mine</p>")
    arguments = ["explore", str(path), "--out", str(out)]
    assert cli.main(arguments) == 2
    assert "was not written by scbjax explore" in capsys.readouterr().err
    assert out.read_text() == "<p>mine</p>"
    assert cli.main([*arguments, "--force"]) == 0
    assert cli.main(arguments) == 0  # its own it may renew


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "there is no folder, dataset or study 'nowhere'"),
        (["{path}", "--budget", "much"], "--budget must be a size such as"),
        (["{path}", "--budget", "1MB"], "are left of the size allowed"),
        (["{folder}"], "holds no results"),
        (["{path}", "--out", "{folder}/empty"], "is a directory"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(tmp_path)
    (tmp_path / "empty" / "made-explore.html").mkdir(parents=True)
    filled = [each.format(path=path, folder=tmp_path) for each in arguments]
    assert cli.main(["explore", *filled]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_without_bokeh_a_sentence_says_how_to_install_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bokeh", None)
    assert cli.main(["explore", str(saved(tmp_path))]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install 'scbjax[explore]'" in line


def test_bokeh_is_imported_for_a_page_alone() -> None:
    code = (
        "import sys, scbjax, scbjax.exploring.explorer\n"
        "from scbjax.cli import main\n"
        "main(['--help']); main(['explore', '--help'])\n"
        "assert not {'bokeh', 'jax', 'xarray'} & set(sys.modules), sorted(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("budget", [0, -1, True, 2.5, None])
def test_a_budget_is_a_size(budget: Any) -> None:  # noqa: ANN401
    with pytest.raises(StudyError, match="budget must be"):
        scbjax.explore(made(), budget=budget)


# ------------------------------------------------------------------------- interrupted studies

TEXT = """
title = "Under way"
[task]
num_tokens = 2
context_length = 12
sparsity = 2
[train]
batch_size = 4
steps = 40
record_every = 10
[record]
variables = ["value_distance", "attention_distance", "samples"]
final = true
truth = true
snapshots = [0, 10, 20, 30]
[axes]
seed = { range = [0, 4] }
l1 = [0.0, 1e-4]
"""


class Interrupting(SilentProgress):
    """Stops a run when it has heard so many readings."""

    def __init__(self, at: int) -> None:
        self.left = at

    def show(self, reading: Reading) -> None:  # noqa: ARG002
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(signal.SIGINT)


class InSegments(LocalEngine):
    """The local engine with a segment for every record."""

    def __init__(self) -> None:
        from scbjax.sweep.engine.chunks import Executor

        super().__init__(partial(Executor, segment_seconds=0))


@pytest.fixture(scope="module")
def plan() -> Plan:
    """A study in two chunks of two seeds."""
    from dataclasses import replace

    from scbjax.sweep.plan.plans import plan_with_layout

    study = parse_study(TEXT, "under_way")
    whole = plan_here(study)
    cut = plan_with_layout(study, [(2, 2, 2)], device_count=1)
    return replace(cut, budget=whole.budget)


@pytest.fixture(scope="module")
def complete(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> xr.Dataset:
    out = tmp_path_factory.mktemp("complete") / "under_way"
    report = run_study(plan, out, progress=SilentProgress(), engine=InSegments())
    assert report.dataset is not None
    return read_dataset(report.dataset)


@pytest.fixture(scope="module")
def interrupted(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of which the first chunk is done and the second has three of five records."""
    out = tmp_path_factory.mktemp("interrupted") / "under_way"
    report = run_study(plan, out, progress=Interrupting(9), engine=InSegments())
    assert report.dataset is None
    assert status(out).chunks_done == 1
    assert status(out).checkpoints == 1
    return out


def test_what_there_is_of_an_interrupted_study_is_what_it_will_be(
    interrupted: Path, complete: xr.Dataset
) -> None:
    part = read_partial(status(interrupted))
    done = part.records[2:].max()
    assert (part.records[:2] == 5).all()
    assert 1 < done < 5
    names = [str(name) for name in complete.data_vars]
    found = part.select(names, {})
    for name in names:
        wanted = complete[name].broadcast_like(found[name]).transpose(*found[name].dims)
        assert found[name].attrs == complete[name].attrs
        np.testing.assert_array_equal(found[name][:2], wanted[:2])
        own, late = found[name][2:].to_numpy(), wanted[2:].to_numpy()
        if name in part.plan.study.variables or name.endswith("_snapshots"):
            np.testing.assert_array_equal(own[:, :, :done], late[:, :, :done])
            assert np.isnan(own[:, :, done:]).all()
        else:
            assert np.isnan(own).all()
    some = part.select(["value_snapshots"], {"seed": np.array([3, 0]), "snapshot": np.array([1])})
    np.testing.assert_array_equal(
        some["value_snapshots"], complete["value_snapshots"].isel(seed=[3, 0], snapshot=[1])
    )


def test_an_interrupted_study_is_explored(
    interrupted: Path, complete: xr.Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["explore", str(interrupted)]) == 0
    told = capsys.readouterr()
    assert "4 of 8 trajectories are done, 4 are there up to a checkpoint" in told.err
    path = interrupted / "under_way-explore.html"
    assert told.out == f"{path}\n"
    data = written(path.read_text(encoding="utf-8"))
    meta = json.loads(data["meta"])
    assert meta["steps"] == [0, 10, 20, 30, 40]
    learned = data["arrays"][0].view(np.float16).reshape(4, 2, 5, 12, 2)
    assert close(learned[:2, :, :4], complete["attention_snapshots"].to_numpy()[:2])
    assert close(learned[:2, :, 4], complete["attention"].to_numpy()[:2])
    assert np.isnan(learned[2:, :, 4]).all()
    assert (data["records"].reshape(4, 2)[:2] == 5).all()
    assert (data["records"].reshape(4, 2)[2:] < 5).all()


def test_points_that_have_not_begun_are_no_points_to_choose(
    interrupted: Path, tmp_path: Path
) -> None:
    out = copied(interrupted, tmp_path)
    (out / "checkpoints" / "00001.npz").unlink()
    with opened_results(out) as found:
        data = gather(found, choose(found), 10**7)
    assert data.axes["seed"].tolist() == [0, 1]
    assert (data.records == 5).all()


def test_damaged_files_are_left_out_and_named(interrupted: Path, tmp_path: Path) -> None:
    out = copied(interrupted, tmp_path)
    chunk = out / "chunks" / "00000.npz"
    raw = bytearray(chunk.read_bytes())
    raw[len(raw) // 2] ^= 255
    chunk.write_bytes(raw)
    said: list[str] = []
    scbjax.explore(out, tmp_path / "page.html", say=said.append)
    assert "Damaged and left out: 00000.npz." in said
    (out / "checkpoints" / "00001.npz").write_bytes(b"no")
    with pytest.raises(StudyError, match="has no results yet"):
        scbjax.explore(out, tmp_path / "page.html")


def copied(source: Path, target: Path) -> Path:
    return Path(shutil.copytree(source, target / source.name))


def test_snapshots_may_be_a_range() -> None:
    study = parse_study(TEXT, "own", ["record.snapshots={range=[0, 41, 20]}"])
    assert study.snapshots == (0, 20, 40)
    with pytest.raises(StudyError, match=r"range of record.snapshots must be \[start, stop\]"):
        parse_study(TEXT, "own", ["record.snapshots={range=[0]}"])
    with pytest.raises(StudyError, match=r"record\.snapshots must be a list or"):
        parse_study(TEXT, "own", ["record.snapshots={from=3}"])


# --------------------------------------------------------------------------------- in a browser

CHROMIUM: Final = ("chromium", "chromium-browser", "google-chrome", "chrome")
QUIET: Final = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)
WAIT: Final = 120_000.0
"""Milliseconds: far more than a page needs on a busy machine."""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser; the test is skipped where there is none."""
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: make test-browser installs it"
    )
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, CHROMIUM)), None)
    if path is None:
        pytest.skip("there is no Chromium: install it, or name it in the variable CHROMIUM")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: Any) -> Iterator[Callable[..., Any]]:  # noqa: ANN401
    """Opens a file; at the end nothing may have gone wrong in it, and nothing been fetched."""
    wrong: list[str] = []

    def open_file(path: Path, width: int = 1200) -> Any:  # noqa: ANN401
        page = chromium.new_page(viewport={"width": width, "height": 900})
        page.set_default_timeout(WAIT)
        page.on(
            "console",
            lambda message: (
                wrong.append(message.text) if message.type in {"error", "warning"} else None
            ),
        )
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "request",
            lambda request: (
                None if request.url.startswith(("file:", "blob:")) else wrong.append(request.url)
            ),
        )
        page.goto(path.as_uri())
        page.wait_for_function("window.scbjaxExplorer !== undefined")
        settle(page)
        return page

    yield open_file
    assert not wrong


def settle(page: Any) -> None:  # noqa: ANN401
    """Waits until what was changed is drawn: Bokeh draws once a frame of the screen."""
    page.evaluate("() => new Promise(done => setTimeout(() => requestAnimationFrame(done), 300))")


def picture(page: Any, name: str) -> bytes:  # noqa: ANN401
    """A heat map or curves, as drawn."""
    settle(page)
    places = {"attention-learned": 0, "attention-truth": 1, "value-learned": 2, "value-truth": 3}
    cells = page.locator(".matrices .cell" if name in places else ".curves .cell")
    shot: bytes = cells.nth(places.get(name, 0)).screenshot()
    return shot


def drawn(page: Any, name: str) -> NDArray[np.float32]:  # noqa: ANN401
    """The numbers that a heat map draws."""
    values = page.evaluate(
        """name => {
            const picture = Bokeh.documents[0].get_model_by_name(name)
            const {glyph, data_source} = picture.renderers[0]
            return Array.from(data_source.data[glyph.fill_color.field])
        }""",
        name,
    )
    return np.array(values, np.float32)


def step(page: Any) -> int:  # noqa: ANN401
    (found,) = re.findall(r"step (\d+)", page.locator("#state").text_content())
    return int(found)


@pytest.mark.browser
def test_the_slider_changes_the_picture(tmp_path: Path, open_page: Callable[..., Any]) -> None:
    dataset = made()
    page = open_page(scbjax.explore(dataset, tmp_path / "page.html"))
    snapshots = dataset["attention_snapshots"].to_numpy()
    assert step(page) == 0
    before = {name: picture(page, name) for name in ("attention-learned", "attention-truth")}
    values, curves = picture(page, "value-learned"), picture(page, "curves")
    assert close(drawn(page, "attention-learned"), snapshots[0, 0].ravel())
    page.locator(".noUi-handle").focus()
    page.keyboard.press("ArrowRight")
    assert step(page) == 20
    assert close(drawn(page, "attention-learned"), snapshots[0, 1].ravel())
    assert picture(page, "attention-learned") != before["attention-learned"]
    assert picture(page, "attention-truth") == before["attention-truth"]
    assert picture(page, "value-learned") != values
    assert picture(page, "curves") != curves  # the cursor
    page.keyboard.press("ArrowLeft")
    assert step(page) == 0
    assert picture(page, "attention-learned") == before["attention-learned"]
    # By the mouse: the handle is drawn to the end of its bar.
    handle, bar = (page.locator(f".noUi-{part}").bounding_box() for part in ("handle", "base"))
    page.mouse.move(handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2)
    page.mouse.down()
    page.mouse.move(bar["x"] + bar["width"] + 40, handle["y"] + 5, steps=5)
    page.mouse.up()
    assert step(page) == 60
    assert close(drawn(page, "attention-learned"), snapshots[0, -1].ravel())


@pytest.mark.browser
def test_keys_work_wherever_the_focus_is(tmp_path: Path, open_page: Callable[..., Any]) -> None:
    page = open_page(scbjax.explore(made(frames=7), tmp_path / "page.html"))
    for key, wanted in (("End", 60), ("ArrowLeft", 50), ("Home", 0), ("ArrowRight", 10)):
        page.keyboard.press(key)
        assert step(page) == wanted
    page.keyboard.press(" ")
    page.wait_for_function("document.getElementById('state').textContent.includes('step 60')")
    page.get_by_role("button", name="Play").wait_for()  # it stops at the end
    page.keyboard.press(" ")  # and begins at the start again
    page.get_by_role("button", name="Stop").wait_for()
    page.keyboard.press(" ")
    page.get_by_role("button", name="Play").wait_for()
    stopped = step(page)
    assert stopped < 60
    page.wait_for_timeout(1500)
    assert step(page) == stopped


@pytest.mark.browser
def test_the_button_plays(tmp_path: Path, open_page: Callable[..., Any]) -> None:
    page = open_page(scbjax.explore(made(frames=7), tmp_path / "page.html"))
    page.get_by_role("button", name="Play").click()
    page.wait_for_function("document.getElementById('state').textContent.includes('step 60')")
    page.get_by_role("button", name="Play").wait_for()


@pytest.mark.browser
def test_another_seed_and_arm_change_the_picture(
    tmp_path: Path, open_page: Callable[..., Any]
) -> None:
    dataset = made(l1=[0.0, 1e-4])
    page = open_page(scbjax.explore(dataset, tmp_path / "page.html"))
    page.keyboard.press("End")
    first = {name: picture(page, name) for name in ("attention-truth", "curves")}
    page.locator("select").nth(0).select_option("102")
    settle(page)
    assert picture(page, "attention-truth") != first["attention-truth"]
    assert picture(page, "curves") != first["curves"]
    assert close(drawn(page, "attention-truth"), dataset["pattern"].to_numpy()[2].ravel())
    page.locator("select").nth(1).select_option("1e-4")
    settle(page)
    for name, variable in (("attention", "attention_snapshots"), ("value", "value_snapshots")):
        wanted = dataset[variable].to_numpy()[2, 1, -1]
        assert close(drawn(page, f"{name}-learned"), wanted.ravel())
    assert "seed 102, l1 1e-4" in page.locator("#state").text_content()
    assert "seed 102, l1 1e-4" in page.title()
    marks = page.evaluate(
        """() => Array.from(Bokeh.documents[0].get_model_by_name("attention-learned")
            .renderers[1].data_source.data.x)"""
    )
    assert len(marks) == 4  # two positions of each query


@pytest.mark.browser
def test_lines_across_the_curves_are_where_stages_begin(
    tmp_path: Path, open_page: Callable[..., Any]
) -> None:
    dataset = made(frames=7)
    stage = np.ones((3, dataset.sizes["step"]), np.int32)
    stage[0, 3:] = 2  # from step 30 on, or whatever the third record is
    stage[0, 5:] = 3
    dataset["stage"] = (("seed", "step"), stage)
    page = open_page(scbjax.explore(dataset, tmp_path / "page.html"))
    steps = dataset["step"].to_numpy()
    assert lines_of(page) == [steps[3], steps[5]]
    assert "stage 1" in page.locator("#state").text_content()
    page.keyboard.press("End")
    assert "stage 3" in page.locator("#state").text_content()
    with_lines = picture(page, "curves")
    page.locator("select").nth(0).select_option("101")
    settle(page)
    assert lines_of(page) == []
    assert "stage 1" in page.locator("#state").text_content()
    assert picture(page, "curves") != with_lines


def lines_of(page: Any) -> list[int]:  # noqa: ANN401
    found: list[int] = page.evaluate(
        """() => Bokeh.documents[0].get_model_by_name("curves-attention_distance")
            .renderers.filter(each => each.glyph.type == "VSpan")
            .flatMap(each => Array.from(each.data_source.data.step))"""
    )
    return found


@pytest.mark.browser
def test_a_click_on_a_curve_goes_to_that_step(
    tmp_path: Path, open_page: Callable[..., Any]
) -> None:
    page = open_page(scbjax.explore(made(frames=7), tmp_path / "page.html"))
    box = page.locator(".curves .cell").nth(0).bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + 60)
    page.wait_for_function("!document.getElementById('state').textContent.includes('step 0')")
    assert step(page) in {20, 30, 40}


@pytest.mark.browser
def test_a_page_of_an_interrupted_study_says_so(
    interrupted: Path, tmp_path: Path, open_page: Callable[..., Any]
) -> None:
    page = open_page(scbjax.explore(interrupted, tmp_path / "page.html"))
    assert not page.locator("#warning").text_content()
    page.locator("select").nth(0).select_option("3")
    settle(page)
    assert "has been computed up to step" in page.locator("#warning").text_content()
    assert np.isfinite(drawn(page, "attention-learned")).all()
    page.keyboard.press("End")
    settle(page)
    assert np.isnan(drawn(page, "attention-learned")).all()


@pytest.mark.browser
def test_a_page_fits_a_phone(tmp_path: Path, open_page: Callable[..., Any]) -> None:
    dataset = made(length=100, tokens=3, l1=[0.0, 1e-4])
    page = open_page(scbjax.explore(dataset, tmp_path / "page.html"), width=390)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
