"""What everybody imports: how parameters, variables and experiments are declared.

An :class:`Experiment` says what can be set (:class:`Parameter`) and what is recorded
(:class:`Variable`), and builds pure functions (:class:`Functions`) for what changes the program.
The engine in :mod:`scbjax.sweep` runs any of them and knows nothing else of this library; the
library's own are in :mod:`scbjax.experiments`. Nothing here imports JAX, so that studies are read,
checked and planned without it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, get_args

from scbjax.costs import Cost
from scbjax.tables import nearest
from scbjax.values import FLOAT32_MAX, INT32_MAX, Check, Choice, FieldValue, Interval, Values

Kind: TypeAlias = Literal["static", "traced", "data", "run"]
Layer: TypeAlias = Literal["outer", "inner"]
Tree: TypeAlias = Any
"""An array of JAX, or a tree of them."""

NOT_DIVERGED = -1
"""In the place of the step at which a trajectory diverged, where it did not."""


class StudyError(ValueError):
    """Something is wrong with what the user asked for; its text is one sentence for the user."""


_TYPES = (int, float, bool, str)
_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


class Required:
    """The default of a field that has none: a study must give it."""

    def __repr__(self) -> str:
        return "required"


REQUIRED = Required()


@dataclass(frozen=True)
class Parameter:
    """One thing that a study may set: a field of it, named by its dotted path (``train.l1``).

    How a sweep over it is run:

    * ``static``: it changes shapes or the program, so each value costs a compilation;
    * ``traced``: it is an array inside one program, so many values share a compilation;
    * ``data``: a seed, folded into a random key;
    * ``run``: it holds for the study as a whole and can't be swept.

    The layer says where the planner vmaps: ``outer`` ones change what is learned from; ``inner``
    ones leave it alone, so trajectories that differ only there see the same batches.

    Attributes:
        path: dotted path in a study file; the last component is its short name.
        type: `int`, `float`, `bool` or `str`; of each entry where `many` is set.
        default: the value of a study that doesn't give it; `None` leaves the choice to the library.
        kind: how a sweep over it is run, see above.
        layer: where it is vmapped, see above.
        help: what it is, in one line.
        check: the values that are allowed; `None` allows every value of the type.
        many: the field holds a list.
        sweepable: it may be an axis.
        symbol: as matplotlib mathtext; empty if it has none.
        draws: what is learned depends on it, though it is of the inner layer.
        always_float32: it is held in float32 whatever numbers the study computes in.
    """

    path: str
    type: type
    default: FieldValue | Required
    kind: Kind
    layer: Layer
    help: str
    check: Check = None
    many: bool = False
    sweepable: bool = True
    symbol: str = ""
    draws: bool = False
    always_float32: bool = False

    def __post_init__(self) -> None:
        """Refuses what is none.

        Raises:
            StudyError: says what of it is not allowed.
        """
        name = f"parameter {self.path!r}"
        if not _PATH.fullmatch(str(self.path)):
            raise StudyError(f"{name} must be called by letters, digits, _ and a dot: 'train.rate'")
        if self.type not in _TYPES:
            known = ", ".join(each.__name__ for each in _TYPES)
            raise StudyError(f"{name} has the type {self.type!r}; it must be one of {known}")
        for what, value, names in (
            ("kind", self.kind, get_args(Kind)),
            ("layer", self.layer, get_args(Layer)),
        ):
            if value not in names:
                raise StudyError(
                    f"{name} has the {what} {value!r}; it must be one of {', '.join(names)}"
                    f"{nearest(str(value), names)}"
                )
        if not self._may_be(self.default):
            raise StudyError(f"{name} has the default {self.default!r}; it must be {self.allowed}")

    def _may_be(self, default: object) -> bool:
        """Whether something may be the default: what is allowed, or what leaves it open."""
        if default is None or isinstance(default, Required):
            return True
        entries = default if self.many and isinstance(default, tuple) else (default,)
        types = (int, float) if self.type is float else (self.type,)
        right = all(type(entry) in types for entry in entries)
        return right and (self.check is None or all(e in self.check for e in entries))

    @property
    def short(self) -> str:
        """The last component of the path, which names the axis over this field."""
        return short_name(self.path)

    @property
    def table(self) -> str:
        """The table of the study file that the field stands in; empty at the top level."""
        return self.path.rpartition(".")[0]

    @property
    def allowed(self) -> str:
        """What the field may hold, as the end of a sentence 'it must be ...'."""
        if isinstance(self.check, Choice):
            return str(self.check)
        finite = isinstance(self.check, Interval) and self.check.high == FLOAT32_MAX
        noun = {int: "an integer", bool: "true or false", str: "a string"}.get(
            self.type, "a finite number" if finite else "a number"
        )
        return noun if self.check is None else f"{noun} {self.check}"


def short_name(path: str) -> str:
    """The last component of a dotted path, which names the axis over that parameter."""
    return path.rpartition(".")[2]


# The engine itself needs these of every experiment: a trajectory is a number of steps, with a
# record at the start and after every so many of them.
STEPS = Parameter(
    "train.steps",
    int,
    REQUIRED,
    "static",
    "outer",
    "Steps of a trajectory",
    Interval(1, INT32_MAX),
    sweepable=False,
)
RECORD_EVERY = Parameter(
    "train.record_every",
    int,
    REQUIRED,
    "static",
    "outer",
    "Steps between two records; divides the number of steps",
    Interval(1, INT32_MAX),
    sweepable=False,
)


@dataclass(frozen=True)
class Variable:
    """One array of a dataset.

    Attributes:
        long_name: what it is, in words.
        symbol: as matplotlib mathtext; empty if it has none.
        units: ``"1"`` for pure numbers.
        dtype: ``"float32"``, which stands for the numbers that a study computes in, or ``"int32"``.
        dims: its own dimensions, after those of the study's axes and ``step``.
        depends_on: paths of the parameters that it depends on beside the seed of the task, where it
            is the task's; None for what all parameters may change.
    """

    long_name: str
    symbol: str = ""
    units: str = "1"
    dtype: str = "float32"
    dims: tuple[str, ...] = ()
    depends_on: frozenset[str] | None = None


@dataclass(frozen=True)
class Relation:
    """A condition on several parameters at one point of a sweep, and the sentence if it fails.

    Attributes:
        paths: of the parameters.
        holds: of their values, in that order.
        sentence: with a pair of braces for each of the values.
        hint: what a study may do instead.
    """

    paths: tuple[str, ...]
    holds: Callable[..., bool]
    sentence: str
    hint: str = ""

    def refusal(self, values: Sequence[Any], *, short: bool = False) -> str:
        """What is wrong with values of the parameters; nothing where they may stand together.

        Args:
            values: in the order of the paths.
            short: whether parameters are called by the last part of their paths, and no study is
                spoken of.

        >>> fits = Relation(("a.x", "b.y"), lambda x, y: x < y, "a.x = {} is not below b.y = {}")
        >>> fits.refusal((1, 2)), fits.refusal((2, 1), short=True)
        ('', 'x = 2 is not below y = 1')
        """
        if self.holds(*values):
            return ""
        sentence = self.sentence
        if short:
            for path in self.paths:
                sentence = sentence.replace(path, path.rpartition(".")[2])
        elif self.hint:
            sentence += f"; {self.hint}"
        return sentence.format(*values)


RECORDS_FIT = Relation(
    (STEPS.path, RECORD_EVERY.path),
    lambda steps, every: steps % every == 0,
    f"{STEPS.path} = {{}} is not a multiple of {RECORD_EVERY.path} = {{}}",
)


@dataclass(frozen=True)
class Lowering:
    """Points that are computed as other points, so that they share a program and its batches.

    Attributes:
        reads: paths of what tells such points.
        writes: paths of what may be changed at them.
        apply: of the values at a point, or of some of them; gives them as they are computed.
    """

    reads: frozenset[str]
    writes: frozenset[str]
    apply: Callable[[Values], dict[str, Any]]


@dataclass(frozen=True)
class Keys:
    """The random keys of a trajectory, made of its seeds alone, wherever it stands in the sweep.

    Attributes:
        make: the key of a seed (``"task_seed"``, ``"init_seed"`` or ``"data_seed"``, which are
            ``seed`` where a study leaves them out) and of a number, its stream.
    """

    make: Callable[[str, int], Tree]

    @property
    def task(self) -> Tree:
        """The key of what is to be learned."""
        return self.make("task_seed", 0)

    @property
    def start(self) -> Tree:
        """The key of the initial state."""
        return self.make("init_seed", 1)

    @property
    def data(self) -> Tree:
        """The key of the batches."""
        return self.make("data_seed", 2)

    def more(self, stream: int) -> Tree:
        """Another key of the seed of the task, by a number from 3."""
        return self.make("task_seed", stream)


def nothing(*_: object) -> Mapping[str, Any]:
    """What a function of an experiment gives that has nothing to give."""
    return {}


class Functions(NamedTuple):
    """What the engine maps and compiles: pure functions of one trajectory, in JAX.

    ``values`` are scalars by dotted path, of all parameters that are numbers and not static; a task
    and a state are any trees of arrays.

    Attributes:
        draw: (keys, values) to the task. Of the values of the inner layer it is given those alone
            whose parameters say that they draw, so that all learners of an outer point share what
            they learn from.
        start: (keys, values, task) to the initial state.
        take_record: (keys, values, task, state, index) to the state at record number ``index``,
            from 0 for the start, and to the scalars or arrays recorded there by name; given the
            state at the record before. :func:`in_turn` makes one of its two halves.
        is_finite: a state to whether the trajectory still makes sense.
        constants: a task to what there is one number of for each trajectory, by name.
        kept: a state to what ``record.final`` and ``record.snapshots`` keep, by name.
        truth: a task to what ``record.truth`` keeps, by name.
        along_inner: how a task varies along the inner layer where a parameter of it that draws is
            swept there: axes as those of ``vmap``.
    """

    draw: Callable[[Keys, Values], Any]
    start: Callable[[Keys, Values, Any], Any]
    take_record: Callable[[Keys, Values, Any, Any, Any], tuple[Any, Mapping[str, Any]]]
    is_finite: Callable[[Any], Any]
    constants: Callable[[Any], Mapping[str, Any]] = nothing
    kept: Callable[[Any], Mapping[str, Any]] = nothing
    truth: Callable[[Any], Mapping[str, Any]] = nothing
    along_inner: Any = 0


class SearchRules(NamedTuple):
    """What a search needs to know of an experiment.

    Attributes:
        size: path of a size that makes problems harder, such as that of a context.
        batch_size: path of the samples of a step.
        samples: variable that counts the samples used.
        stage: variable that rises above 1 when the first stage is over.
        goal: variable that a search looks at unless a study names another.
        fit: relations of the experiment that the ``train.record_every`` of a point is part of.
    """

    size: str
    batch_size: str
    samples: str
    stage: str
    goal: str
    fit: tuple[Relation, ...] = ()


class CheckedStudy(Protocol):
    """What an experiment sees of a study when it checks it."""

    @property
    def base(self) -> Values:
        """The values that are not swept."""
        ...

    def combinations(self, paths: tuple[str, ...]) -> Iterator[tuple[Any, ...]]:
        """The values that some parameters take together."""
        ...

    def count_combinations(self, paths: tuple[str, ...]) -> int:
        """How many of them there are."""
        ...


@dataclass(frozen=True, eq=False)
class Experiment:
    """All that the engine knows of what it runs.

    Attributes:
        name: what studies call it; letters, digits and _.
        parameters: what can be set in a study, beside seeds and what is recorded; :data:`STEPS` and
            :data:`RECORD_EVERY` among them.
        build: (fixed values, values of those that vary, by path) to the functions; may import JAX.
        variables: what can be recorded, by name.
        default_record: what is recorded unless a study says otherwise; empty for all.
        constants: what `Functions.constants` gives.
        kept: what `Functions.kept` gives.
        truth: what `Functions.truth` gives.
        dims: the dimensions of all these.
        sizes: the length of each of them, by the values of a point.
        size_paths: of the parameters that the sizes depend on.
        live: the variable that is shown while a run goes on; the first one recorded if left out.
        relations: what values must say together.
        check: raises a `StudyError` for what else is wrong with a study.
        warn: lines about a study that can't work, told before it runs.
        cause: of the values and constants of a trajectory that diverged, the likely cause.
        dtype: the numbers that a point is computed in, by its values.
        lowering: points that are computed as others.
        cost: what trajectories take; measured by compiling a few of them where it is left out.
        search: what searches need to know; None where there are none.
        source: the text of the file that it was read from; empty for those of a package.
    """

    name: str
    parameters: tuple[Parameter, ...]
    build: Callable[[Values, Mapping[str, tuple[Any, ...]]], Functions]
    variables: Mapping[str, Variable]
    default_record: tuple[str, ...] = ()
    constants: Mapping[str, Variable] = field(default_factory=dict)
    kept: Mapping[str, Variable] = field(default_factory=dict)
    truth: Mapping[str, Variable] = field(default_factory=dict)
    dims: Mapping[str, Variable] = field(default_factory=dict)
    sizes: Callable[[Values], Mapping[str, int]] = nothing
    size_paths: tuple[str, ...] = ()
    live: str = ""
    relations: tuple[Relation, ...] = ()
    check: Callable[[CheckedStudy], object] = nothing
    warn: Callable[[CheckedStudy], list[str]] = lambda _: []
    cause: Callable[[Values, Mapping[str, float]], str] | None = None
    dtype: Callable[[Values], str] = lambda _: "float32"
    lowering: Lowering | None = None
    cost: Cost | None = None
    search: SearchRules | None = None
    source: str = ""

    def __post_init__(self) -> None:
        """Completes what can be worked out.

        Raises:
            StudyError: a part of it does not fit the others; the text says which.
        """
        if not self.name.isidentifier():
            raise StudyError(
                f"the name of an experiment must be letters, digits and _, got {self.name!r}"
            )
        paths = [parameter.path for parameter in self.parameters]
        if missing := [p.path for p in (STEPS, RECORD_EVERY) if p.path not in paths]:
            raise StudyError(f"experiment {self.name!r} lacks the parameters {', '.join(missing)}")
        if bare := [path for path in paths if "." not in path]:
            raise StudyError(
                f"experiment {self.name!r} has a parameter {bare[0]!r} in no table of a study; "
                f"call it 'train.{bare[0]}', or by another table"
            )
        shorts = [short_name(path) for path in paths]
        if twice := sorted({short for short in shorts if shorts.count(short) > 1}):
            raise StudyError(f"experiment {self.name!r} has two parameters called {twice[0]!r}")
        if not self.variables:
            raise StudyError(f"experiment {self.name!r} records nothing; name a variable")
        if self.search is not None:
            self._check_search(self.search, paths)
        if not self.default_record:
            object.__setattr__(self, "default_record", tuple(self.variables))

    def _check_search(self, rules: SearchRules, paths: list[str]) -> None:
        """That what the rules of searches name is there."""
        read = (path for relation in rules.fit for path in relation.paths)
        parameters = (rules.size, rules.batch_size, *read)
        variables = (rules.samples, rules.stage, rules.goal)
        for kind, names, known in (
            ("parameter", parameters, paths),
            ("variable", variables, [*self.variables]),
        ):
            for name in names:
                if name not in known:
                    raise StudyError(
                        f"the search rules of experiment {self.name!r} name the {kind} {name!r}, "
                        f"which it does not have{nearest(name, known)}"
                    )


def in_turn(
    advance: Callable[[Keys, Values, Any, Any, Any], Any],
    observe: Callable[[Keys, Values, Any, Any, Any], Mapping[str, Any]],
    record_every: int,
) -> Callable[[Keys, Values, Any, Any, Any], tuple[Any, Mapping[str, Any]]]:
    """The ``take_record`` of :class:`Functions`, of what leads to a record and what is recorded.

    Args:
        advance: (keys, values, task, state, step) to the state ``record_every`` steps later.
        observe: (keys, values, task, state, step) to scalars or arrays by name.
        record_every: steps between two records.
    """

    def take_record(
        keys: Keys, values: Values, task: Tree, state: Tree, index: Tree
    ) -> tuple[Any, Mapping[str, Any]]:
        import jax

        before = jax.numpy.maximum(index - 1, 0) * record_every
        state = jax.lax.cond(
            index > 0,
            lambda state: advance(keys, values, task, state, before),
            lambda state: state,
            state,
        )
        return state, observe(keys, values, task, state, index * record_every)

    return take_record
