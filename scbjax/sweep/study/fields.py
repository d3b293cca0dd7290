"""The fields of a study: the one table that loading, overrides, planning and documentation read.

Seeds, what is recorded and searches are the engine's own and the same for all studies; everything
else is declared by the experiment that a study is about (:class:`scbjax.base.Experiment`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache

from scbjax.base import Experiment, Parameter, Required, StudyError
from scbjax.sweep.study.own import own_experiment, own_experiments
from scbjax.tables import brief, nearest
from scbjax.values import FLOAT32_MAX, FLOAT32_TINY, INT32_MAX, Choice, FieldValue, Interval, Scalar

DRAWN = "drawn_"
"""Stands before the name of a constant that is also the name of an axis."""

MAX_AXIS_POINTS = 1_000_000
"""The coordinates of an axis are held in host memory."""

_USED = ("step", "snapshot", "diverged_at", "probe", "samples_to_goal", "samples_to_switch")
_SEED = Interval(0, INT32_MAX)
_NONNEGATIVE = Interval(0.0, FLOAT32_MAX)
_POSITIVE = Interval(0.0, FLOAT32_MAX, above=True)

_SEEDS = (
    Parameter(
        "seed", int, 0, "data", "outer", "Seed of the task, the initial state and the data", _SEED
    ),
    Parameter(
        "task_seed", int, None, "data", "outer", "Seed of the task alone; `seed` if left out", _SEED
    ),
    Parameter(
        "data_seed",
        int,
        None,
        "data",
        "outer",
        "Seed of the batches alone; `seed` if left out",
        _SEED,
    ),
    Parameter(
        "init_seed",
        int,
        None,
        "data",
        "inner",
        "Seed of the initial state alone; `seed` if left out",
        _SEED,
    ),
    Parameter(
        "root_seed",
        int,
        0,
        "run",
        "outer",
        "Root that every other seed is folded into",
        _SEED,
        sweepable=False,
    ),
)


SEED_NAMES = frozenset(field.path for field in _SEEDS if field.kind == "data")
"""Fields whose points are repetitions."""


def _record(experiment: Experiment) -> tuple[Parameter, ...]:
    """What can be said about what is recorded."""
    return (
        Parameter(
            "record.variables",
            str,
            experiment.default_record,
            "run",
            "inner",
            "What is recorded",
            Choice(tuple(experiment.variables)),
            many=True,
            sweepable=False,
        ),
        Parameter(
            "record.final",
            bool,
            False,
            "run",
            "inner",
            "Keep the parameters at the end",
            sweepable=False,
        ),
        Parameter(
            "record.truth",
            bool,
            False,
            "run",
            "inner",
            "Keep what is to be learned",
            sweepable=False,
        ),
        Parameter(
            "record.snapshots",
            int,
            (),
            "run",
            "inner",
            "Steps at which the parameters are kept; multiples of record_every",
            Interval(0, INT32_MAX),
            many=True,
            sweepable=False,
        ),
    )


def _search(experiment: Experiment) -> tuple[Parameter, ...]:
    """What can be said about a search."""
    return tuple(
        Parameter(f"search.{name}", kind, default, "run", "inner", text, check, sweepable=False)
        for name, kind, default, text, check in (
            (
                "field",
                str,
                None,
                "Look for the best value of this number; the study is an ordinary one if left out",
                None,
            ),
            (
                "first",
                float,
                None,
                "Lower end of the range that is looked through first",
                _POSITIVE,
            ),
            ("last", float, None, "Upper end of it", _POSITIVE),
            ("points", int, 4, "Values in each round, evenly spaced logarithms", Interval(3, 64)),
            (
                "rounds",
                int,
                3,
                "Rounds; each looks more closely around the best value",
                Interval(1, 9),
            ),
            (
                "goal",
                str,
                experiment.search.goal if experiment.search else experiment.default_record[0],
                "What has to come to the level; the best value needs the fewest samples for that",
                Choice(tuple(experiment.variables)),
            ),
            (
                "direction",
                str,
                "falls",
                "Whether the goal is reached when it falls to the level or when it rises to it",
                Choice(("falls", "rises")),
            ),
            ("level", float, 0.1, "The level", _NONNEGATIVE),
            (
                "share",
                float,
                0.9,
                "Share of the seeds that have to reach the goal",
                Interval(0.0, 1.0, above=True),
            ),
            (
                "growth",
                float,
                0.0,
                "Samples that a run may use grow as T to this power, from those of the smallest T",
                Interval(0.0, 4.0),
            ),
        )
    )


class Fields(Mapping[str, Parameter]):
    """Every field of the studies of an experiment by its dotted path.

    Attributes:
        tables: of a study file that hold fields.
        reserved: names that datasets use themselves, so that no zip may be called so.
    """

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment
        parts = (_SEEDS, experiment.parameters, _record(experiment), _search(experiment))
        self._by_path = {field.path: field for part in parts for field in part}
        # A short name of the experiment's is its own, even if a field of records or of searches has
        # the same one; seeds are everybody's.
        ranked = (*_record(experiment), *_search(experiment), *experiment.parameters, *_SEEDS)
        self._by_short = {field.short: field.path for field in ranked}
        self.tables = tuple(dict.fromkeys(f.table for f in self._by_path.values() if f.table))
        self.reserved = _names_used(experiment)

    def __getitem__(self, path: str) -> Parameter:
        return self._by_path[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_path)

    def __len__(self) -> int:
        return len(self._by_path)

    def find(self, name: str) -> Parameter:
        """Returns the field of a dotted path or short name.

        Args:
            name: such as ``train.l1`` or ``l1``.

        Raises:
            StudyError: no field has that name; the nearest one is suggested, or the experiment of
                the library's that has it.
        """
        path = name if name in self else self._by_short.get(name)
        if path is not None:
            return self[path]
        if name in self.tables:
            known = self._in_table(name)[0]
            raise StudyError(f"{name} is a table; name one of its fields, such as {known}")
        table, _, short = name.rpartition(".")
        if short in self._by_short:
            hint = f"; did you mean '{self._by_short[short]}'?"
        else:
            near = nearest(name, [*self, *self._by_short] if not table else self)
            hint = _elsewhere(name, self._experiment) or near
        # Those of searches are few users' and would make the list of all twice as hard to read.
        common = [field.short for field in self.values() if field.table != "search"]
        listed = ", ".join(self._in_table(table) if table in self.tables else common)
        raise StudyError(f"unknown field {shown(name)}{hint or f' (fields: {listed})'}")

    def _in_table(self, table: str) -> list[str]:
        return [path for path, field in self.items() if field.table == table]

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


def _elsewhere(name: str, experiment: Experiment) -> str:
    """Which other experiment has a field, where both are the library's."""
    own = [own_experiment(known) for known in own_experiments()]
    if experiment not in own:
        return ""
    having = [
        other
        for other in own
        if any(name in (parameter.path, parameter.short) for parameter in other.parameters)
    ]
    if not having:
        return ""
    # Of several the one that is most like this one.
    paths = {parameter.path for parameter in experiment.parameters}
    nearest_one = max(having, key=lambda other: len(paths & {p.path for p in other.parameters}))
    return f'; experiment = "{nearest_one.name}" has it'


def _names_used(experiment: Experiment) -> frozenset[str]:
    kept = (*experiment.kept, *(f"{name}_snapshots" for name in experiment.kept))
    constants = (*experiment.constants, *(f"{DRAWN}{name}" for name in experiment.constants))
    own = (*tuple(experiment.variables), *experiment.truth, *experiment.dims, *kept, *constants)
    return frozenset({*_USED, *own})


@lru_cache(maxsize=64)
def fields_of(experiment: Experiment) -> Fields:
    """The fields of the studies of an experiment."""
    return Fields(experiment)


def shown(value: object) -> str:
    """Returns a value as one short line of an error message.

    >>> shown([1, 2])
    '[1, 2]'
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    return brief(value)


def read_value(field: Parameter, raw: object) -> FieldValue:
    """Returns the value of a field as its own type.

    Args:
        field: the field.
        raw: what a study file or an override gave; for a list field, a list or, if it holds
            integers, ``{"range": [start, stop, step]}``.

    Returns:
        The value; an integer becomes a float where the field holds floats.

    Raises:
        StudyError: the value has the wrong type or lies outside what the field allows.

    >>> read_value(Parameter("train.l1", float, 0.0, "traced", "inner", "Weight"), 1)
    1.0
    """
    if not field.many:
        return read_scalar(field, raw)
    if field.type is int and isinstance(raw, Mapping) and set(raw) == {"range"}:
        raw = list(read_range(field.path, raw["range"]))
    if not isinstance(raw, list | tuple):
        or_range = " or { range = [start, stop, step] }" if field.type is int else ""
        raise StudyError(f"{field.path} must be a list{or_range}, got {shown(raw)}")
    values = tuple(read_scalar(field, entry) for entry in raw)
    if len(set(values)) < len(values):
        raise StudyError(f"{field.path} must not repeat an entry, got {shown(raw)}")
    return values  # type: ignore[return-value]


def read_range(what: str, bounds: object) -> range:
    """Returns the integers of a range, as Python has them: without `stop`.

    Args:
        what: holds it, for messages.
        bounds: ``[start, stop]`` or ``[start, stop, step]``.

    Raises:
        StudyError: the bounds are something else, or make more than `MAX_AXIS_POINTS` integers.

    >>> read_range("record.snapshots", [0, 10, 5])
    range(0, 10, 5)
    """
    sound = (
        isinstance(bounds, list | tuple)
        and len(bounds) in {2, 3}
        and all(type(bound) is int and abs(bound) <= INT32_MAX for bound in bounds)
    )
    if not sound or not isinstance(bounds, list | tuple) or (len(bounds) == 3 and bounds[2] <= 0):
        raise StudyError(
            f"range of {what} must be [start, stop] or [start, stop, step], integers "
            f"with a step above 0, got {shown(bounds)}"
        )
    points = range(*bounds)
    if len(points) > MAX_AXIS_POINTS:
        raise StudyError(
            f"{what} has {len(points)} points; at most {MAX_AXIS_POINTS} fit in a study"
        )
    return points


def read_scalar(field: Parameter, raw: object) -> Scalar:
    """Returns one value, or one entry of a list, as the field's own type; see `read_value`."""
    value = _as_type(field, raw)
    if isinstance(field.check, Interval) and not isinstance(value, str):
        allowed = value in field.check
        if allowed and isinstance(value, float) and 0 < abs(value) < FLOAT32_TINY:
            raise StudyError(
                f"{field.path} must be zero or at least {FLOAT32_TINY:.2g} in size, "
                f"the smallest float32 number, got {shown(raw)}"
            )
    else:
        allowed = not isinstance(field.check, Choice) or value in field.check.options
    if allowed:
        return value
    raise _not_allowed(field, raw)


def _as_type(field: Parameter, raw: object) -> Scalar:
    # bool is a subclass of int in Python, but a study that writes `steps = true` is mistaken.
    if field.type is float and isinstance(raw, int | float) and not isinstance(raw, bool):
        try:
            return float(raw)
        except OverflowError:
            raise _not_allowed(field, raw) from None
    if isinstance(raw, bool | int | str) and type(raw) is field.type:
        return raw
    raise _not_allowed(field, raw)


def _not_allowed(field: Parameter, raw: object) -> StudyError:
    hint = ""
    if isinstance(field.check, Choice) and isinstance(raw, str):
        hint = nearest(raw, field.check.options)
        if hint and field.path in {
            "record.variables",
            "search.goal",
        }:  # the list would bury the suggestion
            return StudyError(f"{field.path} can't hold {shown(raw)}{hint}")
    elif isinstance(raw, list) and field.sweepable:
        hint = f"; to sweep it, give axes.{field.short} a list"
    subject = f"each entry of {field.path}" if field.many else field.path
    return StudyError(f"{subject} must be {field.allowed}, got {shown(raw)}{hint}")


def field_table(fields: Fields) -> str:
    """Returns the table of all fields in Markdown, for the documentation."""
    rows = [
        "| field | holds | default | sweep | meaning |",
        "|---|---|---|---|---|",
    ]
    for field in fields.values():
        sweep = field.kind if field.sweepable else "no"
        holds = field.allowed
        if field.many:
            holds = "a list of variables" if field.type is str else f"a list or range, each {holds}"
        meaning = field.help.replace("|", r"\|")
        rows.append(f"| `{field.path}` | {holds} | {_default_text(field)} | {sweep} | {meaning} |")
    return "\n".join(rows) + "\n"


def _default_text(field: Parameter) -> str:
    if isinstance(field.default, Required):
        return "required"
    if isinstance(field.default, tuple):
        return "the usual ones" if field.default else "none"
    return "" if field.default is None else shown(field.default)
