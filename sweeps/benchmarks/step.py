"""One training step: sampling, gradients and eqs. 4 to 6, in tokens per second.

At N in {3, 10, 20, 300}, T = 5000 and B = 64: this library with 32 trajectories, as a sweep runs
them, on one device and on one device for each core; the peers in a loop over trajectories; and, as
a floor, one 32-bit random word for each token. All implementations are compared with eqs. 3 to 6 in
float64 before they are timed. What the parts of a step take is the difference between programs that
stop after sampling, after the gradient, and after the whole step.
"""

from __future__ import annotations

import sys

import jax
from _agreement import check_agreement
from _library import FLOOR, OURS, Size, census, library, memory_copy, random_words
from _measure import Contender, Payload, effort, race, ratio, run_script, say, speed
from _peers import available_peers, contender
from _pictures import draw_spread, new_figure
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

SIZES = tuple(Size(n, 5000, 64, 32) for n in (3, 10, 20, 300))
QUICK_SIZES = (Size(3, 200, 8, 4), Size(40, 200, 8, 4))
# The peers' loops cost the same for each trajectory: fewer of them where one takes a second.
LARGE_VOCABULARY = 100
FEW_TRAJECTORIES = 4
CHECKED_SAMPLES = 16
SAMPLE, GRADIENT, ALL_CORES = f"{OURS}: sample", f"{OURS}: sample, gradient", f"{OURS}, all cores"


def measure(quick: bool) -> Payload:
    """Checks, then times, every size."""
    sizes = [_measure_size(size, quick) for size in (QUICK_SIZES if quick else SIZES)]
    (copy,) = race([memory_copy()], effort(quick))
    return {"sizes": sizes, "memory_copy": copy}


def _measure_size(size: Size, quick: bool) -> Payload:
    peers = available_peers()
    errors = check_agreement(peers, size._replace(batch_size=min(size.batch_size, CHECKED_SAMPLES)))
    rows = race(_contenders(size), effort(quick))
    others = [row["name"] for row in rows if row["name"] != OURS]
    for row in rows:
        say(f"N = {size.num_tokens}, {row['name']}: {speed(row['rate'])} million tokens/s")
    return {
        **size._asdict(),
        "errors": errors,
        "rows": rows,
        "ratios": {name: ratio(rows, OURS, name) for name in others},
        "ratios_all_cores": {name: ratio(rows, ALL_CORES, name) for name in others},
        "census": census(size),
    }


def _contenders(size: Size) -> list[Contender]:
    looped, devices = size, len(jax.devices())
    if size.num_tokens > LARGE_VOCABULARY:
        looped = size._replace(trajectories=FEW_TRAJECTORIES)
    found = [library(size)]
    if devices > 1 and size.trajectories % devices == 0:
        found.append(library(size, name=ALL_CORES, devices=devices))
    found += [random_words(size)]
    found += [contender(name, peer, looped) for name, peer in available_peers().items()]
    return [*found, library(size, "sample", SAMPLE), library(size, "gradient", GRADIENT)]


def draw(payload: Payload) -> Figure:
    """Speeds of all contenders, and where the time of a step goes."""
    figure, (left, right) = new_figure(2, height=2.9)
    sizes = payload["sizes"]
    places = range(len(sizes))
    names = [row["name"] for row in sizes[0]["rows"] if row["name"] not in (SAMPLE, GRADIENT)]
    for name in names:
        rates = [next(row["rate"] for row in size["rows"] if row["name"] == name) for size in sizes]
        dashed = {"linestyle": ":"} if name == FLOOR else {}
        draw_spread(left, list(places), rates, name, scale=1e-6, **dashed)
    left.set(yscale="log", ylabel="million tokens per second")
    _draw_parts(right, sizes)
    for axes in (left, right):
        axes.set_xticks(list(places), [str(size["num_tokens"]) for size in sizes])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("vocabulary size N")
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper left", ncols=3)
    figure.legend(*right.get_legend_handles_labels(), loc="outside upper right")
    return figure


def parts(size: Payload) -> list[tuple[str, float]]:
    """Nanoseconds per token of sampling, gradient, and optimiser: differences of medians."""
    rates = {row["name"]: row["rate"]["median"] for row in size["rows"]}
    upto = [1e9 / rates[name] for name in (SAMPLE, GRADIENT, OURS)]
    names = ("sampling", "gradient", "eqs. 4 to 6")
    return [
        (name, end - begin) for name, begin, end in zip(names, [0.0, *upto], upto, strict=False)
    ]


def _draw_parts(axes: Axes, sizes: list[Payload]) -> None:
    bottoms = [0.0] * len(sizes)
    for index, colour in enumerate(("#009E73", "#0072B2", "#E69F00")):
        heights = [max(0.0, parts(size)[index][1]) for size in sizes]
        axes.bar(
            range(len(sizes)), heights, 0.6, bottoms, color=colour, label=parts(sizes[0])[index][0]
        )
        bottoms = [low + high for low, high in zip(bottoms, heights, strict=True)]
    axes.set_ylabel("nanoseconds per token")


if __name__ == "__main__":
    sys.exit(run_script("step", __doc__, measure, draw))
