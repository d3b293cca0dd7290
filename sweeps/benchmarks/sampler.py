"""The sampler alone: mini-batches of contexts, queries and labels, in tokens per second.

At the sizes of the benchmark of a step. The floor is one 32-bit random word for each token; the
library's own generator needs no memory for its words, and may be faster than it.
"""

from __future__ import annotations

import sys

from _library import FLOOR, OURS, Size, library, random_words
from _measure import Payload, effort, race, ratio, run_script, say, speed
from _peers import available_peers, contender
from _pictures import draw_spread, new_figure
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from step import QUICK_SIZES, SIZES


def measure(quick: bool) -> Payload:
    """Times every size."""
    return {"sizes": [_measure_size(size, quick) for size in (QUICK_SIZES if quick else SIZES)]}


def _measure_size(size: Size, quick: bool) -> Payload:
    looped = size._replace(trajectories=1)  # a sampler has no parameters that would fill caches
    peers = available_peers().items()
    rows = race(
        [
            library(size, "sample"),
            random_words(size),
            *(contender(name, peer, looped, sample_only=True) for name, peer in peers),
        ],
        effort(quick),
    )
    for row in rows:
        say(f"N = {size.num_tokens}, {row['name']}: {speed(row['rate'])} million tokens/s")
    others = [row["name"] for row in rows if row["name"] != OURS]
    return {
        **size._asdict(),
        "rows": rows,
        "ratios": {name: ratio(rows, OURS, name) for name in others},
    }


def draw(payload: Payload) -> Figure:
    """Speeds of all contenders against the size of the vocabulary."""
    figure, (axes,) = new_figure()
    sizes = payload["sizes"]
    places = list(range(len(sizes)))
    for index, row in enumerate(sizes[0]["rows"]):
        rates = [size["rows"][index]["rate"] for size in sizes]
        dashed = {"linestyle": ":"} if row["name"] == FLOOR else {}
        draw_spread(axes, places, rates, row["name"], scale=1e-6, **dashed)
    axes.set(yscale="log", ylabel="million tokens per second", xlabel="vocabulary size N")
    axes.set_xticks(places, [str(size["num_tokens"]) for size in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper")
    return figure


if __name__ == "__main__":
    sys.exit(run_script("sampler", __doc__, measure, draw))
