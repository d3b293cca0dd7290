"""The animated picture of the site's first page: attention becoming sparse, from a stored dataset.

    scbjax run docs/site/sparse.toml --no-figure
    python docs/site/animate.py results/sparse/sparse.nc --out docs/site

Any dataset with snapshots and the truth will do (``record.snapshots`` and ``record.truth`` of its
study). It writes ``sparse.gif`` and, for readers who want nothing to move, its last frame
``sparse.png``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

STYLE = Path(__file__).resolve().parents[2] / "figures" / "scbjax.mplstyle"
SIZE, DPI = (6.6, 5.8), 105
# It is seen on phones, at half its size.
LARGE: Any = dict.fromkeys(("axes.titlesize", "axes.labelsize", "legend.fontsize"), 10.5) | {
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
}
COLORS = 48  # of the palette, which all frames share
FRAME, LAST = 90, 2500  # milliseconds
ARMS = {"proximal": ("proximal steps", "#0072B2", "-"), "sgd": ("SGD", "#D55E00", "--")}
OTHER = ("attention", "#0072B2", "-")
STAGES = {
    1: "stage 1: boost the signal",
    2: "stage 2: shrink the noise",
    3: "stage 3: attention rounded and frozen",
}
NEEDED = ("attention_snapshots", "value_snapshots", "pattern", "transition", "attention_distance")


def runs_of(dataset: xr.Dataset, seed: int) -> dict[str, xr.Dataset]:
    """The trajectories of a seed, by the names of their arms; of other axes the first value.

    Raises:
        ValueError: something is missing of what is drawn; the sentence says how it is recorded.
    """
    missing = [name for name in NEEDED if name not in dataset]
    if missing:
        raise ValueError(
            f"the dataset lacks {', '.join(missing)}; a study keeps them with snapshots = [0, 10, "
            "...] and truth = true under [record]"
        )
    if "seed" in dataset.dims:
        known = dataset["seed"].to_numpy().tolist()
        if seed not in known:
            raise ValueError(f"seed is {seed}; the dataset has {', '.join(map(str, known))}")
        dataset = dataset.sel(seed=seed)
    matrix = {"step", "snapshot", "position", "query", "token_out", "token_in"}
    rest = {dim: 0 for dim in dataset.dims if dim not in matrix | {"optimizer"}}
    dataset = dataset.isel(rest)
    if "optimizer" not in dataset.dims:
        chosen = [f"{dim} = {dataset[dim].item()}" for dim in rest if dim in dataset.coords]
        return {", ".join(chosen): dataset}
    names = [str(name) for name in dataset["optimizer"].to_numpy()]
    return {name: dataset.sel(optimizer=name) for name in names[:2]}


class Picture:
    """The figure, whose artists are changed from frame to frame."""

    def __init__(self, runs: dict[str, xr.Dataset], query: int) -> None:
        self.runs, self.query = runs, query
        self.first = next(iter(runs.values()))
        self.figure = Figure(figsize=SIZE, dpi=DPI)
        self.figure.set_layout_engine("none")  # the panels stay where they are
        self.canvas = FigureCanvasAgg(self.figure)
        sides: dict[str, float] = {"left": 0.09, "right": 0.98}
        above = self.figure.add_gridspec(len(runs), 1, **sides, top=0.88, bottom=0.43, hspace=0.4)
        below = self.figure.add_gridspec(
            1, 3, **sides, top=0.29, bottom=0.09, width_ratios=(1, 1, 2), wspace=0.3
        )
        cells = [above[row] for row in range(len(runs))]
        self.bars = [
            self._attention(self.figure.add_subplot(cell), name)
            for cell, name in zip(cells, runs, strict=True)
        ]
        self.value = self._matrix(self.figure.add_subplot(below[0]), "value matrix V", None)
        truth = self.first["transition"].to_numpy()
        self._matrix(self.figure.add_subplot(below[1]), "truth P", truth)
        self._distances(self.figure.add_subplot(below[2]))
        self.title = self.figure.text(0.09, 0.955, "", fontsize=12.5, weight="bold", va="center")

    def _attention(self, axes: Any, name: str) -> Any:  # noqa: ANN401 - matplotlib's artists
        """A panel with the attention of the query; returns its bars."""
        label, color, _ = ARMS.get(name, (name, *OTHER[1:]))
        pattern = self.first["pattern"].isel(query=self.query).to_numpy()
        learned = [run["attention_snapshots"].isel(query=self.query) for run in self.runs.values()]
        top = 1.12 * max(pattern.max(), *(float(it.max()) for it in learned))
        low = 1.25 * min(0.0, *(float(it.min()) for it in learned))
        positions = np.arange(len(pattern))
        bars = axes.bar(positions, 0 * pattern, width=0.8, color=color)
        at = np.flatnonzero(pattern)
        axes.plot(positions[at], pattern[at], "o", ms=9, mfc="none", mec="black", mew=1.3)
        axes.axhline(0, color="0.6", lw=0.6)
        axes.set(xlim=(-1, len(pattern)), ylim=(min(low, -0.05 * top), top))
        axes.set_title(f"attention A, {label}" if name else OTHER[0], loc="left")
        axes.set_ylabel("weight")
        if not name or name == list(self.runs)[-1]:
            axes.set_xlabel("position in the context (rings: the truth Q)")
        else:
            axes.tick_params(labelbottom=False)
        return bars

    def _matrix(self, axes: Any, title: str, values: Any) -> Any:  # noqa: ANN401
        shown = self.first["transition"].to_numpy() if values is None else values
        image = axes.imshow(shown, cmap="cividis", vmin=0, vmax=float(shown.max()))
        axes.set(xticks=[], yticks=[])
        axes.set_title(title, loc="left")
        return image

    def _distances(self, axes: Any) -> None:  # noqa: ANN401
        """The distances as curves, with a point on each that moves."""
        self.points = []
        for name, run in self.runs.items():
            label, color, line = ARMS.get(name, OTHER)
            steps, distance = run["step"].to_numpy(), run["attention_distance"].to_numpy()
            axes.plot(steps, distance, line, color=color, lw=1.6, label=label)
            (point,) = axes.plot([], [], "o", ms=7, color=color, mec="white", mew=1)
            self.points.append((point, steps, distance))
        for start in self._switches():
            axes.axvline(start, color="0.75", lw=0.8, zorder=0)
        axes.set(ylim=(0, None), xlim=(0, self._end()), xlabel="step")
        axes.set_title("distance of A to Q", loc="left")
        if len(self.runs) > 1:
            axes.legend(
                frameon=False,
                loc="lower left",
                handlelength=1.2,
                labelspacing=0.2,
                borderaxespad=0.1,
            )

    def _stage(self) -> xr.DataArray | None:
        return self.first.get("stage")

    def _switches(self) -> list[int]:
        """The steps at which the stages of the first run begin, but for the first."""
        stage = self._stage()
        if stage is None:
            return []
        changed = np.flatnonzero(np.diff(stage.to_numpy())) + 1
        return [int(stage["step"][at]) for at in changed]

    def _end(self) -> int:
        """The last step that is shown: a little behind the last switch."""
        last, switches = int(self.first["snapshot"].max()), self._switches()
        return min(last, round(1.3 * switches[-1])) if switches else last

    def steps(self) -> list[int]:
        """The steps of the frames."""
        return [int(step) for step in self.first["snapshot"].to_numpy() if step <= self._end()]

    def frame(self, step: int) -> Image.Image:
        """The picture at a step."""
        for bars, run in zip(self.bars, self.runs.values(), strict=True):
            heights = run["attention_snapshots"].sel(snapshot=step).isel(query=self.query)
            for bar, height in zip(bars, heights.to_numpy(), strict=True):
                bar.set_height(float(height))
        self.value.set_data(self.first["value_snapshots"].sel(snapshot=step).to_numpy())
        for point, steps, distance in self.points:
            at = int(np.searchsorted(steps, step))
            point.set_data([steps[at]], [distance[at]])
        stage = self._stage()
        named = "" if stage is None else STAGES.get(int(stage.sel(step=step)), "")
        self.title.set_text(f"step {step}" + (f",  {named}" if named else ""))
        self.canvas.draw()  # type: ignore[no-untyped-call]
        pixels = self.canvas.buffer_rgba()  # type: ignore[no-untyped-call]
        return Image.fromarray(np.asarray(pixels)).convert("RGB")


def frames(runs: dict[str, xr.Dataset], query: int) -> Iterator[Image.Image]:
    """The frames of the animation, one for each snapshot."""
    with mpl.rc_context(LARGE, STYLE):
        picture = Picture(runs, query)
        for step in picture.steps():
            yield picture.frame(step)


def with_palette(picture: Image.Image, palette: Image.Image) -> Image.Image:
    """A picture in the nearest colours of a palette, exactly: what does not change stays the same.

    Pillow looks for them in a coarser grid of colours, in which white is not white.
    """
    given = palette.getpalette() or []
    known = np.array(given, np.int32).reshape(-1, 3)[:COLORS]
    seen, index = np.unique(np.asarray(picture).reshape(-1, 3), axis=0, return_inverse=True)
    far = ((seen[:, None].astype(np.int32) - known) ** 2).sum(axis=-1)
    nearest = far.argmin(axis=1).astype(np.uint8)[index.reshape(-1)]
    mapped = Image.fromarray(nearest.reshape(picture.height, picture.width), mode="P")
    mapped.putpalette(given)
    return mapped


def save(pictures: Sequence[Image.Image], out: Path) -> list[Path]:
    """Writes ``sparse.gif`` and ``sparse.png``; returns their paths."""
    out.mkdir(parents=True, exist_ok=True)
    still, moving = out / "sparse.png", out / "sparse.gif"
    # The last frame has all colours.
    palette = pictures[-1].quantize(COLORS)
    palette.save(still, optimize=True)
    few = [with_palette(it, palette) for it in pictures]
    times = [FRAME] * (len(few) - 1) + [LAST]
    few[0].save(moving, save_all=True, append_images=few[1:], duration=times, loop=0)
    return [moving, still]


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the animation of a dataset."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("dataset", type=Path, help="a dataset with snapshots and the truth (.nc)")
    parser.add_argument("--out", type=Path, default=Path("figures/out"), help="folder to write to")
    parser.add_argument("--seed", type=int, default=0, help="the seed that is shown")
    parser.add_argument("--query", type=int, default=0, help="whose attention is shown")
    given = parser.parse_args(arguments)
    try:
        if given.dataset.suffix != ".nc":
            raise ValueError("it must be the file of a dataset, such as results/sparse/sparse.nc")
        if not given.dataset.is_file():
            raise ValueError("there is no such file")
        with xr.open_dataset(given.dataset) as dataset:
            runs = runs_of(dataset.load(), given.seed)
        queries = next(iter(runs.values())).sizes["query"]
        if not 0 <= given.query < queries:
            raise ValueError(f"query is {given.query}; it must be from 0 to {queries - 1}")
    except (OSError, ValueError) as error:
        print(f"{given.dataset}: {error}", file=sys.stderr)
        return 2
    pictures = []
    for picture in frames(runs, given.query):
        pictures.append(picture)
        if len(pictures) % 10 == 0:
            print(f"{len(pictures)} frames", file=sys.stderr)
    for path in save(pictures, given.out):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
