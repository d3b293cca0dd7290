"""The figure of adaptive sparsity: what it reads of a dataset whose numbers are known."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import made
import numpy as np
import pytest
import xarray as xr
from _estimates import share_interval
from matplotlib.figure import Figure
from matplotlib.text import Text

script = importlib.import_module("adaptive")
ONE, EACH, PATH, PLAIN = script.ONE, script.EACH, script.PATH, script.PLAIN


@pytest.fixture(scope="module")
def data() -> xr.Dataset:
    return made.adaptive()


def test_learners_are_told_apart_and_given_their_best_threshold(data: xr.Dataset) -> None:
    learners = {own.kind: own for own in script.learners_of(script.arranged(data))}
    assert set(learners) == set(script.LOOKS)
    one, each = learners[ONE], learners[EACH]
    assert one.label == "one λ, the best of 2"
    assert one.level.tolist() == [3.0, 6.0]
    assert one.recovered.mean(axis=1).tolist() == [0.0, 1.0]
    assert np.isinf(one.first[0]).all()
    assert each.samples.tolist() == [512 * 40, 1024 * 40]
    assert each.recovered.all()
    # All tasks at the first record after the start, but the first task.
    assert sorted(each.first[1])[-2:] == [1024 * 20, 1024 * 40]
    assert not learners[PLAIN].recovered.any()
    assert learners[PATH].recovered.all()


def test_errors_are_read_for_thirds_of_the_queries(data: xr.Dataset) -> None:
    columns = script.columns_of(script.arranged(data), "false_positives")
    # Of arms with one threshold or a threshold a query, at the last record.
    assert columns.level.size == made.SEEDS * 2 * 3 * 8
    ratios = [np.unique((columns.wrong / columns.expected)[columns.group == g]) for g in range(3)]
    np.testing.assert_allclose(ratios[0], 2.0)
    np.testing.assert_allclose(ratios[2], 1.0)
    sizes = script.columns_of(script.arranged(data), "false_negatives")
    assert np.bincount(sizes.group).tolist() == [made.SEEDS * 2 * 3 * n for n in (2, 3, 3)]


def test_the_figure_draws_shares_with_wilson_intervals(
    data: xr.Dataset, check_layout: Callable[[Figure], None]
) -> None:
    figure = script.plot(data)
    check_layout(figure)
    right = figure.axes[2]
    assert len(right.containers) == 5
    (line, _, (bars,)) = right.containers[0]
    assert line.get_ydata().tolist() == [0.0, 1.0]
    ends = [tuple(segment[:, 1]) for segment in bars.get_segments()]
    low, high = (share_interval(hits, made.SEEDS) for hits in (0, made.SEEDS))
    np.testing.assert_allclose(ends, [low, high])
    words = {item.get_text() for item in figure.findobj(Text)}
    assert "rare queries" in words


def test_tables_say_shares_costs_and_theory(data: xr.Dataset) -> None:
    shares, costs, positives, negatives = script.tables(data)
    assert len(shares.rows) == 10
    label, samples, level, share, low, high, theory, first = shares.rows[1]
    assert (label, samples, level, share, high) == (
        "one λ, the best of 2", 1024 * 40, 6.0, 1.0, 1.0
    )  # fmt: skip
    assert low == pytest.approx(share_interval(made.SEEDS, made.SEEDS).low)
    assert theory == pytest.approx(0.9)
    assert first == 1024 * 20
    assert dict(costs.rows) == {
        "one λ, the best of 2": 1024 * 40,
        "a path of λ, the best of 1": 512 * 40,
        "a λ for each query": 512 * 40,
        "λ by held-out loss, unshrunk": 512 * 40,
        "λ by held-out loss": np.inf,
    }
    assert {row[0] for row in positives.rows} == {row[0] for row in negatives.rows} == {1, 2, 3}


def test_a_study_of_other_axes_is_refused(data: xr.Dataset) -> None:
    with pytest.raises(ValueError, match=r"needs adapt, level, .* to vary along one axis"):
        script.plot(data.drop_vars("adapt"))
