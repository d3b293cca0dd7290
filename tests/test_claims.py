"""Claims are checked on new tasks, can fail, and are those that the documents state."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import xarray as xr
from scipy.stats import binomtest

from scbjax.sweep.study.files import load_study

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "sweeps" / "claims"))
sys.path.insert(0, str(ROOT / "tests" / "figures"))

import check  # noqa: E402
import made  # noqa: E402
from _numbers import Table, ranged, worded  # noqa: E402
from check import Claim  # noqa: E402
from multihead import TRUTHS  # noqa: E402

PAPER = {"geometry": "paper"}


def study(found: int, runs: int = 32) -> xr.Dataset:
    """A study of two arms; in the second, so many runs are found and the others are mirrored."""
    near = np.arange(runs)[:, None] < np.array([runs, found])
    sign = np.where(near, 1.0, -1.0)
    ends = {
        "rounded_value_distance": np.where(near, 0.01, 0.5),
        "rounded_attention_distance": np.where(near, 0.02, 0.9),
        "attention_distance": np.where(near, 0.1, 1.0) + 0.01 * np.arange(runs)[:, None],
        "alpha_value": 0.3 * sign,
        "alpha_attention": 0.2 * sign,
    }
    dims = ("seed", "geometry", "step")
    return xr.Dataset(
        {name: (dims, np.stack([0 * end, end], axis=-1)) for name, end in ends.items()},
        coords={"seed": np.arange(runs), "geometry": ["mu", "paper"], "step": [0, 1000]},
    )


def claim(
    measure: str, low: float, high: float, variable: str = "", where: Mapping[str, object] = PAPER
) -> Claim:
    return Claim("made", "a claim", measure, low, high, where, variable=variable)


def test_shares_are_counted_at_the_end() -> None:
    data = study(9)
    for measure, hits in (("found", 9), ("mirrored", 23), ("recovered", 9)):
        low, high = binomtest(hits, 32).proportion_ci(0.95, method="wilson")
        estimate = check.judge(claim(measure, 0, 1), data).found
        assert estimate == pytest.approx((hits / 32, low, high))


def test_quantiles_levels_and_comparisons_are_those_of_the_runs() -> None:
    data = study(32)
    ends = 0.1 + 0.01 * np.arange(32)
    drawn = check.judge(claim("quantile", 0, 1, variable="attention_distance"), data).found
    assert drawn[0] == pytest.approx(np.median(ends))
    assert drawn[1:] == pytest.approx((ends[9], ends[22]))
    below = replace(claim("below", 0, 1, "attention_distance"), level=0.2)
    assert check.judge(below, data).found[0] == pytest.approx((ends < 0.2 - 1e-9).mean(), abs=0.04)
    nearer = claim("nearer", 0, 1, "attention_distance", {"geometry": "mu"})
    nearer = replace(nearer, than=PAPER)
    assert check.judge(nearer, study(20)).found[0] == pytest.approx(12 / 32)
    # The size is what counts, and a step may be named.
    size = replace(claim("quantile", 0, 1, "alpha_value"), step=0)
    assert check.judge(size, data).found[0] == 0
    assert check.judge(replace(size, step=None), study(0)).found[0] == pytest.approx(0.3)


def growing() -> xr.Dataset:
    """A transfer that takes 1000 samples at T = 1000, and twice as many at T = 4000."""
    step = np.arange(6) * 500
    need = np.array([1000, 2000])[:, None, None]
    distance = np.where(np.broadcast_to(step, (2, 20, 6)) >= need, 0.01, 0.5)
    names = ("rounded_attention_distance", "rounded_value_distance")
    dims = ("arm", "seed", "step")
    return xr.Dataset(
        {**dict.fromkeys(names, (dims, distance)), "samples": (dims, 0 * distance + step)},
        coords={
            "context_length": ("arm", [1000, 4000]),
            "start": ("arm", ["transfer"] * 2),
            "optimizer": ("arm", ["proximal"] * 2),
            "flip": ("arm", [True, True]),
            "seed": np.arange(20),
            "step": step,
        },
    )


def test_the_power_is_that_of_a_way_to_train() -> None:
    way = {"way": "transfer"}
    power = check.judge(claim("power", 0, 1, where=way), growing()).found
    assert power == pytest.approx((0.5, 0.5, 0.5))
    with pytest.raises(ValueError, match="has no way 'from scratch', but transfer"):
        check.judge(claim("power", 0, 1, where={"way": "from scratch"}), growing())


def test_the_cosine_to_the_linear_map_is_that_of_the_attention_at_the_end() -> None:
    """With mu = (0.8, 0.2): the angle of (1, t) and (1, 0) has the cosine 1 / sqrt(1 + t^2 / 4)."""
    angles = np.array([0.1, 0.2, 0.3])
    attention = np.zeros((3, 2, 1, 2))
    attention[..., 0] = 1
    attention[:, 1, 0, 1] = angles
    dims = ("seed", "arm", "position", "query")
    data = xr.Dataset(
        {
            "attention": (dims, attention),
            "stationary": (("seed", "token_in"), np.tile([0.8, 0.2], (3, 1))),
            "alpha_value": (("seed", "arm", "step"), np.ones((3, 2, 2))),
        },
        coords={
            "seed": np.arange(3),
            "attention_map": ("arm", ["linear", "softmax"]),
            "optimizer": ("arm", ["proximal", "adam"]),
            "step": [0, 100],
        },
    )
    stated = claim("quantile", 0, 1, "cosine_to_linear", {"attention_map": "softmax"})
    expected = 1 / np.sqrt(1 + angles**2 / 4)
    assert check.judge(stated, data).found[0] == pytest.approx(expected[1])
    above = replace(stated, measure="above", level=expected[1] - 1e-6)
    assert check.judge(above, data).found[0] == pytest.approx(2 / 3)


def test_a_study_is_run_with_the_seeds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(subprocess, "run", lambda command, **_: commands.append(list(command)))
    for small in (False, True):
        check.run_study("transfer", range(9900, 9932), tmp_path, small=small)
    assert ["--small" in command for command in commands] == [False, True]
    assert all("axes.seed={ range = [9900, 9932] }" in command for command in commands)


def test_the_power_of_a_search_is_that_of_its_figure() -> None:
    """Samples of 100 T^1.5 at the best of three rates, on tasks that all need the same."""
    lengths = np.array([125, 250, 500])
    samples = 100.0 * lengths[:, None, None] ** 1.5 * np.ones((1, 8, 3)) * [2.0, 1.0, np.inf]
    data = xr.Dataset(
        {"samples_to_goal": (("context_length", "seed", "probe"), samples)},
        coords={"context_length": lengths},
        attrs={"settings": json.dumps({"train.batch_size": 32, "search.share": 0.9})},
    )
    found = check.judge(Claim("made", "a claim", "power", 1.4, 1.6), data)
    assert found.holds
    assert found.found.value == pytest.approx(1.5)


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> Claim:
    """A claim about a row of a table that a study's figure prints."""
    rows = [("plain", 1000, 0.25, 0.125, 0.5), ("plain", 2000, 0.75, 0.5, 1.0)]
    table = Table("Shares of 32 runs", ("way", "T", *ranged("share")), rows)
    other = Table("Powers", ("way", *ranged("power")), [("plain", 2, 1, 3)])
    words = Table("Ranks", ("way", *ranged("power")), [("plain", "later", "later", "later")])
    figure = SimpleNamespace(tables=lambda _: [table, other, words])
    monkeypatch.setitem(sys.modules, "made_up", figure)
    where = {"way": "plain", "T": 2000}
    return Claim("made_up", "a claim", "tabled", 0.9, 1, where, variable="share", table="Shares of")


def test_a_number_of_a_table_is_found_by_its_row_and_column(printed: Claim) -> None:
    verdict = check.judge(printed, study(9))
    assert verdict.found == (0.75, 0.5, 1.0)
    assert verdict.holds
    assert not check.judge(replace(printed, low=1.01, high=1.1), study(9)).holds


def test_what_a_table_leaves_out_does_not_hold(printed: Claim) -> None:
    """A row that is not there, and a word in the place of a number."""
    missing = check.judge(replace(printed, low=-np.inf, high=np.inf, where={"T": 3}), study(9))
    assert np.isnan(missing.found).all()
    assert not missing.holds
    word = replace(printed, where={"way": "plain"}, variable="power", table="Ranks")
    assert np.isnan(check.judge(word, study(9)).found.value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"table": "Sizes"}, "0 tables of made_up begin with 'Sizes'"),
        ({"table": ""}, "3 tables of made_up begin with ''"),
        ({"variable": "shares"}, "has no column 'shares'"),
        ({"where": {"L": 1}}, "has no column 'L'"),
        ({"where": {"way": "plain"}}, "2 rows of 'Shares of' are {'way': 'plain'}, not one"),
    ],
)
def test_a_row_and_a_column_have_to_be_there(
    printed: Claim, change: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        check.judge(replace(printed, **change), study(9))


def test_an_arm_has_to_be_one() -> None:
    with pytest.raises(ValueError, match="2 arms of made"):
        check.judge(claim("found", 0, 1, where={}), study(9))
    with pytest.raises(ValueError, match="0 arms of made"):
        check.judge(claim("found", 0, 1, where={"geometry": "other"}), study(9))


def test_a_claim_holds_where_its_interval_meets_that_of_the_new_tasks() -> None:
    # Of 9 in 32, Wilson's interval is 0.156 to 0.454.
    assert check.judge(claim("found", 0.31, 0.64), study(9)).holds
    assert not check.judge(claim("found", 0.46, 0.64), study(9)).holds
    assert not check.judge(claim("found", 0.0, 0.15), study(9)).holds
    nothing = study(9).where(False)
    assert not check.judge(claim("quantile", 0, 1, variable="alpha_value"), nothing).holds


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> list[Claim]:
    """The claims of a command that finds its studies run: those of the list, which may be false."""
    listed: list[Claim] = []

    def run(name: str, seeds: range, out: Path, *, small: bool) -> Path:
        assert (name, seeds, small) == ("made", range(9900, 9932), False)
        out.mkdir(parents=True)
        study(9).to_netcdf(out / "made.nc", engine="h5netcdf")
        return out / "made.nc"

    monkeypatch.setattr(check, "read_claims", lambda: listed)
    monkeypatch.setattr(check, "run_study", run)
    return listed


def test_the_command_fails_with_a_false_claim_and_not_with_true_ones(
    planted: list[Claim], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planted.append(claim("found", 0.2, 0.4))
    assert check.main(["9900:9932", "--results", str(tmp_path / "true")]) == 0
    assert "1 of 1 claims hold" in capsys.readouterr().out
    planted.append(claim("mirrored", 0.0, 0.1))
    assert check.main(["9900:9932", "--results", str(tmp_path / "false")]) == 1
    said = capsys.readouterr().out
    assert "holds  made: a claim\n       stated 0.2 to 0.4; came out 0.2812 (0.1556 to" in said
    assert "FAILS  made: a claim\n       stated 0 to 0.1; came out 0.7188" in said
    assert "1 of 2 claims hold" in said


@pytest.mark.parametrize(
    ("seeds", "sentence"),
    [
        ("9900", "SEEDS must be first:last"),
        ("9:3", "SEEDS must be first:last"),
        ("a:b", "SEEDS must be first:last"),
        ("390:410", "seeds 390 to 399 have been used before"),
        ("6500:6600", "seeds 6500 to 6511 have been used before"),
    ],
)
def test_seeds_are_new_or_refused(
    seeds: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check.main([seeds]) == 2
    assert sentence in capsys.readouterr().err


def test_a_study_without_claims_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main(["9900:9932", "spasity"]) == 2
    said = "no claim is about a study 'spasity'; did you mean 'sparsity'?"
    assert said in capsys.readouterr().err


def test_seeds_of_studies_count_as_used() -> None:
    used = {seed for seeds in check.used_seeds() for seed in seeds}
    for path in sorted((ROOT / "sweeps").glob("*.toml")):
        axes = {axis.name: axis for axis in load_study(path).axes}
        points = axes["seed"].values if "seed" in axes else ()
        assert {int(seed) for (seed,) in points} <= used, path.name


# ------------------------------------------------------------------------- stated in the documents


def flat(text: str) -> str:
    return " ".join(text.split())


def documents() -> str:
    names = ("REPRODUCTION.md", "README.md")
    return flat("".join((ROOT / name).read_text("utf-8") for name in names))


def interval_in(text: str) -> tuple[list[float], list[float]]:
    """The interval at the end of a text, as numbers, and half a unit of the last digit of each."""
    *ends, percent = re.findall(r"(-?[\d.]+) to (-?[\d.]+)(%?)", text)[-1]
    scale = 0.01 if percent else 1.0
    halves = [0.5 * scale * 10.0 ** -len(number.partition(".")[2]) for number in ends]
    return [scale * float(number) for number in ends], halves


def problems(claim: Claim, text: str) -> list[str]:
    """What is wrong with a claim, as it is stated in the documents."""
    stated = flat(claim.text)
    found = [] if stated in text else [f"{stated} is not in the documents"]
    if " to " in stated and claim.measure != "below":
        ends, halves = interval_in(stated)
        if (np.abs(np.subtract(ends, claim.stated)) > 1.01 * np.array(halves)).any():
            found.append(f"{stated} is not {claim.low} to {claim.high}")
    return found


def test_claims_are_stated_in_the_documents_with_their_intervals() -> None:
    text = documents()
    claims = check.read_claims()
    assert len(claims) > 20
    assert [found for entry in claims for found in problems(entry, text)] == []


def test_a_claim_that_is_stated_otherwise_is_noticed() -> None:
    text, (first, *_) = documents(), check.read_claims()
    assert problems(replace(first, low=first.low + 0.02), text)
    assert problems(replace(first, text=first.text.replace("15", "16")), text)


def rows_of_numbers(study: str, table: str) -> list[dict[str, str]]:
    """The rows of a table of docs/numbers.md, cell by cell."""
    page = (ROOT / "docs" / "numbers.md").read_text("utf-8")
    section = page.partition(f"\n## {study}\n")[2].partition("\n## ")[0]
    (found,) = (part for part in section.split("\n**")[1:] if part.startswith(table))
    lines = [line.strip("|") for line in found.splitlines() if line.startswith("| ")]
    head, *rows = [[cell.strip() for cell in line.split("|")] for line in lines]
    return [dict(zip(reversed(head), reversed(row), strict=True)) for row in rows]


def test_intervals_of_tables_are_those_of_the_numbers_behind_the_figures() -> None:
    for entry in check.read_claims():
        if entry.measure == "tabled":
            rows = rows_of_numbers(entry.study, entry.table)
            told = {name: worded(value) for name, value in entry.where.items()}
            (row,) = (row for row in rows if told.items() <= row.items())
            cells = [float(row[name]) for name in ranged(entry.variable)[1:]]
            assert list(entry.stated) == cells, entry.text


# What stands between brackets in REPRODUCTION.md and is no claim, with the reason.
NOT_CHECKED = {
    "0.13 to 0.31": "is said of all T together, and no one row of the table has it",
    "2.9 to 13.1": "samples of stage 1 at one T, of which the power is a claim",
    "25 to 377": "the same as printed",
    "0.96 to 1": "pairs beyond an overlap that is itself read off the tasks",
    "0 to 0.14": "the same below it",
    "0.040 to 0.048": "at a threshold in units of a noise that differs from task to task",
    "0.039 to 0.043": "the same for middle queries",
    "0.048 to 0.055": "the same for frequent queries",
    "0.239 to 0.336": "of one real sequence, of which there are no others to draw",
    "0.726 to 0.892": "the same",
    "0.547 to 0.768": "the same",
    "7.1 to 16": "a prediction",
    "64 to 1024": "sizes",
}


def test_every_interval_of_the_rows_is_a_claim_or_is_named_here_with_a_reason() -> None:
    known = [flat(entry.text) for entry in check.read_claims()]
    page = (ROOT / "REPRODUCTION.md").read_text("utf-8").partition("\n## Misprints")[0]
    stated = re.findall(r"-?[\d.]+ to -?[\d.]+%?(?=[);])", flat(page))
    assert len(stated) > 150
    left = [text for text in stated if not any(f"({text}" in claim for claim in known)]
    assert set(left) == set(NOT_CHECKED)


def test_datasets_are_read_as_figures_read_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a task is, is stored along the axes that it depends on, and wanted along all."""
    stored = made.multihead()
    assert all("heads" not in stored[name].dims for name in TRUTHS)
    stored.to_netcdf(tmp_path / "multihead.nc", engine="h5netcdf")
    monkeypatch.setattr(check, "run_study", lambda *_, **__: tmp_path / "multihead.nc")
    assert check.main(["9900:9916", "multihead", "--results", str(tmp_path)]) in (0, 1)
    assert "claims hold" in capsys.readouterr().out


def test_every_measure_is_known_and_used() -> None:
    assert {entry.measure for entry in check.read_claims()} == set(check.MEASURES)


@pytest.mark.slow
def test_claims_need_not_hold_for_small_studies(tmp_path: Path) -> None:
    """The whole way, with real runs: the gain of the projector at T = 100 is not that of 5000."""
    arguments = ["9900:9916", "projector_tasks", "--small", "--results", str(tmp_path)]
    assert check.main(arguments) == 1
