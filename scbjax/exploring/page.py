"""The page: models of Bokeh, the data, and what ties them together, in one HTML file.

The page holds all that it needs and forbids the browser to fetch anything (its content security
policy). Its template is ``page.html`` and what it does in the browser ``page.js``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

import numpy as np

import scbjax
from scbjax.base import StudyError
from scbjax.exploring.choosing import SAMPLES, STAGE, Panel
from scbjax.exploring.gathering import Gathered, MatrixData
from scbjax.exploring.opening import Results, attribute
from scbjax.exploring.words import (
    axis_description,
    axis_points,
    axis_title,
    facts_of,
    left_out,
    title_of,
)
from scbjax.plot.style import COLOURS

if TYPE_CHECKING:
    import xarray
    from bokeh.document import Document
    from bokeh.models import ColumnDataSource, LinearColorMapper, Model, Select
    from bokeh.plotting import figure as Figure  # noqa: N812 - a class

MARKER: Final = "scbjax explore"
"""Stands in a page, as what generated it."""
_HEIGHT, _TALL = 380, 540  # of matrices: with more rows than `_MANY`
_MANY: Final = 40
_CURVES_HEIGHT: Final = 190
_GRID: Final = "#e6e6e6"
_NOTHING: Final = "#d9d9d9"
_STAGE: Final = "#666666"
_ABOVE, _BELOW = COLOURS[1], COLOURS[4]  # beyond a colour scale: not among its own colours
_DASHES: Final = ("solid", "dashed", "dotdash", "dotted")
_READING: Final = (
    "A square is an entry; a matrix and what it should become share one scale, which is the same "
    "at all steps. Grey: there is no number. Orange and pink: above and below the scale, as in "
    "trajectories that diverge. Entries are kept to one part in 2048."
)
_STAGES: Final = " Dotted lines across the curves: a stage begins."
_MARKED: Final = " Framed entries of A: where Q is not zero."


@dataclass(frozen=True)
class Picture:
    """A matrix beside its truth, and the models that change.

    Attributes:
        figures: one, or two if the truth is known.
        changing: sources of the cells, of the marks and of the names of rows, the colour mapper
            and the title.
    """

    figures: tuple[Figure, ...]
    changing: tuple[Model, ...]


def check_bokeh() -> None:
    """Notices that what pages are built with is not installed.

    Raises:
        StudyError: it isn't; the sentence says how to install it.
    """
    if find_spec("bokeh") is None:
        raise StudyError(
            "an explorer needs the package bokeh, which is not installed: the extra explore of "
            "scbjax brings it, as in pip install 'scbjax[explore]'"
        )


def empty_size() -> int:
    """Bytes of a page without data: the library that draws it, its template and its words."""
    from bokeh.resources import INLINE, Resources

    scripts = Resources(mode=INLINE.mode, components=["bokeh", "bokeh-widgets"]).js_raw
    return sum(len(script.encode()) for script in scripts) + _WORDS


_WORDS: Final = 200_000  # template, models, names of rows and points: far less, but for many points


def make_page(results: Results, data: Gathered) -> str:
    """The page, as HTML.

    Args:
        results: of the study.
        data: what is shown of it.
    """
    from bokeh.document import Document
    from bokeh.embed import file_html
    from bokeh.models import ColumnDataSource, Slider, Toggle
    from bokeh.resources import INLINE

    frame = results.frame
    tall = any(own.learned.shape[2] > _MANY for own in data.matrices)
    selects = [_select(frame, axis, places) for axis, places in data.axes.items()]
    pictures = [_picture(own, tall=tall) for own in data.matrices]
    stages = ColumnDataSource({"step": []})
    panels = [
        _curves(panel, spread, stages, data)
        for panel, spread in zip(data.choice.panels, data.ranges, strict=True)
    ]
    slider = Slider(
        start=0, end=max(1, len(data.steps) - 1), step=1, value=0, name="step", title="Step",
        show_value=False, tooltips=False, sizing_mode="stretch_width",
    )  # fmt: skip
    play = Toggle(label="▶ Play", name="play", sizing_mode="stretch_width")
    figures = [figure for picture in pictures for figure in picture.figures]
    document = Document(title=title_of(frame))
    for root in (*selects, play, slider, *figures, *(panel for panel, _, _ in panels)):
        document.add_root(root)
    models = {
        "slider": slider,
        "play": play,
        "selects": selects,
        "pictures": [model for picture in pictures for model in picture.changing],
        "curve_sources": [source for _, source, _ in panels],
        "cursors": [cursor for _, _, cursor in panels],
        "stages": stages,
    }
    _tie(document, models, _data(results, data))
    names = {
        "axes": [select.name for select in selects],
        "matrices": [figure.name for figure in figures],
        "curves": [panel.name for panel, _, _ in panels],
    }
    page: str = file_html(
        document, INLINE, template=_own_text("page.html"),
        template_variables={**names, **_texts(results, data)}, suppress_callback_warning=True,
    )  # fmt: skip
    return page


def _texts(results: Results, data: Gathered) -> dict[str, Any]:
    """What the page says."""
    frame = results.frame
    marked = any(own.shown.has_truth and own.shown.matrix.by_weight for own in data.matrices)
    return {
        "marker": MARKER,
        "heading": title_of(frame),
        "question": attribute(frame, "question"),
        "facts": facts_of(frame),
        "notes": [*results.notes, *_without_truth(data)],
        "reading": "".join(
            [_READING, _MARKED if marked else "", _STAGES if STAGE in data.names else ""]
        ),
        "left_out": left_out(data),
        "version": scbjax.__version__,
        "source": results.source,
    }


def _data(results: Results, data: Gathered) -> dict[str, Any]:
    """What the page shows."""
    return {
        "meta": json.dumps(_meta(results, data)),
        "arrays": [array for own in data.matrices for array in _arrays(own)],
        "curves": data.curves.ravel(),
        "records": data.records,
        "diverged": data.diverged_at,
    }


def _own_text(name: str) -> str:
    return files("scbjax.exploring").joinpath(name).read_text(encoding="utf-8")


def _tie(document: Document, models: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    """Ties the models together: what happens when the page is there, and on each change."""
    from bokeh.events import DocumentReady, Tap
    from bokeh.models import CustomJS

    def call(what: str) -> CustomJS:
        # Until the page is ready there is nothing to call.
        return CustomJS(code=f"window.scbjaxExplorer?.{what}")

    document.js_on_event(
        DocumentReady, CustomJS(args={**models, **data}, code=_own_text("page.js"))
    )
    models["slider"].js_on_change("value", call("show()"))
    models["play"].js_on_change("active", call("toggle(cb_obj.active)"))
    for select in models["selects"]:
        select.js_on_change("value", call("choose()"))
    for root in document.roots:
        if str(root.name).startswith("curves"):
            root.js_on_event(Tap, call("near(cb_obj.x)"))


def _meta(results: Results, data: Gathered) -> dict[str, Any]:
    """What the page knows beside arrays."""
    frame = results.frame
    steps = frame["step"].to_numpy() if "step" in frame.coords else np.array(data.steps)
    told = [
        [name, f"{panel.label} {words}"]
        for panel in data.choice.panels
        for name, words in zip(panel.names, panel.words, strict=True)
    ]
    return {
        "title": title_of(frame),
        "axes": [
            {"name": axis.replace("_", " "), "points": _points(frame, axis, places)}
            for axis, places in data.axes.items()
        ],
        "steps": data.steps,
        "last_step": int(max(steps.max(initial=0), data.steps[-1])),
        "record_steps": data.record_steps,
        "names": data.names,
        "curves": [panel.names for panel in data.choice.panels],
        "told": [each for each in told if each[0] != SAMPLES][:2],
        "all_records": data.all_records,
        "matrices": [
            {
                "symbols": own.shown.matrix.symbols,
                "rows": own.learned.shape[2],
                "columns": own.learned.shape[3],
                "row_names": own.row_names,
                "all_rows": own.all_rows,
                "mark": own.shown.matrix.by_weight and own.shown.has_truth,
            }
            for own in data.matrices
        ],
    }


def _points(frame: xarray.Dataset, axis: str, places: Any) -> list[str]:  # noqa: ANN401 - of NumPy
    """The points of an axis that are kept; the browser tells them apart by their words."""
    points = axis_points(frame, axis)
    if len(set(points)) < len(points):
        points = [f"{point} ({number})" for number, point in enumerate(points)]
    return [points[place] for place in places]


def _select(frame: xarray.Dataset, axis: str, places: Any) -> Select:  # noqa: ANN401 - of NumPy
    """What chooses a point of an axis."""
    from bokeh.models import Select

    options = [(str(n), point) for n, point in enumerate(_points(frame, axis, places))]
    return Select(
        title=axis_title(frame, axis), description=axis_description(frame, axis),
        options=options, value="0", name=f"axis-{axis}",
        sizing_mode="stretch_width", disabled=len(options) < 2,
    )  # fmt: skip


def _arrays(own: MatrixData) -> tuple[Any, ...]:
    """The arrays of a matrix, flat; the bits of float16 as integers, which Bokeh can hand over."""
    arrays = own.learned.view(np.uint16), own.truth.view(np.uint16), own.rows, own.scale
    return tuple(np.ascontiguousarray(array).ravel() for array in (*arrays, own.elsewhere))


def _without_truth(data: Gathered) -> list[str]:
    """Says what is not shown since the study did not keep it."""
    names = [own.shown.matrix.symbols[1] for own in data.matrices if not own.shown.has_truth]
    if not names:
        return []
    verb = "are" if len(names) > 1 else "is"
    return [f"{' and '.join(names)} {verb} not shown: the study was run without record.truth."]


# ----------------------------------------------------------------------------------- matrices


def _picture(own: MatrixData, *, tall: bool) -> Picture:
    """A matrix and its truth, side by side, on one colour scale."""
    from bokeh.models import ColumnDataSource, LinearColorMapper
    from bokeh.palettes import Cividis256

    rows, columns = own.learned.shape[2:]
    y, x = (place.ravel() for place in np.indices((rows, columns)))
    nothing = np.zeros(rows * columns, np.float32)
    cells = ColumnDataSource(
        {
            "x": x, "y": y, "learned": nothing, "truth": nothing,
            "row_name": [""] * rows * columns,
            "column_name": [own.column_names[place] for place in x],
        }
    )  # fmt: skip
    marks = ColumnDataSource({"x": [], "y": []})
    names = ColumnDataSource({"name": [""] * rows})
    mapper = LinearColorMapper(
        palette=Cividis256, low=0, high=1, low_color=_BELOW, high_color=_ABOVE, nan_color=_NOTHING
    )
    kinds = ("learned", "truth") if own.shown.has_truth else ("learned",)
    figures = tuple(_heat_map(own, kind, (cells, names, mapper), tall=tall) for kind in kinds)
    if own.shown.has_truth and own.shown.matrix.by_weight:
        # Light and dark, so that one of the two stands out from any colour below it.
        for width, colour in ((2.0, "black"), (0.9, "white")):
            figures[0].rect(
                "x", "y", 1, 1, source=marks, fill_alpha=0, line_color=colour, line_width=width
            )
    return Picture(figures, (cells, marks, names, mapper, figures[0].title))


def _heat_map(
    own: MatrixData,
    kind: str,
    models: tuple[ColumnDataSource, ColumnDataSource, LinearColorMapper],
    *,
    tall: bool,
) -> Figure:
    """One matrix as squares, with what each is when it is pointed at."""
    from bokeh.models import (
        BasicTicker,
        ColorBar,
        CustomJSTickFormatter,
        FixedTicker,
        HoverTool,
        Range1d,
    )
    from bokeh.plotting import figure

    cells, names, mapper = models
    matrix, (rows, columns) = own.shown.matrix, own.learned.shape[2:]
    symbol = matrix.symbols[kind == "truth"]
    title = f"{symbol}, the truth" if kind == "truth" else symbol
    picture = figure(
        name=f"{matrix.learned}-{kind}", title=title, height=_TALL if tall else _HEIGHT,
        sizing_mode="stretch_width",
        x_range=Range1d(-0.5, columns - 0.5), y_range=Range1d(rows - 0.5, -0.5),
        x_axis_label=matrix.columns, y_axis_label=matrix.rows, tools="", toolbar_location=None,
        min_border_right=8,
    )  # fmt: skip
    colour = {"field": kind, "transform": mapper}
    squares = picture.rect("x", "y", 1, 1, source=cells, fill_color=colour, line_color=colour)
    tips = [
        (matrix.rows, "@row_name"),
        (matrix.columns, "@column_name"),
        (matrix.symbols[0], "@learned{0.0000}"),
    ]
    tips += [(matrix.symbols[1], "@truth{0.0000}")] if own.shown.has_truth else []
    picture.add_tools(HoverTool(renderers=[squares], tooltips=tips))
    few = max(1, -(-columns // 8))
    picture.xaxis.ticker = FixedTicker(ticks=list(range(0, columns, few)))
    picture.xaxis.major_label_overrides = dict(enumerate(own.column_names))
    picture.yaxis.ticker = BasicTicker(min_interval=1, desired_num_ticks=12)
    picture.yaxis.formatter = CustomJSTickFormatter(
        args={"names": names}, code="return names.data.name[Math.round(tick)] ?? ''"
    )
    picture.axis.minor_tick_line_color = None
    picture.grid.visible = False
    picture.add_layout(
        ColorBar(
            color_mapper=mapper, orientation="horizontal", height=8, padding=4, title=None,
            ticker=BasicTicker(desired_num_ticks=3), major_label_text_font_size="11px",
        ),
        "below",
    )  # fmt: skip
    return picture


# ------------------------------------------------------------------------------------- curves


def _curves(
    panel: Panel, spread: tuple[float, float], stages: ColumnDataSource, data: Gathered
) -> tuple[Figure, ColumnDataSource, Model]:
    """Curves of one kind, with lines where stages begin, and a cursor at the step that is shown."""
    from bokeh.models import ColumnDataSource, Legend, Range1d, Span
    from bokeh.plotting import figure

    nothing = [0.0] * len(data.record_steps)
    source = ColumnDataSource({"step": nothing, **dict.fromkeys(panel.names, nothing)})
    first, last = data.record_steps[0], data.record_steps[-1]
    picture = figure(
        name=f"curves-{panel.names[0]}", frame_height=_CURVES_HEIGHT,
        sizing_mode="stretch_width", x_range=Range1d(first, max(last, first + 1)),
        y_range=Range1d(*spread), x_axis_label="step", y_axis_label=panel.label, tools="",
        toolbar_location=None, min_border_right=24,
    )  # fmt: skip
    lines = []
    for place, (name, words) in enumerate(zip(panel.names, panel.words, strict=True)):
        line = picture.line(
            "step", name, source=source, line_color=COLOURS[place], line_width=2,
            line_dash=_DASHES[place],
        )  # fmt: skip
        lines.append((words, [line]))
    picture.add_layout(
        Legend(
            items=lines,
            location="left",
            border_line_color=None,
            label_text_font_size="12px",
            padding=2,
            spacing=0,
        ),
        "below",
    )
    picture.grid.grid_line_color = _GRID
    picture.vspan(x="step", source=stages, line_color=_STAGE, line_dash="dotted", line_width=1.5)
    cursor = Span(location=first, dimension="height", line_color="black", line_width=1.5)
    picture.add_layout(cursor)
    return picture, source, cursor
