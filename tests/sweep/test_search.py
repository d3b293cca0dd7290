"""Searches: the values of each round, what a value costs, resumed and finished searches."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, strategies as st

import scbjax
from scbjax.base import Experiment, Parameter, SearchRules, StudyError
from scbjax.parameters import PRETRAINING_FITS
from scbjax.sweep.engine.execute import run_search
from scbjax.sweep.engine.progress import SilentProgress
from scbjax.sweep.search import (
    cost_of,
    first_values,
    next_values,
    samples_to,
    search,
)
from scbjax.sweep.study.cells import cells_of
from scbjax.sweep.study.files import Study, parse_study

TEXT = """
[task]
num_tokens = 3
sparsity = 1

[train]
steps = 32
record_every = 4

[record]
variables = ["alpha_value", "rounded_attention_distance", "stage", "samples"]

[search]
field = "learning_rate_1"
first = 0.01
last = 1.0
points = 4
rounds = 4
growth = 2.0

[axes]
seed = [3, 1, 2]
context_length = [20, 40]
batch_size = [4, 8, 16]
"""
BEST = 0.3


def make(overrides: list[str] | None = None) -> Study:
    """The search that the tests look at."""
    return parse_study(TEXT, "tiny", overrides or [])


def pretend(study: Study, _: Path) -> xr.Dataset:
    """What a run would give if the samples needed grew with the distance from the best value."""
    (axis,) = [axis for axis in study.axes if axis.name == "learning_rate_1"]
    values = np.array([row[0] for row in axis.values])
    every = study.base["train.record_every"] * study.base["train.batch_size"]
    records = study.base["train.steps"] // study.base["train.record_every"]
    samples = np.broadcast_to(every * np.arange(records + 1), (3, len(values), records + 1))
    needed = np.abs(np.log(values / BEST)) * records * every
    reached = samples >= needed[:, None]
    dims = ("seed", "learning_rate_1", "step")
    return xr.Dataset(
        {
            "samples": (dims, samples),
            "rounded_attention_distance": (dims, np.where(reached, 0.01, 1.0)),
            "stage": (dims, np.where(samples > 0, 2, 1)),
        }
    )


def test_cells_keep_the_samples_and_the_records() -> None:
    """Samples grow as the power of T asked for, whatever the batch size; records stay as many."""
    study = make()
    cells = list(cells_of(study))
    assert len(cells) == 6
    for cell in cells:
        base = cell.study.base
        grown = (base["task.context_length"] / 20) ** 2
        assert base["train.steps"] * base["train.batch_size"] == 32 * 4 * grown
        assert base["train.steps"] // base["train.record_every"] == 8
        assert [axis.name for axis in cell.study.axes] == ["seed"]
        assert base["search.field"] is None


@given(
    best=st.floats(-4.0, 0.0),
    points=st.integers(3, 8),
    low=st.floats(-4.0, -2.5),
    high=st.floats(-1.5, 0.0),
)
def test_rounds_close_in_on_the_best_value(
    best: float, points: int, low: float, high: float
) -> None:
    """With a cost that grows away from one value, the gap around it shrinks, even from outside."""
    tried = list(first_values(10**low, 10**high, points))
    first_gap = (high - low) / (points - 1)
    # From outside a round comes nearer by half a gap at least.
    outside = max(low - best, best - high, 0.0)
    for _ in range(8 + math.ceil(2 * outside / first_gap)):
        costs = [abs(math.log10(value) - best) for value in tried]
        tried += next_values(tried, costs, points)
    nearest = min(abs(math.log10(value) - best) for value in tried)
    assert nearest < 0.05 * first_gap


def test_where_nothing_reached_the_goal_the_gaps_are_looked_through() -> None:
    """New values lie in the middle of the gaps, and no value is tried twice."""
    tried = [0.01, 0.1, 1.0]
    new = next_values(tried, [math.inf] * 3, 4)
    assert len(set(new) | set(tried)) == 7
    assert min(new) > 0.01
    assert max(new) < 1.0
    middles = np.sqrt([0.01 * 0.1, 0.1 * 1.0])
    assert all(np.isclose(new, middle, rtol=0.05).any() for middle in middles)


def test_the_cost_is_an_order_statistic() -> None:
    """Against counting: the smallest number of samples by which the share has reached the goal."""
    rng = np.random.default_rng(0)
    samples = np.where(rng.random((20, 5)) < 0.2, np.inf, rng.integers(1, 50, (20, 5)))
    for share in (0.05, 0.5, 0.9, 1.0):
        found = cost_of(samples, share)
        for column, cost in zip(samples.T, found, strict=True):
            counted = [s for s in column if np.mean(column <= s) >= share - 1e-12]
            assert cost == min(counted)


def test_samples_to_the_first_record_that_has_reached() -> None:
    """Later records don't count, and a run that never gets there needs infinitely many."""
    samples = np.array([[0.0, 10.0, 20.0], [0.0, 10.0, 20.0]])
    reached = np.array([[False, True, False], [False, False, False]])
    assert samples_to(samples, reached).tolist() == [10.0, np.inf]


def test_a_goal_may_rise_to_its_level(tmp_path: Path) -> None:
    """Turned around, what falls below 0.1 rises above -0.1 at the same record."""
    study = make(["search.goal=alpha_value", "search.direction=rises", "search.level=0.5"])

    def turned(study: Study, out: Path) -> xr.Dataset:
        dataset = pretend(study, out)
        return dataset.assign(alpha_value=1.0 - dataset["rounded_attention_distance"])

    found, falling = search(study, tmp_path, turned), search(make(), tmp_path, pretend)
    xr.testing.assert_equal(found["samples_to_goal"], falling["samples_to_goal"])
    assert found["samples_to_goal"].attrs["long_name"] == "samples until alpha_value >= 0.5"
    never = make(["search.goal=alpha_value", "search.direction=falls", "search.level=0.0"])
    first = search(never, tmp_path, turned)["samples_to_goal"]
    assert set(np.unique(first)) == {0.0}


def test_a_search_finds_the_best_value_in_every_cell(tmp_path: Path) -> None:
    """Its dataset holds every value tried, and the samples of every seed."""
    found = search(make(), tmp_path, pretend)
    assert dict(found.sizes) == {"seed": 3, "context_length": 2, "batch_size": 3, "probe": 16}
    costs = found["samples_to_goal"].max("seed")
    best = found["learning_rate_1"].isel(probe=costs.argmin("probe"))
    assert (abs(np.log(best / BEST)) < 0.15).all()
    assert (found["samples_to_switch"] > 0).all()


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("search.field=batch_size", "search.field"),
        ("search.field=sparsity", "search.field"),
        ("search.field=learning_rte_1", "search.field: .*did you mean 'learning_rate_1'"),
        ("search.field=search.first", "search.field"),
        ("search.goal=exces_loss", "search.goal can't hold .* mean 'excess_loss'"),
        ("search.points=2", "search.points must be an integer from 3 to 64, got 2"),
        ("context_length=20 record.snapshots=[4]", "record.snapshots"),
        (
            "search.growth=1.0 start=pretrained pretraining_steps=100",
            "pretraining_steps = 100 is not a multiple .* = 8, which .* task.context_length = 40",
        ),
        ("search.first=2.0", "search.first"),
        ("search.goal=excess_loss", "excess_loss"),
        ("axes.learning_rate_1=[0.1]", "learning_rate_1"),
        ("search.growth=4.0", None),
    ],
)
def test_a_search_that_does_not_fit_together_is_one_sentence(
    override: str, named: str | None
) -> None:
    """The sentence names the field; a search that fits passes."""
    if named is None:
        assert make([override]).base["search.growth"] == 4.0
        return
    with pytest.raises(StudyError, match=named) as error:
        make(override.split())
    assert "\n" not in str(error.value)


def test_a_range_without_a_field_is_no_ordinary_study() -> None:
    with pytest.raises(StudyError, match=r"search.first = 0.01 needs a search.field"):
        parse_study(TEXT.replace('field = "learning_rate_1"', ""), "tiny")


def test_the_field_of_a_search_may_be_a_dotted_path() -> None:
    assert make(["search.field=train.l1"]).base["search.field"] == "train.l1"


def test_a_real_search_runs_stops_and_goes_on(tmp_path: Path) -> None:
    """Rounds that are done are not run again, and other settings are refused."""
    study = make(["context_length=20", "batch_size=8", "search.rounds=2", "search.points=3"])
    first = run_search(study, tmp_path, create_progress=SilentProgress)
    assert first.dataset is not None
    with xr.open_dataset(first.dataset) as found:
        assert found.sizes == {"seed": 3, "probe": 6}
        before = found.load()
    first.dataset.unlink()
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("cell-*/round-*/*.nc")}
    again = run_search(study, tmp_path, create_progress=SilentProgress)
    assert written == {path: path.stat().st_mtime_ns for path in written}
    assert again.dataset is not None
    with xr.open_dataset(again.dataset) as found:
        assert before.equals(found.load())
    assert run_search(study, tmp_path, create_progress=SilentProgress).already_complete
    other = replace(study, base=MappingProxyType({**study.base, "search.share": 0.5}))
    with pytest.raises(StudyError, match="other settings"):
        run_search(other, tmp_path, create_progress=SilentProgress)


RULES = SearchRules(
    size="data.context_length",
    batch_size="train.batch_size",
    samples="samples",
    stage="stage",
    goal="attention_distance",
)


def own_experiment(rules: SearchRules | None = RULES) -> Experiment:
    """A learner made of parts, which has no line of the paper's experiment in it."""
    length = Parameter("data.context_length", int, 20, "static", "outer", "Context length")
    rate = Parameter("train.rate", float, 0.1, "traced", "inner", "Rate of A")
    stages = [
        scbjax.Stage("first", rates=0.0, is_over=lambda view: view.state.step >= 40),
        scbjax.Stage("second", rates=1.0),
    ]

    def source(static: Mapping[str, Any]) -> scbjax.Source:
        return scbjax.scb_source(num_tokens=3, context_length=static["context_length"], sparsity=1)

    def make(source: scbjax.Source, _: object, **given: Any) -> scbjax.Learner:  # noqa: ANN401
        def optimizer(_: object, values: Any, share: Any) -> Any:  # noqa: ANN401 - of optax
            return scbjax.raw_sgd(0.3, share * values["rate"])

        return scbjax.learner(
            source, scbjax.linear_transformer(), optimizer, stages=stages, **given
        )

    return scbjax.learning(
        "own",
        source,
        make,
        record=("attention_distance", "samples", "stage"),
        parameters=(length, rate),
        search=rules,
    )


OWN = """
[train]
steps = 200
record_every = 20
batch_size = 32
[search]
field = "rate"
first = 0.3
last = 30.0
points = 3
rounds = 2
level = 0.5
share = 1.0
[axes]
seed = [0, 1]
"""


@pytest.mark.slow
def test_a_search_runs_an_experiment_of_ones_own(tmp_path: Path) -> None:
    """What it finds is what ordinary sweeps over the values it tried give, counted by hand."""
    own = own_experiment()
    study = parse_study(OWN, "own", experiments=[own])
    report = run_search(study, tmp_path / "out", create_progress=SilentProgress)
    assert report.dataset is not None
    with xr.open_dataset(report.dataset) as dataset:
        found = dataset.load()
    tried = found["rate"].to_numpy().tolist()
    assert tried[:3] == [0.3, 3.0, 30.0]
    assert len(set(tried)) == 6
    runs = scbjax.sweep.run(
        own,
        set={"steps": 200, "record_every": 20, "batch_size": 32},
        axes={"seed": [0, 1], "rate": sorted(tried)},
        progress=False,
    )
    some = False
    for seed in (0, 1):
        for probe, rate in enumerate(tried):
            run = runs.sel(seed=seed, rate=rate, method="nearest")
            samples = run["samples"].to_numpy()
            reached = [
                n for n, d in zip(samples, run["attention_distance"], strict=True) if d <= 0.5
            ]
            counted = min(reached, default=math.inf)
            assert found["samples_to_goal"].sel(seed=seed).isel(probe=probe) == counted
            assert found["samples_to_switch"].sel(seed=seed).isel(probe=probe) == 40 * 32
            some |= math.isfinite(counted)
    assert some


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"size": "data.length"}, "the parameter 'data.length', .* mean 'data.context_length'"),
        ({"fit": (PRETRAINING_FITS,)}, "name the parameter .transfer.pretraining_steps., which it"),
        ({"stage": "stag"}, "the variable 'stag', which it does not have; did you mean 'stage'"),
        ({"goal": "loss"}, "search rules of experiment 'own' name the variable 'loss'"),
    ],
)
def test_rules_that_name_what_is_not_there_are_one_sentence(
    changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(StudyError, match=sentence):
        own_experiment(RULES._replace(**changes))


def test_without_rules_there_is_no_search() -> None:
    with pytest.raises(StudyError, match=r"search.field has no meaning for experiment 'own'"):
        parse_study(OWN, "own", experiments=[own_experiment(None)])
