"""The paper's algorithm as parts: which stages an arm has, at which rates, and what is frozen."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scbjax.algorithm import (
    StageRates,
    end_boosting,
    end_proximal,
    goes_by_columns,
    per_signal,
    step_rates,
    three_stages,
)
from scbjax.models import linear_transformer
from scbjax.settings import Settings
from scbjax.task import Task, pattern_signal, transition_signal

SETTINGS = Settings(
    batch_size=4,
    steps=8,
    record_every=4,
    learning_rate_1=0.5,
    learning_rate_2=0.25,
    learning_rate_3=0.125,
    attention_rate_ratio=3.0,
)
change = dataclasses.replace


@functools.cache
def make_task() -> Task:
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(3), size=3).T
    mu = np.linalg.solve(np.eye(3) - p + 1, np.ones(3))
    pattern = np.eye(5, 3)
    return Task(*(jnp.asarray(array, jnp.float32) for array in (p, mu, pattern)))


@pytest.mark.parametrize("optimizer", ["proximal", "sgd", "raw_sgd", "adam"])
def test_each_arm_has_its_stages(optimizer: Any) -> None:  # noqa: ANN401
    stages = three_stages(change(SETTINGS, optimizer=optimizer), end_boosting, end_proximal)
    assert [stage.name for stage in stages] == ["boosting", "proximal", "value"][: len(stages)]
    ends = [stage.at_end for stage in stages]
    assert (
        ends
        == {
            "proximal": [end_boosting, end_proximal, None],
            "sgd": [end_boosting, None],
            "raw_sgd": [None, None],
            "adam": [None, None],
        }[optimizer]
    )
    assert [stage.is_over is None for stage in stages] == [False] * (len(stages) - 1) + [True]
    assert [stage.frozen for stage in stages[:2]] == [(), ()]
    if optimizer == "proximal":
        assert stages[2].frozen == ("attention",)


def test_the_rates_of_the_stages() -> None:
    stages = three_stages(SETTINGS, end_boosting, end_proximal)
    assert [stage.rates(make_task(), SETTINGS) for stage in stages] == [
        StageRates(0.5, moves=True, shrinks=False),
        StageRates(0.25, moves=True, shrinks=True),
        StageRates(0.125, moves=False, shrinks=False),
    ]


def test_rates_of_a_step_by_hand() -> None:
    task = make_task()
    k_p, k_q = float(transition_signal(task)), float(pattern_signal(task))
    for moves in (True, False):
        own = StageRates(0.5, moves, shrinks=False)
        found = step_rates(own, task, SETTINGS, jnp.float32)
        np.testing.assert_allclose(found, (0.5 / k_q, 1.5 / k_p * moves), rtol=1e-6)
        plain = step_rates(own, task, change(SETTINGS, scale_rates=False), jnp.float32)
        np.testing.assert_allclose(plain, (0.5, 1.5 * moves), rtol=1e-6)


def test_a_signal_that_is_none_scales_nothing() -> None:
    rate = jnp.asarray(0.5)
    # Of sums of ones, float32 leaves 1.2e-7 for each rounding.
    for signal, expected in ((0.0, 0.5), (1e-7, 0.5), (-1e-7, 0.5), (1e-6, 5e5), (0.25, 2.0)):
        np.testing.assert_allclose(per_signal(rate, jnp.asarray(signal)), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("num_tokens", "optimizer", "expected"),
    [(32, "proximal", False), (33, "proximal", True), (33, "sgd", True), (33, "adam", False)],
)
def test_large_vocabularies_go_by_columns(
    num_tokens: int,
    optimizer: Any,  # noqa: ANN401
    expected: bool,
) -> None:
    task = make_task()._replace(pattern=jnp.zeros((5, num_tokens)))
    assert goes_by_columns(task, change(SETTINGS, optimizer=optimizer)) is expected


def test_the_model_of_a_map_is_made_once() -> None:
    assert linear_transformer("softmax") is linear_transformer("softmax")
    assert linear_transformer("softmax").loss != linear_transformer().loss
    params = linear_transformer("softmax").init(jax.random.key(0), make_task())
    np.testing.assert_array_equal(params.attention, np.zeros((5, 3)))
    np.testing.assert_allclose(
        linear_transformer("softmax").readout(params).attention, 1 / 5, rtol=1e-6
    )
    np.testing.assert_allclose(
        params.value, np.asarray(make_task().stationary)[:, None] * np.ones(3)
    )
