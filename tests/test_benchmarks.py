"""Benchmarks run, store what they must, and compare like with like. No test looks at a speed."""

import importlib
import json
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scbjax.assumptions import task_from_arrays
from scbjax.words import threefry

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "sweeps" / "benchmarks"
NAMES = sorted(path.stem for path in FOLDER.glob("[!_]*.py"))
STORED = sorted((ROOT / "docs" / "benchmarks").glob("*/*.json"))
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(autouse=True)
def _scripts_stand_beside_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))


def script(name: str) -> ModuleType:
    return importlib.import_module(name)


def size(num_tokens: int, context_length: int = 60, batch_size: int = 12) -> Any:  # noqa: ANN401
    return script("_library").Size(num_tokens, context_length, batch_size, 1)


# -------------------------------------------------------------------------- like with like


@pytest.mark.parametrize(
    "num_tokens", [3, *(pytest.param(n, marks=pytest.mark.slow) for n in (7, 40))]
)
def test_all_implementations_take_the_same_step(num_tokens: int) -> None:
    peers = script("_peers")
    errors = script("_agreement").check_agreement(peers.available_peers(), size(num_tokens))
    assert errors.keys() == {"scbjax", *peers.available_peers()}
    # Short sums: all are exact to rounding, not only to what the check allows at T = 5000.
    assert all(error < 2e-5 for error in errors.values()), errors


def wrong_gradient(numpy_peer: type[Any]) -> type[Any]:
    class Wrong(numpy_peer):  # type: ignore[misc]
        def gradient(self, batch: Any) -> tuple[Any, Any]:  # noqa: ANN401
            value, attention = super().gradient(batch)
            return value, attention * np.float32(1.01)

    return Wrong


def wrong_step(numpy_peer: type[Any]) -> type[Any]:
    class Wrong(numpy_peer):  # type: ignore[misc]
        def step(self, batch: Any) -> None:  # noqa: ANN401
            super().step(batch)
            self._attention *= np.float32(1.01)

    return Wrong


@pytest.mark.parametrize("break_it", [wrong_gradient, wrong_step])
def test_a_peer_that_takes_another_step_is_refused(break_it: Any) -> None:  # noqa: ANN401
    peers = script("_peers")
    with pytest.raises(RuntimeError, match=r"broken is off by .*it takes another step"):
        script("_agreement").check_agreement({"broken": break_it(peers.NumPyPeer)}, size(3))


def test_the_reference_gradient_is_that_of_the_loss() -> None:
    """Against finite differences of eq. 3 written as a double loop."""
    peers = script("_peers")
    rng = np.random.default_rng(0)
    count, length, samples = 3, 5, 4
    value, attention = rng.normal(size=(count, count)), rng.normal(size=(length, count))
    batch = peers.HostBatch(
        rng.integers(count, size=(samples, length)),
        rng.integers(count, size=samples),
        rng.integers(count, size=samples),
    )

    def loss(value: Any, attention: Any) -> float:  # noqa: ANN401
        total = 0.0
        for tokens, query, label in zip(*batch, strict=True):
            output = sum(attention[t, query] * value[:, tokens[t]] for t in range(length))
            total += 0.5 * sum((float(n == label) - output[n]) ** 2 for n in range(count))
        return total / samples

    gradients = script("_agreement").reference_gradient((value, attention), batch)
    step = 1e-5
    for index, (array, gradient) in enumerate(zip((value, attention), gradients, strict=True)):
        for place in np.ndindex(array.shape):
            shifted = [np.array(value), np.array(attention)]
            shifted[index][place] += step
            above = loss(*shifted)
            shifted[index][place] -= 2 * step
            assert (above - loss(*shifted)) / (2 * step) == pytest.approx(gradient[place], abs=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("num_tokens", [3, 40])
def test_a_step_in_bfloat16_is_one_up_to_its_digits(num_tokens: int) -> None:
    precision = script("precision")
    small, errors = size(num_tokens), {}
    for name, held in precision.PRECISIONS.items():
        errors[name] = precision.check(name, held, small)
    single, stored, throughout = errors.values()
    assert max(single["gradient"], single["parameters"]) < 2e-5
    # A tenth of a half unit: it is another precision that is looked at, and in the right place.
    assert stored["gradient"] == single["gradient"]
    assert stored["parameters"] > 2**-8 / 10
    assert throughout["gradient"] > 2**-8 / 10


@pytest.mark.parametrize("name", ["bfloat16, stored", "bfloat16, throughout"])
def test_what_is_timed_is_in_bfloat16(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The carry of the compiled loop, and what a step is given."""
    library, precision = script("_library"), script("precision")
    held = precision.PRECISIONS[name]
    given: list[str] = []
    step = library.step

    def watched(state: Any, batch: Any, task: Any, settings: Any) -> Any:  # noqa: ANN401
        given.extend(array.dtype.name for array in (*state.params, task.stationary))
        return step(state, batch, task, settings)

    monkeypatch.setattr(library, "step", watched)
    small = size(3)._replace(trajectories=2)
    body: list[Any] = []
    monkeypatch.setattr(library, "_compiled_sweep", lambda *given: body.append(given))
    library.library(small, name=name, held=held)
    ((_, move, (states, inputs), *_),) = body
    first = [jax.tree.map(lambda leaf: leaf[0], tree) for tree in (states, *inputs)]
    after = jax.eval_shape(move, jnp.int32(0), *first)
    assert {array.dtype.name for array in (*states.params, *after.params)} == {"bfloat16"}
    assert set(given) == {held.step}
    assert inputs[0].stationary.dtype == jnp.float32  # which tokens are drawn from


def test_a_step_that_loses_more_digits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    precision = script("precision")
    step_in = precision.step_in

    def off(*given: Any) -> Any:  # noqa: ANN401
        state = step_in(*given)
        return state._replace(params=jax.tree.map(lambda leaf: 1.02 * leaf, state.params))

    monkeypatch.setattr(precision, "step_in", off)
    stored = "bfloat16, stored"
    with pytest.raises(RuntimeError, match=r"stored: parameters off by 0\.0[23]"):
        precision.check(stored, precision.PRECISIONS[stored], size(3))


def test_peers_draw_from_the_task() -> None:
    """A transition without chance and one position a query: the label is known from the sample."""
    peers = script("_peers")
    successor = np.array([1, 2, 3, 0])
    positions = np.array([4, 0, 19, 7])
    transition, pattern = np.zeros((4, 4)), np.zeros((20, 4))
    transition[successor, np.arange(4)] = 1
    pattern[positions, np.arange(4)] = 1
    task = task_from_arrays(jnp.asarray(transition, jnp.float32), jnp.asarray(pattern, jnp.float32))
    host = peers.HostTask(*(np.array(array) for array in task))
    params = (np.zeros((4, 4), np.float32), np.zeros((20, 4), np.float32))
    samples = 2000
    for name, peer in peers.available_peers().items():
        drawn = peer(host, peers.Rule(0.1, 0.1, 0.0, samples), params, 7).draw()
        tokens, query, label = (np.asarray(array) for array in drawn)
        assert tokens.shape == (samples, 20), name
        source = tokens[np.arange(samples), positions[query]]
        np.testing.assert_array_equal(label, successor[source], err_msg=name)
        # mu is uniform; five standard deviations.
        for drawn_tokens in (tokens, query):
            share = np.bincount(drawn_tokens.ravel(), minlength=4) / drawn_tokens.size
            assert np.all(np.abs(share - 0.25) < 5 * math.sqrt(0.1875 / drawn_tokens.size)), name


# -------------------------------------------------------------------------------- measuring


def test_contenders_take_turns_and_their_ratios_are_taken_turn_by_turn() -> None:
    measure = script("_measure")
    calls: list[str] = []
    contenders = [
        measure.Contender(name, lambda _, name=name: calls.append(name), work, {"note": name})
        for name, work in (("a", 10.0), ("b", 5.0))
    ]
    rows = measure.race(contenders, measure.Effort(rounds=3, seconds=0.0))
    assert calls[-6:] == ["a", "b"] * 3
    assert [(row["name"], row["note"], len(row["seconds"])) for row in rows] == [
        ("a", "a", 3),
        ("b", "b", 3),
    ]
    for row, seconds in zip(rows, ([1.0, 2.0, 4.0], [1.0, 1.0, 1.0]), strict=True):
        row["seconds"] = seconds
    assert measure.ratio(rows, "a", "b") == {"median": 1.0, "min": 0.5, "max": 2.0}
    assert measure.ratio(rows, "a", "c") is None


def test_the_exponent_is_that_of_the_upper_half() -> None:
    growth = script("growth")
    sizes = [1, 2, 4, 8, 16, 32]
    seconds = [5.0, 5.0, 5.0, *(0.1 * n**1.5 for n in sizes[3:])]
    assert growth.fit_exponent(sizes, seconds) == pytest.approx(1.5)


def test_random_words_are_counted_in_the_program() -> None:
    """Ten rotations make a word: a program that draws one word for each of 64 elements."""
    hlo = script("_hlo")

    def draw(seed: jax.Array) -> jax.Array:
        counter = jnp.arange(32, dtype=jnp.uint32)
        return jnp.concatenate(threefry(seed, counter, counter))

    text = jax.jit(draw).lower(jnp.zeros(2, jnp.uint32)).compile().as_text()
    words = hlo.count(text).random_words
    assert words > 63.9
    assert words / 64 == pytest.approx(round(words / 64))


def compiled_text(function: Any, *arguments: Any) -> str:  # noqa: ANN401
    return str(jax.jit(function).lower(*arguments).compile().as_text())


def test_what_is_counted_of_a_product_of_matrices_and_of_a_chain() -> None:
    hlo = script("_hlo")
    left, right = jnp.ones((8, 16)), jnp.ones((16, 4))
    product = hlo.count(compiled_text(lambda a, b: a @ b, left, right))
    assert product.operations == 2 * 8 * 16 * 4
    assert product.bytes >= 4 * (8 * 16 + 16 * 4 + 8 * 4)
    chain = hlo.count(compiled_text(lambda a: (a * 2 + 1) / 3, left))
    assert chain == hlo.Counts(operations=3 * 128, bytes=2 * 4 * 128, kernels=1)


def test_the_body_of_a_loop_counts_as_often_as_it_is_run() -> None:
    hlo = script("_hlo")

    def loop(turns: int) -> Any:  # noqa: ANN401
        def turn(_: int, array: jax.Array) -> jax.Array:
            # Two kernels: what sorts is none of what adds.
            return jnp.sort(array, axis=-1) + 1

        text = compiled_text(lambda a: jax.lax.fori_loop(0, turns, turn, a), jnp.ones((64, 32)))
        assert " while(" in text
        return hlo.count(text)

    few, more, many = loop(5), loop(20), loop(50)  # and what is done once
    assert many.operations - more.operations == 2 * (more.operations - few.operations) > 0
    assert many.bytes - more.bytes == 2 * (more.bytes - few.bytes) > 0


PROGRAM = """
HloModule of_a_tpu

%fused (p.0: f32[1000,3], p.1: s32[]) -> f32[1,3] {
  %p.0 = f32[1000,3]{0,1:T(4,128)} parameter(0)
  %p.1 = s32[]{:T(128)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  ROOT %row = f32[1,3]{0,1:T(4,128)S(1)} dynamic-slice(%p.0, %p.1, %zero), dynamic_slice_sizes={1,3}
}

ENTRY %main (a: f32[1000,3], i: s32[], b: f32[2,8,16], c: f32[2,16,4]) -> f32[2,8,4] {
  %a = f32[1000,3]{0,1:T(4,128)} parameter(0)
  %i = s32[]{:T(128)} parameter(1)
  %b = f32[2,8,16]{2,1,0:T(8,128)} parameter(2)
  %c = f32[2,16,4]{2,1,0:T(8,128)} parameter(3)
  %f = f32[1,3]{0,1:T(4,128)S(1)} fusion(%a, %i), kind=kLoop, calls=%fused
  ROOT %d = f32[2,8,4]{2,1,0:T(8,128)} convolution(%b, %c), window={size=2 stride=1 lhs_dilate=2}, dim_labels=0bf_0io->0bf
}
"""  # noqa: E501 - as a compiler writes it


def test_what_a_program_of_a_tpu_moves_is_counted_with_its_tiles() -> None:
    """By hand: rows of 16 and of 4 numbers fill tiles of 8 by 128; what is on the chip is free."""
    hlo = script("_hlo")
    row, index = 0, 4  # a single row is looked at, which stays on the chip; its number
    product = 2 * (8 * 128 + 16 * 128 + 8 * 128) * 4
    found = hlo.count(PROGRAM)
    assert found.operations == 2 * 2 * 8 * 4 * 16
    assert found.bytes == row + index + product
    assert found.kernels == 2
    array = hlo._array("f32", "1000,3", "0,1", "T(4,128)")
    assert array.bytes == 4 * 1024 * 4


def test_a_roofline_is_the_slowest_of_three() -> None:
    hlo, roofline = script("_hlo"), script("roofline")
    rates = {"bandwidth": 1e12, "operations": 2e12, "integers": 1e12, "kernel_seconds": 1e-6}
    counts = hlo.Counts(operations=1e9, bytes=2e9, random_words=0.0, kernels=10)
    found = roofline.predict(counts, 10**6, rates)
    assert found["seconds"] == pytest.approx({"memory": 2e-3, "operations": 5e-4, "kernels": 1e-5})
    assert (found["limit"], found["rate"]) == ("memory", pytest.approx(5e8))
    drawn = roofline.predict(counts._replace(bytes=0.0, random_words=1e9 / 57.5), 10**6, rates)
    assert (drawn["limit"], drawn["rate"]) == ("arithmetic", pytest.approx(1e9))
    small = roofline.predict(counts._replace(operations=0.0, bytes=0.0), 10**6, rates)
    assert (small["limit"], small["rate"]) == ("starting kernels", pytest.approx(1e11))


# ----------------------------------------------------------------------- what is published


def test_what_is_published_belongs_to_a_benchmark_and_has_its_picture() -> None:
    assert STORED
    for path in STORED:
        assert path.stem in NAMES
        assert path.with_suffix(".png").read_bytes().startswith(PNG)


@pytest.mark.parametrize("path", STORED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_published_measurements_say_where_they_come_from(path: Path) -> None:
    payload = json.loads(path.read_text(encoding="utf-8"))
    check_payload(payload, path.stem)
    assert payload["quick"] is False


def test_the_tables_of_the_page_are_current() -> None:
    report = script("_report")
    text = report.PAGE.read_text(encoding="utf-8")
    assert text == report.page(text), "run sweeps/benchmarks/_report.py"


def check_payload(payload: dict[str, Any], name: str) -> None:
    about = payload["environment"]
    assert payload["benchmark"] == name
    assert about["device"]
    assert about["cpu_count"] >= 1
    assert about["versions"]["jax"]
    assert about["load_average"] >= 0


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_runs(tmp_path: Path, name: str) -> None:
    command = [sys.executable, "-m", "scbjax", "bench", name, "--quick", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    payload = json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))
    check_payload(payload, name)
    assert payload["quick"] is True
    assert (tmp_path / f"{name}.png").read_bytes().startswith(PNG)
