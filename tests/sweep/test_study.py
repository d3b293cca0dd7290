"""Studies: what is read from files and overrides, and the sentence for everything that is wrong."""

import codecs
import dataclasses
import inspect
import math
import subprocess
import sys
from array import array
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import assume, given

from scbjax import settings as learner_settings, task
from scbjax.base import Parameter, Required
from scbjax.experiments.scb import EXPERIMENT
from scbjax.recorded import DEFAULT_RECORD, OBSERVABLES
from scbjax.settings import STATIC_FIELDS, Settings
from scbjax.sweep.plan.plans import make_plan
from scbjax.sweep.search import first_studies
from scbjax.sweep.study import definition, fields, locating
from scbjax.sweep.study.cells import is_search
from scbjax.sweep.study.experiments import find_experiment
from scbjax.sweep.study.fields import fields_of
from scbjax.sweep.study.files import (
    Axis,
    Study,
    StudyError,
    fingerprint,
    load_study,
    parse_study,
    to_toml,
)
from scbjax.sweep.study.locating import find_studies
from scbjax.values import FLOAT32_TINY, INT32_MAX, Choice, Interval

FIELDS = fields_of(EXPERIMENT)
MINIMAL = """
title = "A study"
[task]
num_tokens = 3
context_length = 50
sparsity = 2
[train]
batch_size = 8
steps = 100
record_every = 10
"""


def parse(extra: str = "", overrides: tuple[str, ...] = ()) -> Study:
    return parse_study(MINIMAL + extra, "x", overrides, source="x.toml")


def message(extra: str = "", overrides: tuple[str, ...] = ()) -> str:
    with pytest.raises(StudyError) as error:
        parse(extra, overrides)
    return str(error.value)


# ---------------------------------------------------------------------------- the table of fields


def test_fields_match_the_settings_of_a_trajectory() -> None:
    for setting in dataclasses.fields(Settings):
        if setting.name == "record":
            continue
        field = FIELDS.find(setting.name)
        kind = "static" if setting.name in STATIC_FIELDS else "traced"
        assert field.kind == kind
        required = setting.default is dataclasses.MISSING
        assert isinstance(field.default, Required) == required
        assert required or field.default == setting.default
        assert required or type(field.default) is type(setting.default)
    names = {setting.name for setting in dataclasses.fields(Settings)} - {"record"}
    tables = {"train", "model", "transfer"}
    found = {field.short for field in FIELDS.values() if field.table in tables}
    assert found - names == {"correlation"}  # of the related task, not of the trajectory
    assert names <= found


@pytest.mark.parametrize("name", sorted(learner_settings._CHOICES))
def test_choices_match_those_of_a_trajectory(name: str) -> None:
    check = FIELDS.find(name).check
    assert isinstance(check, Choice)
    assert check.options == tuple(learner_settings._CHOICES[name])


def test_fields_of_the_task_match_random_task() -> None:
    arguments = inspect.signature(task.random_task).parameters
    for field in FIELDS.values():
        if field.table == "task" and field.short != "dtype":
            default = arguments[field.short].default
            required = default is inspect.Parameter.empty
            assert isinstance(field.default, Required) == required
            assert required or field.default == default


@pytest.mark.parametrize("name", ["bfloat16", "float16", "bf16"])
def test_studies_know_two_precisions(name: str) -> None:
    """What bfloat16 makes of a step is measured by a benchmark, and nothing else uses it."""
    said = message(overrides=(f"dtype={name}",))
    assert f"task.dtype must be one of 'float32', 'float64', got '{name}'" in said


def test_recordable_variables_are_the_observables() -> None:
    assert list(OBSERVABLES) == list(EXPERIMENT.variables)
    assert FIELDS["record.variables"].default == DEFAULT_RECORD


def test_short_names_are_unique() -> None:
    shorts = [field.short for field in FIELDS.values()]
    assert len(set(shorts)) == len(shorts)


def test_every_default_is_allowed() -> None:
    for field in FIELDS.values():
        if field.default is not None and not isinstance(field.default, Required):
            assert fields.read_value(field, field.default) == field.default


def test_documentation_has_a_row_for_every_field() -> None:
    rows = fields.field_table(FIELDS).splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == list(FIELDS)


def test_reading_a_study_loads_neither_jax_nor_numpy() -> None:
    code = (
        "import sys; from scbjax.sweep.study.files import parse_study;"
        f"parse_study({MINIMAL!r}, 'x');"
        "print(sorted({'jax', 'numpy', 'xarray', 'matplotlib'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


# ---------------------------------------------------------------------------- what is read


def test_a_minimal_study_has_every_default() -> None:
    read = parse()
    assert set(read.base) == set(FIELDS)
    assert read.title == "A study"
    assert read.base["train.steps"] == 100
    assert read.base["task_seed"] is None
    assert read.axes == ()
    assert read.num_trajectories == 1
    assert read.variables == DEFAULT_RECORD


def test_a_study_without_title_is_called_by_its_name() -> None:
    assert parse_study(MINIMAL.replace('title = "A study"', ""), "x").title == "x"


def test_integers_are_fine_for_floats() -> None:
    value = parse("l1 = 1").base["train.l1"]
    assert value == 1.0
    assert isinstance(value, float)


def test_axes_by_short_name_dotted_name_and_nested_table() -> None:
    read = parse("[axes]\nseed = [3, 1]\n'train.l1' = [1, 0.5]\ntrain.threshold = [0.1]")
    assert read.axes == (
        Axis("seed", ("seed",), ((3,), (1,))),
        Axis("l1", ("train.l1",), ((1.0,), (0.5,))),
        Axis("threshold", ("train.threshold",), ((0.1,),)),
    )
    assert read.num_trajectories == 4
    assert not {"seed", "train.l1", "train.threshold"} & set(read.base)


@pytest.mark.parametrize(
    ("spec", "values"),
    [
        ("seed = { range = [0, 4] }", [0, 1, 2, 3]),
        ("seed = { range = [2, 9, 3] }", [2, 5, 8]),
        ("l1 = { log_range = [1e-5, 1e-3, 3] }", [1e-5, 1e-4, 1e-3]),
        ("l1 = { log_range = [1e-3, 1e-5, 3] }", [1e-3, 1e-4, 1e-5]),
        ("refit_support = { log_range = [1, 64, 7] }", [1, 2, 4, 8, 16, 32, 64]),
        ("skew = { range = [1, 4] }", [1.0, 2.0, 3.0]),
    ],
)
def test_ranges(spec: str, values: list[float]) -> None:
    assert [row[0] for row in parse(f"[axes]\n{spec}").axes[0].values] == values


def test_zips_follow_the_product_axes() -> None:
    read = parse(
        "[axes]\nseed = [0, 1]\n"
        "[[zip]]\nname = 'arm'\noptimizer = ['proximal', 'sgd']\ntrain.l1 = [1e-4, 0]\n"
        "[[zip]]\nlearning_rate_1 = [0.1, 0.2]\nlearning_rate_2 = [0.3, 0.4]\n"
    )
    assert [axis.name for axis in read.axes] == [
        "seed",
        "arm",
        "learning_rate_1_and_learning_rate_2",
    ]
    assert read.axes[1].fields == ("train.optimizer", "train.l1")
    assert read.axes[1].values == (("proximal", 1e-4), ("sgd", 0.0))


# ---------------------------------------------------------------------------- overrides


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("train.steps=200", "train.steps", 200),
        ("steps = 200", "train.steps", 200),
        ("l1=1e-3", "train.l1", 1e-3),
        ("optimizer=sgd", "train.optimizer", "sgd"),
        ("optimizer='sgd'", "train.optimizer", "sgd"),
        ("flip=false", "train.flip", False),
        ("stop_level=inf", "train.stop_level", math.inf),
        ("record.snapshots=[20, 10]", "record.snapshots", (10, 20)),
        ("record.variables=['stage']", "record.variables", ("stage",)),
    ],
)
def test_override_of_a_field(override: str, path: str, value: object) -> None:
    assert parse(overrides=(override,)).base[path] == value


def test_the_last_override_wins() -> None:
    assert parse(overrides=("steps=200", "train.steps=300")).base["train.steps"] == 300


def test_a_single_value_takes_an_axis_away() -> None:
    read = parse("[axes]\nseed = [1, 2]\nl1 = [0.1, 0.2]", ("seed=7",))
    assert [axis.name for axis in read.axes] == ["l1"]
    assert read.base["seed"] == 7


def test_an_axis_takes_a_single_value_away() -> None:
    read = parse(overrides=("axes.sparsity=[1, 2]",))
    assert read.axes == (Axis("sparsity", ("task.sparsity",), ((1,), (2,))),)
    assert "task.sparsity" not in read.base


def test_an_axis_override_replaces_the_axis_where_it_stands() -> None:
    read = parse("[axes]\nseed = [1, 2]\nl1 = [0.1]", ("axes.seed={range=[0, 3]}", "axes.skew=[1]"))
    assert [(axis.name, len(axis)) for axis in read.axes] == [("seed", 3), ("l1", 1), ("skew", 1)]


@pytest.mark.parametrize(
    ("override", "meant", "values"),
    [
        ("num_tokens=[500]", "axes.num_tokens=[500]", [500]),
        (" task.num_tokens = [4, 2]", "axes.task.num_tokens = [4, 2]", [4, 2]),
        ("num_tokens={range=[2, 5]}", "axes.num_tokens={range=[2, 5]}", [2, 3, 4]),
    ],
)
def test_many_values_for_a_field_that_is_an_axis(
    override: str, meant: str, values: list[int]
) -> None:
    said: list[str] = []
    text = MINIMAL.replace("num_tokens = 3", "") + "[axes]\nnum_tokens = [3, 10]\nseed = [0, 1]"
    study = parse_study(text, "x", (override,), say=said.append)
    assert study == parse_study(text, "x", (meant,))
    assert [axis.name for axis in study.axes] == ["num_tokens", "seed"]
    assert [value for (value,) in study.axes[0].values] == values
    assert said == [f"--set '{override}' is taken for {meant}, as that is an axis already"]


@pytest.mark.parametrize(
    "override", ["num_tokens=[2]", "l1=[1, 2]", "optimizer=['sgd']", "num_tokens={}"]
)
def test_many_values_for_a_field_that_is_no_axis(override: str) -> None:
    """A field that is fixed, or part of a zip, is not swept by mistake."""
    said: list[str] = []
    zipped = "[[zip]]\nname = 'arm'\noptimizer = ['sgd', 'proximal']\nl1 = [1, 2]"
    with pytest.raises(StudyError, match=r"^--set .*got "):
        parse_study(MINIMAL + zipped, "x", (override,), say=said.append)
    assert said == []


def test_a_single_value_takes_a_field_out_of_a_zip() -> None:
    zipped = "[[zip]]\noptimizer = ['sgd', 'proximal']\nl1 = [0.1, 0.2]"
    read = parse(zipped, ("optimizer=sgd",))
    assert read.axes == (Axis("l1", ("train.l1",), ((0.1,), (0.2,))),)
    assert parse(zipped, ("optimizer=sgd", "l1=0")).axes == ()


def test_lines_of_a_zip_can_be_kept_alone() -> None:
    zipped = "[[zip]]\nname = 'arm'\nl1 = [0.1, 0.2, 0.3]\nskew = [1, 2, 3]"
    read = parse(zipped, ("zip.arm=[2, 0]",))
    assert read.axes == (Axis("arm", ("train.l1", "task.skew"), ((0.3, 3.0), (0.1, 1.0))),)
    # Numbers are those of what earlier overrides have left.
    assert parse(zipped, ("zip.arm=[2, 0]", "zip.arm=[1]")).axes[0].values == ((0.1, 1.0),)


def test_title_and_question_can_be_set() -> None:
    read = parse(overrides=("title=hello", "question='why  this\\n?'"))
    assert (read.title, read.question) == ("hello", r"why this\n?")


# ---------------------------------------------------------------------------- what is wrong

BAD_FILES = {
    "unknown field": ("[model]\ndropout = 1", ["unknown field 'model.dropout'"]),
    "misspelt field": ("lerning_rate_1 = 1", ["'train.lerning_rate_1'", "'train.learning_rate_1'"]),
    "field of another table": ("sparsity = 1", ["'train.sparsity'", "'task.sparsity'"]),
    "misspelt table": ("[modle]\nx = 1", ["unknown table 'modle'", "did you mean 'model'?"]),
    "unknown table": (
        "[zzzz]\nx = 1",
        ["unknown table 'zzzz'", "task, model, train, transfer, record"],
    ),
    "string for number": ("l1 = 'a'", ["train.l1", "a finite number of at least 0", "got 'a'"]),
    "bool for integer": ("refit_samples = true", ["train.refit_samples", "integer", "got true"]),
    "bool for number": ("l1 = true", ["train.l1", "number", "got true"]),
    "float for integer": ("refit_samples = 1.5", ["train.refit_samples", "integer", "got 1.5"]),
    "integer for bool": ("flip = 1", ["train.flip must be true or false", "got 1"]),
    "number for name": ("optimizer = 1", ["train.optimizer", "'proximal', 'sgd'", "got 1"]),
    "misspelt choice": ("optimizer = 'proximl'", ["'proximl'", "did you mean 'proximal'?"]),
    "list for number": ("l1 = [1e-4]", ["train.l1", "[0.0001]", "axes.l1"]),
    "date for number": ("l1 = 2024-01-01", ["train.l1", "datetime.date(2024, 1, 1)"]),
    "zero size": ("refit_samples = 0", ["train.refit_samples", "from 1", "got 0"]),
    "negative size": ("refit_samples = -3", ["train.refit_samples", "got -3"]),
    "negative rate": ("l1 = -1e-4", ["train.l1", "at least 0", "got -0.0001"]),
    "not a number": ("l1 = nan", ["train.l1", "finite", "got nan"]),
    "infinite": ("l1 = inf", ["train.l1", "finite", "got inf"]),
    "too large for float32": ("l1 = 1e39", ["train.l1", "finite", "got 1e+39"]),
    "integer too large for float": (f"l1 = 1{'0' * 400}", ["train.l1", "finite", "got 1000"]),
    "too small for float32": ("l1 = 1e-40", ["train.l1", "1.2e-38", "got 1e-40"]),
    "too large for int32": (f"refit_samples = {INT32_MAX + 1}", [str(INT32_MAX), "2147483648"]),
    "table for value": ("l1 = {}", ["train.l1", "got {}"]),
    "empty axis": ("[axes]\nl1 = []", ["axis train.l1 is empty"]),
    "empty range": ("[axes]\nseed = { range = [3, 3] }", ["axis seed is empty"]),
    "duplicate value": ("[axes]\nl1 = [1, 0.1, 1.0]", ["axis l1", "same point twice", "1.0"]),
    "axis of wrong type": ("[axes]\nl1 = [0.1, 'a']", ["train.l1", "got 'a'"]),
    "axis out of range": ("[axes]\nseed = [1, -1]", ["seed", "got -1"]),
    "axis not a list": ("[axes]\nl1 = 1", ["axis train.l1 must be a list", "range", "got 1"]),
    "misspelt axis": ("[axes]\nsprsity = [1]", ["'sprsity'", "did you mean 'sparsity'?"]),
    "axis that can't be one": ("[axes]\nsteps = [10, 20]", ["train.steps can't be an axis"]),
    "axis given twice": ("[axes]\nl1 = [1]\n'train.l1' = [2]", ["axis train.l1 is given twice"]),
    "axis and zip": ("[axes]\nl1 = [1]\n[[zip]]\nl1 = [1]", ["axis train.l1 is given twice"]),
    "axis and value": ("l1 = 1\n[axes]\nl1 = [1]", ["train.l1", "a single value and is an axis"]),
    "unknown range": ("[axes]\nl1 = { rnge = [0, 3] }", ["train.l1", "range or log_range"]),
    "two ranges": (
        "[axes]\nl1 = { range = [0, 3], log_range = [1, 2, 3] }",
        ["train.l1", "either range or log_range"],
    ),
    "range of floats": (
        "[axes]\nl1 = { range = [0.5, 3] }",
        ["range of axis train.l1", "integers"],
    ),
    "range of one": ("[axes]\nl1 = { range = [3] }", ["range of axis train.l1", "got [3]"]),
    "range backwards": ("[axes]\nl1 = { range = [3, 0, -1] }", ["step above 0"]),
    "range without end": ("[axes]\nseed = { range = [0, 99999999999] }", ["range of axis seed"]),
    "range too long": ("[axes]\nseed = { range = [0, 2000000] }", ["2000000 points", "1000000"]),
    "range not a list": ("[axes]\nseed = { range = 3 }", ["range of axis seed must be a list"]),
    "log_range from zero": ("[axes]\nl1 = { log_range = [0, 1, 3] }", ["above 0", "got [0, 1, 3]"]),
    "log_range of one": ("[axes]\nl1 = { log_range = [1, 2, 1] }", ["an integer from 2"]),
    "log_range of nan": ("[axes]\nl1 = { log_range = [1, nan, 3] }", ["log_range", "nan"]),
    "log_range that repeats": (
        "[axes]\nrefit_support = { log_range = [1, 2, 5] }",
        ["axis refit_support", "same point twice"],
    ),
    "zip of different lengths": (
        "[[zip]]\nl1 = [1, 2]\nthreshold = [1, 2, 3]",
        ["same length", "train.l1 has 2", "train.threshold has 3"],
    ),
    "zip with a duplicate": (
        "[[zip]]\nl1 = [1, 1]\nthreshold = [2, 2]",
        ["same point twice", "train.l1 = 1.0, train.threshold = 2.0"],
    ),
    "zip with a field twice": ("[[zip]]\nl1 = [1]\n'train.l1' = [1]", ["train.l1", "twice"]),
    "empty zip": ("[[zip]]\nname = 'arm'", ["at least one field"]),
    "zip not a table": ("[zip]\nl1 = [1]", ["[[zip]]"]),
    "zip with a name that is a path": ("[[zip]]\nname = '../x'\nl1 = [1]", ["name of a zip"]),
    "zip with the name of a variable": ("[[zip]]\nname = 'step'\nl1 = [1]", ["called 'step'"]),
    "zip with the name of a field": (
        "[axes]\nseed = [1]\n[[zip]]\nname = 'seed'\nl1 = [1]\nthreshold = [1]",
        ["the name 'seed'", "more than one"],
    ),
    "unknown variable": (
        "[record]\nvariables = ['alpha_valu']",
        ["'alpha_valu'", "'alpha_value'?"],
    ),
    "variable twice": ("[record]\nvariables = ['stage', 'stage']", ["must not repeat"]),
    "no variable": ("[record]\nvariables = []", ["record.variables is empty"]),
    "variables not a list": ("[record]\nvariables = 'stage'", ["record.variables must be a list"]),
    "snapshot between records": ("[record]\nsnapshots = [15]", ["multiples", "= 10", "got 15"]),
    "snapshot after the end": ("[record]\nsnapshots = [110]", ["up to train.steps = 100"]),
    "step switch without a step": ("switch_on = 'step'", ["switch_on = 'step'", "switch_step"]),
    "final of many shapes": (
        "[record]\nfinal = true\n[axes]\ncontext_length = [50, 60]",
        ["task.context_length"],
    ),
    "too many trajectories": (
        "[axes]\nseed = { range = [0, 10000] }\ntask_seed = { range = [0, 10000] }",
        ["100000000 trajectories", "10000000"],
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_file(case: str) -> None:
    extra, parts = BAD_FILES[case]
    said = message(extra)
    assert said.startswith("x.toml: ")
    assert "\n" not in said
    assert [part for part in parts if part not in said] == []


BAD_TEXTS = {
    "sparsity": (MINIMAL.replace("sparsity = 2", "sparsity = 51"), ["51 is larger", "= 50"]),
    "record_every": (MINIMAL.replace("= 100", "= 105"), ["105 is not a multiple", "= 10"]),
    "samples": (MINIMAL.replace("= 8", "= 2000000000"), ["2000000000", "int32"]),
    "missing": (MINIMAL.replace("steps = 100", ""), ["train.steps is missing", "[train]"]),
    "num_tokens": (MINIMAL.replace("num_tokens = 3", "num_tokens = 1"), ["from 2", "got 1"]),
    "batch_size": (MINIMAL.replace("= 8", "= -8"), ["train.batch_size", "from 1", "got -8"]),
    "top level": ("steps = 3\n" + MINIMAL, ["steps belongs in the table [train]"]),
    "unknown at the top": ("sed = 3\n" + MINIMAL, ["unknown field 'sed'", "'seed'"]),
    "task no table": ("task = 3\n", ["task must be a table, got 3"]),
    "axes no table": ("axes = 3\n" + MINIMAL, ["axes must be a table, got 3"]),
    "title of control characters": (
        MINIMAL.replace('"A study"', r'"a\u0000b"'),
        ["title must not hold control characters", r"'a\x00b'"],
    ),
    "title of bytes": (MINIMAL.replace("A study", "\udcff"), ["the text is not Unicode"]),
    "an integer of thousands of digits": (
        MINIMAL.replace("= 100", "= 0x" + "f" * 5000),
        ["train.steps must be an integer", "too long to show"],
    ),
    "a log-range below float32": (
        MINIMAL + "[axes]\nseed = { log_range = [1e-300, 3e38, 5] }",
        ["two numbers above 0 that float32 holds"],
    ),
    "a long name of a zip": (
        MINIMAL + f"[[zip]]\nname = '{'a' * 201}'\nl1 = [1, 2]",
        ["name of a zip must be at most 200"],
    ),
    "a name of the dataset's": (
        MINIMAL + "[[zip]]\nname = 'probe'\nl1 = [1, 2]",
        ["a zip can't be called 'probe'"],
    ),
    "title no string": (MINIMAL.replace('"A study"', "3"), ["title must be a string, got 3"]),
    "axis of sparsity": (
        MINIMAL.replace("sparsity = 2", "") + "[axes]\nsparsity = [1, 51]",
        ["task.sparsity = 51 is larger than task.context_length = 50"],
    ),
    "axis of context_length": (
        MINIMAL.replace("context_length = 50", "") + "[axes]\ncontext_length = [1, 50]",
        ["task.sparsity = 2 is larger than task.context_length = 1"],
    ),
    "zip of both": (
        MINIMAL.replace("context_length = 50\nsparsity = 2", "")
        + "[[zip]]\ncontext_length = [9, 3]\nsparsity = [1, 4]",
        ["task.sparsity = 4 is larger than task.context_length = 3"],
    ),
    "axis of batch_size": (
        MINIMAL.replace("batch_size = 8", "") + "[axes]\nbatch_size = [8, 100000000]",
        ["train.batch_size = 100000000", "int32"],
    ),
}


@pytest.mark.parametrize("case", BAD_TEXTS)
def test_bad_text(case: str) -> None:
    text, parts = BAD_TEXTS[case]
    with pytest.raises(StudyError) as error:
        parse_study(text, "x")
    assert [part for part in parts if part not in str(error.value)] == []


@pytest.mark.parametrize(
    ("extra", "path", "float64"),
    [
        ("[axes]\nl1 = [1e-4, 1e-3, 0.00010000000001]", "train.l1", True),
        ("[axes]\nskew = [2.0, 2.00000001]", "task.skew", False),
        ("[axes]\ncorrelation = [0.5, 0.50000001]", "transfer.correlation", False),
        ("[axes]\nstop_level = [1.0, inf, 1.00000001]", "train.stop_level", True),
        ("[axes]\nl1 = { log_range = [1.0, 1.0000001, 9] }", "train.l1", True),
        ("[[zip]]\nseed = [1, 1, 2]\nl1 = [0.1, 0.1000000001, 0.1]", "train.l1", True),
        (
            "[[zip]]\noptimizer = ['sgd', 'sgd']\nl1 = [1, 1]\nskew = [2, 2.00000001]",
            "task.skew",
            False,
        ),
    ],
)
def test_points_that_are_the_same_in_float32(extra: str, path: str, float64: bool) -> None:
    """A study of float64 tells them apart, but for the numbers that tasks are drawn from."""
    said = message(extra)
    assert f"has two points that are the same in float32, which {path} is computed in" in said
    if float64:
        assert parse(extra, ("dtype=float64",)).num_trajectories > 1
    else:
        assert "the same in float32" in message(extra, ("dtype=float64",))


def test_neighbours_in_float32_are_two_points() -> None:
    assert len(parse(f"[axes]\nthreshold = [1.0, {1 + 2**-23!r}]").axes[0]) == 2


def test_a_zip_may_combine_what_a_product_could_not() -> None:
    text = MINIMAL.replace("context_length = 50\nsparsity = 2", "")
    read = parse_study(text + "[[zip]]\ncontext_length = [3, 9]\nsparsity = [3, 9]", "x")
    assert len(read.axes[0]) == 2


BAD_OVERRIDES = {
    "steps": ["--set 'steps'", "NAME=VALUE"],
    "=3": ["NAME=VALUE"],
    "steps=": ["NAME=VALUE"],
    "stps=3": ["unknown field 'stps'", "'steps'"],
    "train=3": ["train is a table", "train.batch_size"],
    "train.stps=3": ["unknown field 'train.stps'", "'train.steps'"],
    "l1=..": ["'..' is not a TOML value"],
    "l1=1\nl2 = 3": ["is not a TOML value"],
    "l1=1 # x\n[task]\nsparsity=3": ["is not a TOML value"],
    "l1=abc": ["train.l1", "got 'abc'"],
    "seed=3.0": ["seed", "integer", "got 3.0"],
    "flip=True": ["train.flip must be true or false", "got 'True'"],
    "l1=[1, 2]": ["axes.l1"],
    "axes.l1=3": ["axis train.l1 must be a list"],
    "axes.l1=[]": ["axis train.l1 is empty"],
    "axes.l1=[1, 1.0]": ["same point twice"],
    "axes.foo=[1]": ["unknown field 'foo'"],
    "axes.root_seed=[1]": ["root_seed can't be an axis"],
    "axes.optimizer=['sgd']": ["part of the zip 'arm'"],
    "title=3": ["title must be a string"],
    "title=\udcff": ["must be Unicode text"],
    "zip=3": ["unknown field 'zip'"],
    "zip.arn=[0]": ["there is no zip 'arn'", "'arm'"],
    "zip.x=[0]": ["there is no zip 'x'", "zips: arm"],
    "zip.arm=0": ["zip arm must be a list of its lines, numbers from 0 to 1, got 0"],
    "zip.arm=[]": ["numbers from 0 to 1"],
    "zip.arm=[2]": ["numbers from 0 to 1"],
    "zip.arm=[-1]": ["numbers from 0 to 1"],
    "zip.arm=[true]": ["numbers from 0 to 1"],
    "zip.arm=[[0]]": ["numbers from 0 to 1"],
    "zip.arm=[0, 0]": ["zip arm has the same line twice"],
    "l1=" + "[" * 5000: ["is not a TOML value"],
}


@pytest.mark.parametrize("override", BAD_OVERRIDES)
def test_bad_override(override: str) -> None:
    said = message("[[zip]]\nname = 'arm'\noptimizer = ['sgd', 'proximal']", (override,))
    assert said.startswith("--set ")
    assert "\n" not in said
    assert len(said) < 700
    assert [part for part in BAD_OVERRIDES[override] if part not in said] == []


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("context_length=1", ["task.sparsity = 2 is larger than task.context_length = 1"]),
        ("sparsity=51", ["task.sparsity = 51 is larger than task.context_length = 50"]),
        ("axes.sparsity=[1, 51]", ["task.sparsity = 51 is larger than task.context_length = 50"]),
        ("steps=15", ["train.steps = 15 is not a multiple of train.record_every = 10"]),
        ("optimizer=sgd", ["axis arm has the same point twice: train.l1 = 1.0"]),
    ],
)
def test_an_override_that_doesnt_fit_the_rest(override: str, parts: list[str]) -> None:
    zipped = "[[zip]]\nname = 'arm'\noptimizer = ['sgd', 'proximal']\nl1 = [1, 1]"
    said = message(zipped, (override,))
    assert said.startswith("x.toml with ")
    assert [part for part in [override, *parts] if part not in said] == []


SIMULATED = 'experiment = "simulated"\n' + MINIMAL


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ([], "task.tagged_positions is missing: set it in [task] or as an axis"),
        (["tagged_positions=2"], "task.tagged_positions = 2 is not larger than task.sparsity = 2"),
        (
            ["axes.tagged_positions=[9, 51]"],
            "task.tagged_positions = 51 is larger than task.context_length = 50",
        ),
        (["optimizer=adam"], "train.optimizer must be one of 'proximal', 'sgd', 'raw_sgd', got"),
        (["start=transfer"], "unknown field 'start'; experiment = \"scb\" has it"),
        (["attention_map=softmax"], "'attention_map'; experiment = \"scb\" has it"),
        (["transfer.theta=0.5"], "'transfer.theta'; experiment = \"scb\" has it"),
        (["record.variables=['initial_noise_mu']"], "record.variables must be one of"),
        (
            ["tagged_positions=9", "record.final=true"],
            "record.final has nothing to keep: exp",
        ),
        (["tagged_positions=9", "record.truth=true"], "record.truth has nothing to keep"),
        (["tagged_positions=9", "record.snapshots=[10]"], "record.snapshots has nothing to keep"),
    ],
)
def test_a_simulation_has_no_other_choices(overrides: list[str], sentence: str) -> None:
    with pytest.raises(StudyError) as error:
        parse_study(SIMULATED, "x", overrides)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["tagged_positions", "task.tagged_positions"])
@pytest.mark.parametrize("axes", ["", "axes."])
def test_a_field_of_another_experiment_is_told(name: str, axes: str) -> None:
    said = message(overrides=(f"{axes}{name}=[9, 50]",))
    assert said.endswith(f"unknown field '{name}'; experiment = \"simulated\" has it")
    extra = MINIMAL.replace("sparsity", "tagged_positions = 9\nsparsity")
    with pytest.raises(StudyError, match=r"'task.tagged_positions'; experiment = .* has it"):
        parse_study(extra, "x")


def test_what_a_simulation_has_is_what_the_learner_has() -> None:
    """Every field of it but the tagged positions is one of the paper's learner with its default."""
    own = find_experiment("simulated")
    found = {parameter.path: parameter for parameter in own.parameters}
    paths = {parameter.path for parameter in EXPERIMENT.parameters}
    assert found.keys() - paths == {"task.tagged_positions"}
    missing = {path for path in paths - found.keys() if not path.startswith("transfer.")}
    assert missing == {"model.attention_map", "train.start", "train.noise_samples"}
    for path in found.keys() & paths:
        theirs = FIELDS[path]
        assert dataclasses.replace(found[path], check=theirs.check, help=theirs.help) == theirs
    assert tuple(own.variables) == EXPERIMENT.default_record
    assert not own.kept
    assert not own.truth


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ((), "train.optimizer = 'proximal' has no meaning with model.attention_map = 'softmax'"),
        (("optimizer=sgd",), "train.optimizer = 'sgd' has no meaning"),
        (("axes.optimizer=['adam', 'sgd']",), "train.optimizer = 'sgd' has no meaning"),
        (("optimizer=adam", "start=transfer"), "train.start = 'transfer' has no meaning"),
        (("optimizer=raw_sgd", "start=pretrained"), "train.start = 'pretrained' has no meaning"),
        (("optimizer=raw_sgd",), ""),
        (("axes.optimizer=['adam', 'raw_sgd']",), ""),
    ],
)
def test_other_attention_maps_are_learned_by_plain_gradients(
    overrides: tuple[str, ...], sentence: str
) -> None:
    overrides = ("attention_map=softmax", *overrides)
    if sentence:
        assert sentence in message("", overrides)
    else:
        assert parse("", overrides).base["model.attention_map"] == "softmax"


@pytest.mark.parametrize(
    ("setting", "starts", "sentence"),
    [
        (
            "first_samples=4097",
            ["transfer", "pretrained"],
            "transfer.first_samples = 4097 is not a multiple of train.batch_size = 8",
        ),
        (
            "pretraining_steps=25",
            ["pretrained"],
            "transfer.pretraining_steps = 25 is not a multiple of train.record_every = 10",
        ),
        (
            "steps=268435450",
            ["transfer", "pretrained"],
            "train.steps = 268435450 times train.batch_size = 8 is more samples than an int32",
        ),
    ],
)
def test_numbers_of_a_transfer_have_to_fit_only_where_there_is_one(
    setting: str, starts: list[str], sentence: str
) -> None:
    for start in ("uniform", "transfer", "pretrained"):
        overrides = (setting, f"start={start}")
        if start in starts:
            assert sentence in message("", overrides)
        else:
            assert parse("", overrides).base["train.start"] == start


# ---------------------------------------------------------------------------- files


def test_load_study_from_a_path_and_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sweeps").mkdir()
    path = tmp_path / "sweeps" / "mine-1.toml"
    path.write_text(MINIMAL)
    monkeypatch.chdir(tmp_path)
    assert load_study(path) == load_study("mine-1") == load_study("sweeps/mine-1.toml")
    assert load_study("mine-1").name == "mine-1"
    assert Path("mine-1.toml") in [Path(found.name) for found in find_studies()]


def test_windows_line_ends_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(MINIMAL.replace("\n", "\r\n").encode())
    assert load_study(path) == parse()


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_a_byte_order_mark_is_fine(tmp_path: Path, ends: str) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(codecs.BOM_UTF8 + MINIMAL.replace("\n", ends).encode())
    assert load_study(path) == parse()
    assert parse_study(path.read_text(encoding="utf-8"), "x") == parse()


def bad_path(tmp_path: Path, given: str, content: bytes | None = None) -> str:
    if content is not None:
        (tmp_path / given).write_bytes(content)
    with pytest.raises(StudyError) as error:
        load_study(tmp_path / given)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"title = 'x'\n[task]\nnum_tokens = = 3\n", ["line 3", "not valid TOML"]),
        (b"title = 'x'\n\n[task\n", ["line 3", "not valid TOML"]),
        (b"title = '", ["line 1", "not valid TOML"]),
        (b"title = 'x'\n[task]\nnum_tokens = [", ["line 3", "not valid TOML"]),
        (b"[task]\nnum_tokens = 3\nnum_tokens = 3", ["line 3", "not valid TOML"]),
        (b"title = 'x'\n# \xff\n", ["line 2", "UTF-8"]),
        (codecs.BOM_UTF8 + b"title = 'x'\n[task\n", ["line 2", "not valid TOML"]),
        (codecs.BOM_UTF8 + b"title = 'x'\n# \xff\n", ["line 2", "UTF-8"]),
        (codecs.BOM_UTF16_LE + b"t\0=\0", ["line 1", "UTF-8"]),
        (b"\0", ["line 1", "not valid TOML"]),
        (b"x = " + b"[" * 20000, ["not valid TOML"]),
        (b"x = " + b"1" * 5000, ["not valid TOML", "too long"]),
        (b"#" * ((1 << 20) + 1), ["too large for a study"]),
        (b"", ["task.num_tokens is missing"]),
    ],
)
def test_broken_file(tmp_path: Path, content: bytes, parts: list[str]) -> None:
    said = bad_path(tmp_path, "broken.toml", content)
    assert "broken.toml" in said
    assert [part for part in parts if part not in said] == []


def test_paths_that_are_no_study(tmp_path: Path) -> None:
    assert "is a directory" in bad_path(tmp_path.parent, tmp_path.name)
    (tmp_path / "d.toml").mkdir()
    assert "is a directory" in bad_path(tmp_path, "d.toml")
    assert "does not exist" in bad_path(tmp_path, "none.toml")
    assert "does not exist" in bad_path(tmp_path, "none/none.toml")
    assert "must end in .toml" in bad_path(tmp_path, "x.txt", b"")
    assert "can't be read" in bad_path(tmp_path, "x" * 300 + ".toml")
    assert "regular file" in bad_path(Path("/dev"), "null")
    with pytest.raises(StudyError, match="null character"):
        load_study("a\0b")
    with pytest.raises(StudyError, match="no study is called 'xxx"):
        load_study("x" * 5000)


@pytest.mark.parametrize("name", ["a b", "a.b", "é", "..", "a\nb", "a" * 201])
def test_names_that_are_no_safe_file_names(tmp_path: Path, name: str) -> None:
    said = bad_path(tmp_path, f"{name}.toml", MINIMAL.encode())
    assert "letters, digits, _ and -" in said


def test_unknown_names_get_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "mine.toml").write_text(MINIMAL)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StudyError, match=r"no study is called 'mime'; did you mean 'mine'\?"):
        load_study("mime")
    with pytest.raises(StudyError, match=r"no study is called '' \(studies: .*mine"):
        load_study("")
    with pytest.raises(StudyError, match="sweeps is a directory"):
        load_study("sweeps")


def test_without_studies_the_sentence_still_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locating, "search_path", lambda _: [])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StudyError, match=r"^no study is called 'x': .* my_study\.toml$"):
        load_study("x")


# ---------------------------------------------------------------------------- round trip


def values_of(field: Parameter) -> st.SearchStrategy[Any]:
    if isinstance(field.check, Choice):
        return st.sampled_from(field.check.options)
    if field.type is bool:
        return st.booleans()
    assert isinstance(field.check, Interval)
    if field.type is int:
        return st.integers(int(field.check.low), int(field.check.high))
    return st.floats(
        field.check.low, field.check.high, exclude_min=field.check.above, allow_subnormal=False
    ).filter(lambda value: value == 0 or value >= FLOAT32_TINY)


def columns(field: Parameter) -> st.SearchStrategy[list[Any]]:
    # Studies compute in float32, where the points of an axis have to differ.
    return st.lists(
        values_of(field),
        min_size=1,
        max_size=4,
        unique_by=lambda value: array("f", [value])[0] if field.type is float else value,
    )


# Other maps, ends of stage 1 and starts need companions among the other fields.
BOUND = ("train.switch_on", "model.attention_map", "train.start")
FREE = [field for field in FIELDS.values() if field.sweepable and field.path not in BOUND]
SIZES = (
    "task.num_tokens",
    "task.context_length",
    "task.sparsity",
    "train.batch_size",
)


@st.composite
def drawn_studies(draw: st.DrawFn) -> Study:
    chosen = draw(st.lists(st.sampled_from(FREE), unique=True, max_size=8))
    chosen = [field for field in chosen if field.path not in SIZES]
    axes = []
    base = dict(parse().base)
    for field in chosen:
        role = draw(st.sampled_from(["base", "axis", "zip"]))
        if role == "base":
            base[field.path] = draw(values_of(field))
        else:
            del base[field.path]
            column = draw(columns(field))
            name = field.short if role == "axis" else f"z_{field.short}"
            axes.append(Axis(name, (field.path,), tuple((value,) for value in column)))
    axes.sort(key=lambda axis: axis.is_zip)
    base["record.snapshots"] = tuple(sorted(draw(st.sets(st.sampled_from([0, 10, 50, 100])))))
    text = st.text(
        st.characters(exclude_categories=["Cs", "Zs", "Cc", "Zl", "Zp"]) | st.just("\x7f")
    )
    title, question = draw(text), draw(text)
    assume(title)
    return Study("x", title, question, base, tuple(axes), EXPERIMENT)


@given(drawn_studies())
def test_round_trip(drawn: Study) -> None:
    read = parse_study(to_toml(drawn), "x")
    assert read == drawn
    assert fingerprint(read) == fingerprint(drawn)


@given(st.data())
def test_what_a_study_accepts_a_trajectory_accepts(data: st.DataObject) -> None:
    settings: dict[str, Any] = {"batch_size": 8, "steps": 100, "record_every": 10}
    for field in FIELDS.values():
        if field.table in {"train", "model"} and field.short not in settings:
            settings[field.short] = data.draw(values_of(field), label=field.path)
    own = {path for path, field in FIELDS.items() if field.table in {"train", "model"}}
    if all(
        relation.holds(*(settings[path.rpartition(".")[2]] for path in relation.paths))
        for relation in EXPERIMENT.relations
        if "model.attention_map" in relation.paths and set(relation.paths) <= own
    ):
        Settings(**settings)
    else:
        with pytest.raises(ValueError, match="with attention_map = 'softmax'"):
            Settings(**settings)


# ---------------------------------------------------------------------------- anything at all

EVERYTHING = (
    MINIMAL
    + "l1 = 1e-4\nflip = true\noptimizer = 'sgd'\n[record]\nvariables = ['stage']\n"
    + "snapshots = [10]\n[axes]\nseed = { range = [0, 2] }\nthreshold = { log_range = [1, 2, 3] }\n"
    + "[[zip]]\nname = 'arm'\nstop_level = [1, inf]\ntrain.rounding_level = [0.1, 0.2]\n"
)
PIECES = [
    "[",
    "]",
    "{",
    "}",
    "=",
    "'",
    '"',
    "\n",
    ".",
    ",",
    "-",
    "0",
    "9e9",
    "nan",
    "inf",
    "true",
    "x",
]


def reads_or_says(text: str, overrides: tuple[str, ...] = ()) -> None:
    said = ""
    try:
        read = parse_study(text, "x", overrides)
    except StudyError as error:
        said = str(error)
    if said:
        assert "\n" not in said
    else:
        assert parse_study(to_toml(read), "x") == read


@given(
    st.lists(
        st.tuples(
            st.integers(0, len(EVERYTHING)), st.integers(0, 20), st.sampled_from(PIECES) | st.text()
        ),
        min_size=1,
        max_size=5,
    )
)
def test_a_mangled_file_reads_or_gives_one_sentence(edits: list[tuple[int, int, str]]) -> None:
    text = EVERYTHING
    for start, length, piece in edits:
        text = text[:start] + piece + text[start + length :]
    reads_or_says(text)


NAMES = st.sampled_from([*FIELDS, *(f"axes.{f.short}" for f in FIELDS.values()), "title", "axes"])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)


@given(NAMES, st.recursive(SCALARS, st.lists, max_leaves=5))
def test_any_override_is_taken_or_gives_one_sentence(name: str, value: object) -> None:
    reads_or_says(EVERYTHING, (f"{name}={definition._toml(value)}",))


@given(st.text(), st.text())
def test_any_text_as_an_override(name: str, value: str) -> None:
    reads_or_says(EVERYTHING, (f"{name}={value}",))


# ---------------------------------------------------------------------------- fingerprint


def test_fingerprint_is_of_what_is_computed() -> None:
    same = parse_study(MINIMAL.replace("A study", "Another"), "y", ("question=why", "seed=0"))
    assert fingerprint(same) == fingerprint(parse())


@pytest.mark.parametrize(
    "override",
    ["seed=1", "l1=2e-4", "axes.seed=[0]", "record.final=true", "record.variables=['stage']"],
)
def test_fingerprint_changes_with_what_is_computed(override: str) -> None:
    assert fingerprint(parse(overrides=(override,))) != fingerprint(parse())


@pytest.mark.parametrize("path", sorted(Path(__file__).parents[2].glob("sweeps/*.toml"), key=str))
def test_studies_of_the_checkout_are_sound(path: Path) -> None:
    read = load_study(path)
    assert read.title != read.name
    assert read.question
    assert parse_study(to_toml(read), read.name) == read


SHIPPED = sorted((Path(__file__).parents[2] / "sweeps").glob("*.toml"), key=lambda path: path.stem)
SMALL_TOKENS = 2e9


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_study_has_a_small_size(path: Path) -> None:
    """It is the same study with fewer and shorter runs, so that all of them take minutes."""
    whole, small = load_study(path), load_study(path, small=True)
    parts = first_studies(small) if is_search(small) else [small]
    assert sum(make_plan(part).tokens for part in parts) < SMALL_TOKENS
    assert small.variables == whole.variables
    assert small.num_trajectories <= whole.num_trajectories


def test_small_comes_before_other_overrides() -> None:
    """What the command line says holds in the small size too."""
    text = MINIMAL.replace("title", 'small = ["l1=0.5", "steps=20"]\ntitle', 1)
    base = parse_study(text, "mine", ["l1=0.25"], small=True).base
    assert (base["train.l1"], base["train.steps"]) == (0.25, 20)
    assert parse_study(text, "mine").base["train.steps"] == 100


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("", "no small size"),
        ("small = 3", "must be a list of overrides"),
        ("small = [1]", "must be a list of overrides"),
        ('small = ["stps=3"]', "small 'stps=3': unknown field"),
    ],
)
def test_a_small_size_that_is_wrong_is_one_sentence(line: str, sentence: str) -> None:
    """The same kind of error as for an override on the command line."""
    text = MINIMAL.replace("title", f"{line}\ntitle", 1)
    with pytest.raises(StudyError, match=sentence):
        parse_study(text, "mine", small=True)
