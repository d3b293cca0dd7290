"""The examples of docs/examples: complete, short, and they do what they say."""

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "examples"
LINES = 40
Names = dict[str, Any]


def own_optimizer(names: Names) -> None:
    rows = np.asarray(names["distances"](names["rates"]))
    assert rows.shape == (3, 5)
    assert len({*rows[:, -1]}) == 3
    assert rows.min() < 0.7 * rows[0, 0]


def own_attention_map(names: Names) -> None:
    learned = np.asarray(names["learned"].attention)
    np.testing.assert_allclose(learned, np.asarray(names["trajectory"].params.attention) ** 2)
    distance = np.asarray(names["trajectory"].records["attention_distance"])
    assert distance[-1] < 0.5 * distance[0]


def own_observable(names: Names) -> None:
    task = names["task"]
    found = names["records"](jax.random.key(1))
    assert found["mass_on_pattern"].shape == (3, task.num_tokens)
    assert found["largest_weight"].shape == (3,)
    # At the start each position has 1 / T.
    mass = np.sum(np.asarray(task.pattern) > 0, axis=0) / task.context_length
    np.testing.assert_allclose(found["mass_on_pattern"][0], mass, rtol=1e-5)
    assert np.all(found["mass_on_pattern"][-1] > found["mass_on_pattern"][0])


def own_data(names: Names) -> None:
    losses = np.asarray(names["trajectory"].records["held_out_loss"])
    assert losses[-1] < 0.8 * losses[0]
    assert names["trajectory"].params.attention.shape == (8, len(names["letters"]))


def own_learner(names: Names) -> None:
    train = jax.jit(names["own"].train, static_argnames="steps")
    trajectory = train(jax.random.key(1), names["task"], steps=600)
    assert trajectory.records["share"].shape == (3, 2)
    assert np.max(trajectory.records["share"][-1]) > 0.5 > np.max(trajectory.records["share"][0])


def own_stages(names: Names) -> None:
    records = jax.jit(names["train"])(np.array([0.1, 1.0], np.float32))
    assert set(np.asarray(records["stage"]).ravel()) == {1, 2, 3}
    frozen = np.asarray(records["attention_distance"])[np.asarray(records["stage"]) == 1]
    assert len({*frozen}) == 1


def schedule(names: Names) -> None:
    assert float(names["eta"](0)) == 0.0
    trajectory = jax.jit(names["train"])(jax.random.key(1), names["task"], names["settings"])
    distance = np.asarray(trajectory.records["attention_distance"])
    assert distance[-1] < distance[0]


def continue_and_save(names: Names) -> None:
    assert names["second"].steps.tolist() == [400, 500, 600]


CHECKS: dict[str, Callable[[Names], None]] = {
    check.__name__: check
    for check in (
        *(own_optimizer, own_attention_map, own_observable, own_data),
        *(own_learner, own_stages, schedule, continue_and_save),
    )
}


SWEPT = ("heads", "letters", "temperature")
"""Experiments, which tests/sweep/test_experiments.py runs."""
QUICK = ("own_observable", "own_stages", "continue_and_save")
"""Every kind of part; the others take their time to compile."""


def test_every_example_is_checked() -> None:
    assert sorted((*CHECKS, *SWEPT)) == sorted(path.stem for path in FOLDER.glob("*.py"))


@pytest.mark.parametrize("name", [*CHECKS, *SWEPT])
def test_an_example_is_short(name: str) -> None:
    text = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LINES
    assert text.startswith('"""')


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CHECKS],
)
def test_an_example_does_what_it_says(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    # As a reader would run it: with what JAX allows unless it is told otherwise.
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        names = runpy.run_path(str(FOLDER / f"{name}.py"))
        CHECKS[name](names)
    assert capsys.readouterr().out
