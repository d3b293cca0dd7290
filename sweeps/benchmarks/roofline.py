"""A roofline on paper: what a step should cost on accelerators, from the program compiled for them.

At N in {3, 10, 300}, T = 5000, B = 64 and 32 trajectories, as `scbjax bench step` measures it. The
step is compiled for an H100, an H200 and a TPU v5e, which need not be there: what has to be is
their compiler (`pip install "jax[cuda12]"`, `pip install "jax[tpu]"`). Without it, counts are those
of the same step compiled for a CPU. Bytes, operations, random words and kernels are counted in the
program and divided by published rates; the slowest of these is the prediction. As a check the same
is done for the device that this runs on, by rates that are measured on it, and beside it stands how
fast a step is there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from _chips import CHIPS, Chip, compiler_options, described
from _hlo import Counts, count
from _library import (
    ARITHMETIC,
    COPY,
    OURS,
    Size,
    arithmetic,
    block_of,
    census,
    library,
    lowered_step,
    memory_copy,
)
from _measure import QUICK, Effort, Payload, digits, in_process, race, run_script, say
from _pictures import GREY, new_figure
from matplotlib.figure import Figure

from scbjax.blocks import for_platform

SHORT = Effort(rounds=30, seconds=0.1)  # many, for one that nothing disturbs
SIZES = tuple(Size(n, 5000, 64, 32) for n in (3, 10, 300))
QUICK_SIZES = (Size(3, 200, 8, 4),)
CACHED = "copy in a cache"
CACHED_BYTES = 2**18
OF_A_WORD = 57.5  # Threefry, for two words: 20 rounds of 5 operations, and 15 with its keys
LIMITS = {"memory": "memory", "operations": "arithmetic", "kernels": "starting kernels"}
COLOURS = {"NVIDIA H100 SXM": "#009E73", "NVIDIA H200 SXM": "#56B4E9", "TPU v5e": "#E69F00"}


def measure(quick: bool) -> Payload:
    """Counts and predictions for all chips, and the check on this device."""
    sizes = QUICK_SIZES if quick else SIZES
    rows = [row for chip in CHIPS for row in _predict(chip, sizes)]
    for row in rows:
        say(
            f"N = {row['num_tokens']}, {row['chip']}: {digits(row['rate'] / 1e6)} million tokens/s "
            f"at most, limited by {row['limit']}"
        )
    checks = check(sizes, quick)
    for row in checks:
        say(
            f"N = {row['num_tokens']}, here: predicted {digits(row['predicted'] / 1e6)}, measured "
            f"{digits(row['measured']['max'] / 1e6)} million tokens/s"
        )
    chips = [{"name": chip.name, "source": chip.source} for chip in CHIPS]
    return {**sizes[0]._asdict(), "chips": chips, "rows": rows, "checks": checks}


def _predict(chip: Chip, sizes: tuple[Size, ...]) -> list[Payload]:
    """One row for each size; the compilers of chips run in processes of their own."""
    rows = []
    for size in sizes:
        arguments = ("--worker", chip.name, *map(str, size))
        found = in_process(Path(__file__).name, *arguments, environ={"JAX_PLATFORMS": "cpu"})
        counts = Counts(**found["counts"])
        rates = {
            "bandwidth": chip.bandwidth,
            "operations": chip.operations,
            "integers": chip.integers,
            "kernel_seconds": chip.kernel_seconds,
        }
        rows.append(
            {
                "chip": chip.name,
                "num_tokens": size.num_tokens,
                "counted_for": found["counted_for"],
                "counts": _per_token(counts, size),
                **predict(counts, size.tokens, rates),
            }
        )
    return rows


def predict(counts: Counts, tokens: int, rates: Mapping[str, float]) -> Payload:
    """What a step takes at the least, and which of memory, arithmetic and kernels is the limit.

    Args:
        counts: of the whole step.
        tokens: context tokens that it has.
        rates: bytes a second (``bandwidth``), operations a second of floats (``operations``) and of
            integers (``integers``), and seconds that a kernel takes at least (``kernel_seconds``).

    Returns:
        Seconds by each of the three, the tokens a second of the slowest, and its name.
    """
    drawing = min(counts.random_words * OF_A_WORD, counts.operations)
    seconds = {
        "memory": counts.bytes / rates["bandwidth"],
        "operations": (counts.operations - drawing) / rates["operations"]
        + drawing / rates["integers"],
        "kernels": counts.kernels * rates["kernel_seconds"],
    }
    limit = max(seconds, key=seconds.__getitem__)
    return {"seconds": seconds, "rate": tokens / seconds[limit], "limit": LIMITS[limit]}


def _per_token(counts: Counts, size: Size) -> Payload:
    per_token = {
        name: value / size.tokens for name, value in counts._asdict().items() if name != "kernels"
    }
    return {**per_token, "kernels": int(counts.kernels)}


def check(sizes: Sequence[Size], quick: bool) -> list[Payload]:
    """The same for the device at hand, beside what it does: the fastest of many short calls."""
    raced = []
    for size in sizes:
        contenders = [library(size), arithmetic(), memory_copy(CACHED, CACHED_BYTES), memory_copy()]
        rows = race(contenders, QUICK if quick else SHORT)
        raced.append({row["name"]: row["rate"] for row in rows})
    # What a block works on stays in a cache of a processor; an accelerator has one block.
    copy = CACHED if jax.devices()[0].platform == "cpu" else COPY
    arithmetics = max(rows[ARITHMETIC]["max"] for rows in raced)
    chip = next((c for c in CHIPS if jax.devices()[0].device_kind.startswith(c.kind)), None)
    rates = {
        "bandwidth": max(rows[copy]["max"] for rows in raced),
        "operations": arithmetics,
        "integers": arithmetics,
        "kernel_seconds": chip.kernel_seconds if chip else 0.0,
    }
    measured = [rows[OURS] for rows in raced]
    return [compared(size, rates, own) for size, own in zip(sizes, measured, strict=True)]


def compared(size: Size, rates: Mapping[str, float], measured: Payload) -> Payload:
    """What these rates predict for a size on the device at hand, beside what was measured."""
    block, counted = size._replace(trajectories=block_of(size)), census(size)
    counts = Counts(
        counted["operations"] * block.tokens,
        counted["bytes"] * block.tokens,
        counted["random_words"] * block.tokens,
        counted["kernels"],
    )
    found = predict(counts, block.tokens, rates)
    return {
        "num_tokens": size.num_tokens,
        "counts": _per_token(counts, block),
        "rates": dict(rates),
        "predicted": found["rate"],
        "limit": found["limit"],
        "measured": measured,
    }


def work(name: str, size: Size) -> int:
    """What a process of its own does: counts a step as it is compiled for a chip."""
    chip = next(chip for chip in CHIPS if chip.name == name)
    counted_for = chip.name
    with for_platform(chip.platform):
        try:
            device, options = described(chip), compiler_options(chip)
        except Exception as error:  # noqa: BLE001 - of many kinds, where a compiler is missing
            print(f"{chip.name}: no compiler for it here ({error})", file=sys.stderr)
            device, options, counted_for = jax.devices()[0], {}, "a CPU"
        program = lowered_step(size, device=device).compile(compiler_options=options)
    counts = count(program.as_text() or "")
    print(json.dumps({"counts": counts._asdict(), "counted_for": counted_for}))
    return 0


def draw(payload: Payload) -> Figure:
    """Predictions for every chip, and on this device prediction beside measurement."""
    figure, (left, right) = new_figure(2, height=2.9)
    sizes = [row["num_tokens"] for row in payload["checks"]]
    names = [chip["name"] for chip in payload["chips"]]
    width = 0.4 / len(names)
    for index, name in enumerate(names):
        rates = [row["rate"] / 1e6 for row in payload["rows"] if row["chip"] == name]
        places = [place + (index - (len(names) - 1) / 2) * width for place in range(len(sizes))]
        left.plot(places, rates, "o", color=COLOURS[name], markersize=4, label=name)
    left.set(title="predicted: a step at most", ylabel="million tokens per second")
    _draw_checks(right, payload["checks"])
    for axes in (left, right):
        axes.set(yscale="log", xlabel="vocabulary size N")
        axes.set_xticks(range(len(sizes)), [str(size) for size in sizes])
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper left", ncols=2)
    figure.legend(*right.get_legend_handles_labels(), loc="outside upper right")
    return figure


def _draw_checks(axes: Any, checks: list[Payload]) -> None:  # noqa: ANN401 - of matplotlib
    places = range(len(checks))
    predicted = [row["predicted"] / 1e6 for row in checks]
    axes.plot(places, predicted, "_", color=GREY, markersize=14, label="predicted in the same way")
    fastest = [row["measured"]["max"] / 1e6 for row in checks]
    axes.plot(places, fastest, "o", color="#0072B2", markersize=5, label="measured")
    axes.set_title("the device that it ran on")


def _main() -> int:
    if sys.argv[1:2] != ["--worker"]:
        return run_script("roofline", __doc__, measure, draw)
    parser = argparse.ArgumentParser()
    parser.add_argument("--worker")
    parser.add_argument("size", type=int, nargs=4)
    arguments = parser.parse_args()
    return work(arguments.worker, Size(*arguments.size))


if __name__ == "__main__":
    sys.exit(_main())
