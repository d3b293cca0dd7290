"""Stored results computed again: the same bits, any change noticed, a study from its dataset."""

import contextlib
import dataclasses
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import xarray

from scbjax import cli
from scbjax.base import StudyError
from scbjax.cli.exits import EXIT_BAD_INPUT, EXIT_DIFFERENT
from scbjax.sweep.engine import execute
from scbjax.sweep.engine.chunks import ChunkResult, Executor
from scbjax.sweep.engine.engines import LocalEngine
from scbjax.sweep.engine.execute import run_search
from scbjax.sweep.engine.progress import SilentProgress
from scbjax.sweep.plan.plans import Plan
from scbjax.sweep.results import verify as verifying
from scbjax.sweep.results.dataset import is_whole, read_dataset, save_dataset, study_of
from scbjax.sweep.results.store import Store
from scbjax.sweep.results.verify import ATOL, RTOL, Comparison, compare, compare_datasets, verify
from scbjax.sweep.study.files import load_study, parse_study

REFERENCE = Path(__file__).parent / "reference.nc"
TASK = ("transition", "stationary", "pattern")
TASK_ATOL = 8 * 2.0**-23
"""Units in the last place of a float32 that a log, an exp and a sum may round otherwise; 3 between
processors with and without fused products."""
MAGNIFIED = 10.0
"""How much farther off results may be than the task is; 2.2 between JAX 0.5.3 and 0.10.2."""
ATOL_64 = 1e-12
"""40 steps of a few hundred roundings of 1e-16, on values up to one."""


class Kept(NamedTuple):
    """The reference, computed again by the command."""

    out: Path
    status: int
    printed: list[str]
    make_executor: Callable[[Plan], Executor]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    """In three chunks of two blocks; the programs of a layout are compiled once for all tests."""
    executors: dict[object, Executor] = {}

    def make_executor(plan: Plan) -> Executor:
        return executors.setdefault(plan.layout, Executor(plan))

    out, stdout = tmp_path_factory.mktemp("kept") / "out", io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(stdout):
        patch.setattr("scbjax.cli.comparing.prepare_jax", lambda *_: None)
        patch.setattr(execute, "LocalEngine", lambda _: LocalEngine(make_executor))
        status = cli.main(["rerun", str(REFERENCE), "--out", str(out)])
    return Kept(out, status, stdout.getvalue().splitlines(), make_executor)


@pytest.fixture
def out(kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run to be altered."""
    monkeypatch.setattr(verifying, "Executor", kept.make_executor)
    monkeypatch.setattr("scbjax.cli.comparing.prepare_jax", lambda *_: None)
    shutil.copytree(kept.out, tmp_path / "out")
    return tmp_path / "out"


def test_a_reference_is_computed_again_from_its_own_attributes(kept: Kept) -> None:
    """Where the random stream changes on purpose, `scbjax rerun` makes it anew from itself.

    It is computed in float64, but tasks are drawn in float32, by functions (log, exp) that other
    versions and processors may round otherwise. How far a seed's results may be off is therefore
    told by how far its P, mu and Q are: not at all, and only rounding in float64 is left.
    """
    stored, again = read_dataset(REFERENCE), read_dataset(kept.out / "reference.nc")
    assert study_of(stored, "reference") == load_study(REFERENCE.with_suffix(".toml"))
    assert kept.status == 0
    assert kept.printed[0] == f"dataset: {kept.out}/reference.nc"
    assert kept.printed[-1] in {"the same, bit for bit", "the same within rounding"}
    assert again.attrs["layout"] == stored.attrs["layout"] == "[[2, 4, 1]]"
    assert_follows(again, stored)
    # Something is learned, and the arms differ.
    assert (stored.stage.isel(step=-1) > 1).any()
    assert abs(np.diff(stored.attention_distance.isel(step=-1), axis=-1)).max() > 0.01


def assert_follows(again: xarray.Dataset, stored: xarray.Dataset) -> None:
    """Every seed's results are as near to the stored ones as its task is."""
    for seed in stored.seed.values:
        one, other = again.sel(seed=seed), stored.sel(seed=seed)
        task = max(float(abs(one[name] - other[name]).max()) for name in TASK)
        assert task <= TASK_ATOL
        for name, values in other.data_vars.items():
            kind = "int32" if name in {"stage", "diverged_at"} else "float64"
            assert one[name].dtype == values.dtype == kind
            # The parts of a task are stored along the axes that it depends on, and were along all.
            found = one[name].broadcast_like(values).transpose(*values.dims)
            np.testing.assert_allclose(found, values, rtol=0, atol=MAGNIFIED * task + ATOL_64)


@pytest.mark.parametrize("share", [0.9, 1.1])
def test_the_reference_allows_what_its_tasks_explain(share: float) -> None:
    stored = read_dataset(REFERENCE)
    for task in (0.0, 1e-7):
        again = stored.copy(deep=True)
        again["pattern"][2, 0, 0, 0, 0] += task
        off = abs(again.pattern - stored.pattern).max().item()
        again["alpha_value"][2, 1, 1, 4] += share * (MAGNIFIED * off + ATOL_64)
        with contextlib.nullcontext() if share < 1 else pytest.raises(AssertionError):
            assert_follows(again, stored)


def alter(out: Path, change: Callable[[xarray.Dataset], None]) -> None:
    """Changes the dataset and gives it a checksum that holds."""
    path = out / "reference.nc"
    dataset = read_dataset(path)
    change(dataset)
    save_dataset(dataset, path)
    assert is_whole(path)


def nudge(name: str, place: tuple[int, ...]) -> Callable[[xarray.Dataset], None]:
    """The next number that a float can be, or the next integer."""

    def change(dataset: xarray.Dataset) -> None:
        values = dataset[name].to_numpy()
        one = np.ones((), values.dtype)
        kind = values.dtype.kind
        values[place] = np.nextafter(values[place], one) if kind == "f" else values[place] + one

    return change


def of_another_version(out: Path) -> None:
    store = Store(out)
    manifest = store.read_manifest()
    assert manifest is not None
    changed = {**manifest.provenance, "versions": "{}"}
    store.write_manifest(dataclasses.replace(manifest, provenance=changed))


def test_a_run_is_verified_by_a_part_of_it(out: Path) -> None:
    found = verify(out, count=1)
    assert found.holds
    assert found.comparison.identical
    assert (found.sampled, found.recomputed, found.total) == (1, 8, 24)
    # Five records of five variables; K_P, K_Q, |mu|^2 and diverged_at; V and A; P, mu and Q.
    assert found.comparison.variables == 5 + 4 + 2 + 3
    assert found.comparison.values == 8 * (5 * 5 + 4 + 2 * (3 * 3 + 20 * 3) + 3)
    assert found.comparison.largest_difference == 0


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("alpha_value", (5, 1, 1, 4)),
        ("batch_loss", (0, 0, 0, 1)),
        ("stage", (4, 0, 1, 1)),
        ("pattern_signal", (2, 1)),
        ("transition_signal", (4,)),
        ("transition", (5, 2, 1)),
        ("diverged_at", (3, 0, 1)),
        ("attention", (1, 1, 0, 19, 2)),
    ],
)
def test_one_bit_of_a_sampled_trajectory_is_noticed(
    out: Path, name: str, place: tuple[int, ...]
) -> None:
    alter(out, nudge(name, place))
    found = verify(out, count=24)
    assert not found.holds
    assert found.comparison.identical_values == found.comparison.values - 1
    assert found.comparison.identical_variables == found.comparison.variables - 1
    assert found.comparison.largest_in == name
    assert 0 < found.comparison.largest_difference <= 1


def test_a_copy_may_be_rounded_otherwise_and_no_more(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """K_P is stored once for all learners of a task; the first learner's is the one."""
    run = Executor.run
    added = np.zeros((), np.float64)

    def rounded(self: Executor, index: int) -> ChunkResult:
        found = run(self, index)
        signal = found.arrays["transition_signal"].copy()
        signal[:, 1:] += added  # of all learners but the first
        return dataclasses.replace(found, arrays={**found.arrays, "transition_signal": signal})

    monkeypatch.setattr(Executor, "run", rounded)
    for size, holds in ((1e-15, True), (0.01, False)):
        added = np.full((), size)
        assert verify(out, count=24).holds == holds


def test_datasets_of_older_versions_are_compared_and_verified(out: Path) -> None:
    """They have all axes throughout."""
    new, path = read_dataset(out / "reference.nc"), out / "reference.nc"
    old = new.copy()
    for name in (*TASK, "transition_signal", "pattern_signal", "stationary_norm"):
        whole = new[name].broadcast_like(new["diverged_at"])
        old[name] = whole.transpose(*new["diverged_at"].dims, ...).copy()
    assert old["pattern"].dims == ("seed", "sparsity", "optimizer", "position", "query")
    assert new["pattern"].dims == ("seed", "sparsity", "position", "query")
    for one, other in ((old, new), (new, old)):
        assert compare_datasets(study_of(one, "one"), one, other).identical
    save_dataset(old, path)
    assert verify(out, count=24).holds
    # And every entry of theirs is looked at.
    for name, place in (("pattern_signal", (2, 1, 1)), ("transition", (0, 1, 1, 2, 2))):
        save_dataset(old, path)
        alter(out, nudge(name, place))
        found = verify(out, count=24)
        assert (found.holds, found.comparison.largest_in) == (False, name)


def test_the_sample_depends_on_its_seed(out: Path) -> None:
    """A change in the last chunk is found by the draws that look there, and no others."""
    alter(out, nudge("alpha_value", (5, 1, 1, 4)))
    found = [verify(out, count=1, seed=seed).holds for seed in range(12)]
    drawn = [int(np.random.default_rng(seed).choice(24, 1)[0]) for seed in range(12)]
    assert found == [place < 16 for place in drawn]
    assert {True, False} == set(found)


def test_before_bits_are_called_different_whole_chunks_are_done(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, done = Store(out), []
    manifest = store.read_manifest()
    assert manifest is not None
    store.write_manifest(dataclasses.replace(manifest, layout=((6, 4, 1),)))
    one = np.ones(1, np.float32)

    def recompute(plan: Plan, *_: object) -> tuple[Comparison, int]:
        done.append(plan.layout)
        return compare([("a", one, one if len(done) > 1 else one + 1)]), plan.chunks[0].size

    monkeypatch.setattr(verifying, "_recompute", recompute)
    found = verify(out)
    assert done == [((2, 4, 1),), ((6, 4, 1),)]
    assert found.holds
    assert found.recomputed == 24
    of_another_version(out)  # which may round differently, so that nothing would be learned
    done.clear()
    verify(out)
    assert done == [((2, 4, 1),)]


def test_other_versions_may_round_differently_and_no_more(out: Path) -> None:
    of_another_version(out)
    assert verify(out).changed == ("versions",)
    alter(out, nudge("alpha_value", (0, 0, 0, 2)))
    found = verify(out, count=24)
    assert found.holds
    assert not found.comparison.identical

    def change(dataset: xarray.Dataset) -> None:
        dataset["alpha_value"].to_numpy()[0, 0, 0, 2] += 0.01

    alter(out, change)
    assert not verify(out, count=24).holds


def test_a_damaged_checksum_does_not_hold(out: Path) -> None:
    (out / "reference.nc.sha256").write_text("0  reference.nc\n")
    found = verify(out)
    assert found.comparison.identical
    assert found.damaged
    assert not found.holds


def test_what_cant_be_verified_is_one_sentence(out: Path, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="holds no results"):
        verify(tmp_path)
    alter(out, lambda dataset: dataset.attrs.update(fingerprint=64 * "0"))
    with pytest.raises(StudyError, match=r"reference\.nc is not the dataset of the study in"):
        verify(out)
    store = Store(out)
    manifest = store.read_manifest()
    assert manifest is not None
    store.write_manifest(dataclasses.replace(manifest, fingerprint=64 * "0"))
    with pytest.raises(StudyError, match="has another fingerprint than its study"):
        verify(out)
    (out / "reference.nc").unlink()
    with pytest.raises(StudyError, match="has no dataset yet"):
        verify(out)


def test_comparisons_count_bits() -> None:
    """Against values that are spelt out: NaN is NaN, and zeros have signs."""
    inf, nan = np.inf, np.nan
    stored = np.array([nan, 0.0, 1.0, inf, 2.0, 1.0], np.float32)
    again = np.array([nan, -0.0, 1.0, inf, nan, 1.5], np.float32)
    found = compare([("a", stored, again), ("b", np.arange(3), np.arange(3))])
    assert (found.values, found.identical_values) == (9, 6)
    assert (found.variables, found.identical_variables) == (2, 1)
    assert (found.largest_difference, found.largest_in) == (0.5, "a")
    assert not found.close


@pytest.mark.parametrize(
    ("stored", "again", "close"),
    [
        (1.0, 1.0 + 0.9 * (ATOL + RTOL), True),
        (1.0, 1.0 + 1.1 * (ATOL + RTOL), False),
        (0.0, 0.9 * ATOL, True),
        (0.0, 1.1 * ATOL, False),
        (1.0, np.nan, False),
        (np.inf, 1.0, False),
        (np.inf, -np.inf, False),
        (7, 8, True),
        (7, 9, False),
    ],
)
def test_close_is_within_both_tolerances(stored: float, again: float, close: bool) -> None:
    assert compare([("a", np.array([stored]), np.array([again]))]).close is close


def test_another_shape_or_type_is_different() -> None:
    a = np.ones(3)
    for other in (np.ones(4), np.ones(3, np.float32)):
        found = compare([("a", a, other)])
        assert (found.identical_values, found.close) == (0, False)


# ---------------------------------------------------------------------------------- the commands


def test_the_command_verifies(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify", str(out), "--count", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        "study", "drawn", "computed again", "variables", "values", "largest difference",
        "the same, bit for bit",
    ]  # fmt: skip
    assert " ".join(lines[1].split()) == "drawn 1 of 24 trajectories"
    assert " ".join(lines[2].split()) == "computed again 8 trajectories, in whole blocks"
    alter(out, nudge("alpha_value", (5, 1, 1, 4)))
    assert cli.main(["verify", str(out), "--count", "24", "--seed", "3"]) == EXIT_DIFFERENT
    printed = capsys.readouterr().out
    assert printed.endswith("not the same results\n")
    assert "largest difference" in printed
    assert "13 of 14 bit-identical" in printed


def rewritten(path: Path, attributes: dict[str, str]) -> Path:
    """The reference with other attributes."""
    save_dataset(read_dataset(REFERENCE).assign_attrs(attributes), path)
    return path


def test_what_cant_be_run_again_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scbjax.cli.comparing.prepare_jax", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    text = tmp_path / "text.nc"
    text.write_text("no dataset")
    changes: dict[str, dict[str, str]] = {
        "a study's name": {"name": "../x"},
        "num_tokens is missing": {"study": "[task]"},
        "layout of": {"layout": "[[1, 1]]"},
        "3, 4, 2 does not fit the study": {"layout": "[[3, 4, 2]]"},
        "2, 4, 0 does not fit the study": {"layout": "[[2, 4, 0]]"},
        "holds the dataset itself": {},
    }
    cases = {"missing.nc is missing": ["missing.nc"], "can't be read as a dataset": [str(text)]}
    for number, (part, attributes) in enumerate(changes.items()):
        path = rewritten(tmp_path / str(number) / "reference.nc", attributes)
        cases[part] = [str(path)] if attributes else [str(path), "--out", str(path.parent)]
    for part, arguments in cases.items():
        assert cli.main(["rerun", *arguments]) == EXIT_BAD_INPUT
        printed = capsys.readouterr().err.splitlines()[-1]
        assert printed.startswith("scbjax: ")
        assert part in printed
    assert not (tmp_path / "results").exists()


SEARCH = """
[task]
num_tokens = 2
context_length = 6
sparsity = 1
[train]
batch_size = 4
steps = 4
record_every = 2
[record]
variables = ["rounded_attention_distance", "stage", "samples"]
[search]
field = "learning_rate_1"
first = 0.01
last = 1.0
points = 3
rounds = 2
[axes]
seed = [0, 1]
"""


@pytest.mark.slow
def test_a_search_is_run_again_from_its_dataset(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scbjax.cli.comparing.prepare_jax", lambda *_: None)
    study = parse_study(SEARCH, "tiny")
    found = run_search(study, tmp_path / "first", create_progress=SilentProgress)
    again = ["rerun", str(found.dataset), "--out", str(tmp_path / "again")]
    assert cli.main(again) == 0
    assert "the same, bit for bit" in capsys.readouterr().out
    assert cli.main(["verify", str(tmp_path / "first")]) == EXIT_BAD_INPUT
    assert "holds a search" in capsys.readouterr().err
    assert cli.main(["verify", str(tmp_path / "first" / "cell-0" / "round-1")]) == 0
