"""The noise of a single sample with the two right projectors of eq. 4 (ours, not in the paper).

The dataset comes from `scbjax run projector`. What to see: at the start, the noise of the gradient
of alpha_V falls like 1/sqrt(T) with the projector that is orthogonal in the mu-inner product, and
not at all with the printed one, where mu is not uniform. The expectation that it hides is 1/T.
Once the signal has grown, the two are equally noisy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import xarray as xr
from _axes import log_limits
from _data import Values, setting
from _estimates import NORMAL, quantile_interval, within_extreme
from _numbers import Table, ranged, tabulate
from _render import DOUBLE_COLUMN, main, render
from _runs import band, finite_of, largest, least, median
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter
from numpy.typing import NDArray

STUDY: Final = "projector"
SMALLEST: Final = 1e-3  # signals below it, as that of 0 at the start, are off the last panel
ATTENTION: Final[dict[str, Any]] = {"color": "#009E73", "marker": "^", "linestyle": ""}
EXACT: Final[dict[str, Any]] = {"color": "black", "linewidth": 0.9, "linestyle": ":"}


class Look(NamedTuple):
    """A kind of gradient: its noise, measured and exact at the start, its mean, and its look."""

    label: str
    noise: str
    exact: str
    colour: str
    marker: str


LOOKS: Final = (
    Look("as printed", "alpha_value_noise_paper", "initial_noise_paper", "#D55E00", "s"),
    Look(r"$\mu$-orthogonal", "alpha_value_noise_mu", "initial_noise_mu", "#0072B2", "o"),
)
VARIABLES: Final = (
    *(name for look in LOOKS for name in (look.noise, look.exact)),
    "alpha_value",
    "alpha_attention_noise",
    "stationary_norm",
)
GRADIENTS: Final = ("alpha_value_gradient_paper", "alpha_value_gradient_mu")
NUMBERS: Final = (*VARIABLES, *GRADIENTS)
# Between which sizes of the signal the noise on the way is summed up.
RANGES: Final = ((0.1, 0.2), (0.2, 0.4), (0.4, 0.7), (0.7, 1.2))


def plot(dataset: xr.Dataset) -> Figure:
    """Make the figure from the study's dataset."""
    data = flat(dataset)
    figure = Figure(figsize=(DOUBLE_COLUMN, 2.9))
    figure.set_layout_engine("constrained", w_pad=0.06)
    left, middle, right = figure.subplots(1, 3)
    draw_lengths(left, data)
    draw_spread(middle, data)
    draw_signal(right, data)
    handles = [
        *(
            Line2D(
                [], [], **marker(look), markersize=4, label=rf"$\alpha_V$, projector {look.label}"
            )
            for look in LOOKS
        ),
        Line2D([], [], **ATTENTION, markersize=4, label=r"$\alpha_A$ (either projector)"),
        Line2D([], [], **EXACT, label="exact deviation"),
        Line2D([], [], color="#777777", linestyle="--", label="size of the expectation, $1/T$"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=3)
    return figure


def marker(look: Look) -> dict[str, Any]:
    """Give the look of measured deviations."""
    return {"color": look.colour, "marker": look.marker, "linestyle": ""}


def flat(dataset: xr.Dataset) -> xr.Dataset:
    """Make one dimension `case` of all axes, with T, the skew and N along it."""
    axes = [name for name in dataset.dims if name != "step"]
    for field in ("context_length", "skew", "num_tokens"):
        if field not in dataset.coords:
            dataset = dataset.assign_coords({field: setting(dataset, field)})
    data = dataset.reset_coords(["context_length", "skew", "num_tokens"])
    data = data.assign(
        {
            name: data[name].broadcast_like(data["stationary_norm"])
            for name in ("context_length", "skew", "num_tokens")
        }
    )
    return data.stack(case=axes, create_index=False).transpose("case", ...)


def at_start(data: xr.Dataset, variable: str) -> Values:
    """Give a variable of every case at step 0."""
    return data[variable].isel(step=0).to_numpy().astype(float)


def mean_of(values: Values) -> float:
    """Give the mean of the values that are finite; NaN where none is."""
    finite = finite_of(values)
    return float(finite.mean()) if finite.size else np.nan


def is_usual(data: xr.Dataset, field: str) -> NDArray[np.bool_]:
    """Tell which cases have the value of a field that most of them have."""
    values, counts = np.unique(data[field].to_numpy(), return_counts=True)
    return np.asarray(data[field].to_numpy() == values[counts.argmax()])


def draw_lengths(axes: Axes, data: xr.Dataset) -> None:
    """Draw the noise at the start against T, at the skew of most cases, with what is exact."""
    lengths = data["context_length"].to_numpy()
    usual = is_usual(data, "skew")
    places = np.unique(lengths[usual])
    for look in LOOKS:
        cases = [usual & (lengths == length) for length in places]
        measured = np.stack(
            [band(at_start(data, look.noise)[case][:, None])[:, 0] for case in cases]
        )
        exact = [median(at_start(data, look.exact)[case]) for case in cases]
        low, middle, high = measured.T
        axes.plot(places, exact, **EXACT, zorder=3, gid=f"exact {look.noise}")
        axes.vlines(places, low, high, colors=look.colour, linewidth=1.0)
        axes.plot(
            places,
            middle,
            **marker(look),
            markersize=4,
            zorder=4,
            gid=f"median {look.noise}",
        )
    axes.plot(places, 1 / places, color="#777777", linestyle="--", linewidth=1.0, gid="drift")
    axes.set(xscale="log", yscale="log", xlabel="context length $T$", title="at the start")
    axes.set_ylabel("deviation over samples")


def draw_spread(axes: Axes, data: xr.Dataset) -> None:
    """Draw how many times smaller the variance is, against how far mu is from uniform."""
    usual = is_usual(data, "context_length")
    tokens = data["num_tokens"].to_numpy()
    spread = np.sqrt(np.maximum(tokens * data["stationary_norm"].to_numpy() - 1, 0.0))[usual]
    ratios = (at_start(data, LOOKS[0].noise) / at_start(data, LOOKS[1].noise))[usual] ** 2
    skews = data["skew"].to_numpy()[usual]
    shade = axes.scatter(
        spread,
        ratios,
        c=skews,
        s=9,
        cmap="cividis",
        norm=Normalize(1, max(3.0, skews.max())),
        gid="ratios",
    )
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.colorbar(shade, ax=axes, pad=0.02, aspect=30, format="{x:g}", label="skew $C$")
    axes.set(yscale="log", xlabel=r"spread of $\mu$, $(N|\mu|^2 - 1)^{1/2}$")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylabel("variance, as printed over\n$\\mu$-orthogonal")
    axes.set_title(f"at the start, $T$ = {data['context_length'].to_numpy()[usual][0]}")


def draw_signal(axes: Axes, data: xr.Dataset) -> None:
    """Draw noise and drift against the signal on the way, for the cases of the usual T."""
    chosen = data.isel(case=is_usual(data, "context_length") & is_usual(data, "skew"))
    signal = np.abs(chosen["alpha_value"].to_numpy()).ravel()
    for look in LOOKS:
        axes.plot(
            signal,
            chosen[look.noise].to_numpy().ravel(),
            **marker(look),
            markersize=2.5,
            alpha=0.7,
            gid=f"path {look.noise}",
        )
    # The projector is on the side of V: the gradient of alpha_A is the same with both.
    attention = chosen["alpha_attention_noise"].to_numpy().ravel()
    gid = "path alpha_attention_noise"
    axes.plot(signal, attention, **ATTENTION, markersize=2.5, alpha=0.7, gid=gid)
    # A signal of NaN is no larger than anything.
    axes.set_xlim(SMALLEST, 1.5 * max(10 * SMALLEST, largest(signal)))
    axes.set(xscale="log", yscale="log", xlabel=r"signal $|\alpha_V|$")
    drawn = [attention, *(chosen[look.noise].to_numpy().ravel() for look in LOOKS)]
    if (signal > SMALLEST).any():
        axes.set_ylim(log_limits([values[signal > SMALLEST] for values in drawn], floor=0.0))
    axes.set_ylabel("deviation over samples")
    axes.set_title(f"on the way, $T$ = {chosen['context_length'].to_numpy()[0]}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def tables(dataset: xr.Dataset) -> list[Table]:
    """Tabulate deviations and means at the start, the ratio of variances, and noise on the way."""
    data = flat(dataset)
    return [*start_tables(data), ratio_table(data), way_table(data), attention_table(data)]


def start_tables(data: xr.Dataset) -> list[Table]:
    """Tabulate the gradient at the start against T, and how it agrees with what is exact."""
    usual, lengths = is_usual(data, "skew"), data["context_length"].to_numpy()
    samples = int(str(setting(data, "noise_samples")))
    rows, fits = [], []
    for look, gradient in zip(LOOKS, GRADIENTS, strict=True):
        noise, exact = at_start(data, look.noise), at_start(data, look.exact)
        error = noise / np.sqrt(samples)
        means = at_start(data, gradient)
        places = np.unique(lengths[usual])
        medians = []
        for length in places:
            here = usual & (lengths == length)
            medians.append(median(noise[here]))
            known = finite_of(error[here])
            spread = length * np.sqrt((known**2).sum()) / max(1, known.size)
            mean = length * mean_of(means[here])
            ends = (mean - NORMAL * spread, mean + NORMAL * spread)
            around = quantile_interval(noise[here])
            rows.append([look.label, length, medians[-1], *around, mean, *ends])
        slope = np.polyfit(np.log(places), np.log(medians), 1)[0] if places.size > 1 else np.nan
        away, squared = largest(np.abs(noise / exact - 1)), ((means + 1 / lengths) / error) ** 2
        fits.append([look.label, slope, away, mean_of(squared)])
    return [
        Table(
            "At the start: deviation over samples, median of tasks, and T times the mean gradient, "
            "with 95% intervals",
            ("projector", "T", *ranged("deviation", "T times the mean")),
            rows,
        ),
        Table(
            "At the start: power of T; largest relative distance of measured and exact deviations; "
            "squared distance of means from -1/T in standard errors, its mean",
            ("projector", "power of T", "from exact", "squared"),
            fits,
        ),
    ]


def ratio_table(data: xr.Dataset) -> Table:
    """Tabulate how many times smaller the variance is at the start, for every skew."""
    usual, skews = is_usual(data, "context_length"), data["skew"].to_numpy()
    ratios = (at_start(data, LOOKS[0].noise) / at_start(data, LOOKS[1].noise)) ** 2
    rows: list[list[object]] = []
    groups = {f"{skew:g}": usual & (skews == skew) for skew in np.unique(skews[usual])}
    groups["above 1"] = usual & (skews > 1)
    for name, here in groups.items():
        if here.any():
            around = quantile_interval(ratios[here])
            held = within_extreme(int(here.sum()))
            ends = [median(ratios[here]), *around, least(ratios[here])]
            rows.append([name, here.sum(), *ends, held])
    return Table(
        f"At the start, T = {data['context_length'].to_numpy()[usual][0]}: variance as printed, "
        "over the mu-orthogonal one; 95% intervals, and the share of all tasks above the least",
        ("skew", "tasks", *ranged("median"), "least", "share of all"),
        rows,
    )


def way_table(data: xr.Dataset) -> Table:
    """Tabulate the noise on the way, by the size of the signal."""
    chosen = data.isel(case=is_usual(data, "context_length") & is_usual(data, "skew"))
    signal = np.abs(chosen["alpha_value"].to_numpy())
    names = (LOOKS[0].noise, LOOKS[1].noise, "alpha_attention_noise")
    noise = [chosen[name].to_numpy() for name in names]
    rows: list[list[object]] = []
    for low, high in RANGES:
        here = (signal >= low) & (signal < high)
        if here.any():
            ratio = median((noise[0][here] / noise[1][here]) ** 2)
            rows.append([f"{low} to {high}", here.sum(), ratio, median(noise[2][here])])
    columns = ("signal", "records", "variance, printed over mu-orthogonal")
    return Table("On the way, medians", (*columns, "deviation of alpha_A's gradient"), rows)


def attention_table(data: xr.Dataset) -> Table:
    """Tabulate the noise of alpha_A's gradient against T, in units of the signal in V."""
    usual, lengths = is_usual(data, "skew"), data["context_length"].to_numpy()
    rows: list[list[object]] = []
    for length in np.unique(lengths[usual]):
        here = data.isel(case=usual & (lengths == length))
        signal, noise = (
            np.abs(here[name].to_numpy()) for name in ("alpha_value", "alpha_attention_noise")
        )
        small = (signal > SMALLEST) & (signal < RANGES[0][0])
        if small.any():
            rows.append([length, small.sum(), median(noise[small] / signal[small])])
    return Table(
        f"On the way, at signals of {SMALLEST} to {RANGES[0][0]}: deviation of alpha_A's gradient "
        "over the size of alpha_V, medians",
        ("T", "records", "deviation over signal"),
        rows,
    )


def draw(results: Path, out: Path) -> list[Path]:
    """Draw the figure from the dataset under `results` into `out` and return the files."""
    return render("projector", STUDY, VARIABLES, plot, results, out)


def numbers(results: Path) -> str:
    """Give the numbers of the dataset under `results` as tables, and nothing drawn."""
    return tabulate(STUDY, NUMBERS, tables, results)


if __name__ == "__main__":
    raise SystemExit(main(draw, __doc__, numbers))
