"""The arms of a comparison: what each is called, how it looks, and in which column it stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import xarray as xr
from _data import along_arms, setting

SMALL: Final = 1e-3  # smaller numbers are written with an exponent
MAX_ARMS: Final = 4  # in one panel
KIND_FIELDS: Final = frozenset({"attention_map", "optimizer"})  # what a look stands for
OPTIMIZER_NAMES: Final[Mapping[str, str]] = {
    "proximal": "proximal",
    "sgd": "SGD",
    "raw_sgd": "raw SGD",
    "adam": "Adam",
}
GEOMETRY_NAMES: Final[Mapping[str, str]] = {"paper": "as printed", "mu": "working settings"}
# Colours of Okabe & Ito; one family of looks for each optimizer, in the order of the study's arms.
# Arms with another attention map than the linear one are families of their own.
LOOKS: Final[Mapping[str, tuple[tuple[str, Any], ...]]] = {
    "proximal": (("#0072B2", "-"), ("#009E73", "-"), ("#56B4E9", "-")),
    "sgd": (("#D55E00", (0, (4, 1.2))), ("#E69F00", (0, (4, 1, 1, 1))), ("#CC79A7", (0, (2, 1)))),
    "raw_sgd": (("#444444", (0, (3, 2.5))), ("#888888", (0, (3, 2.5)))),
    "adam": (("#E69F00", (0, (1, 1))),),
    "softmax raw_sgd": (("#CC79A7", (0, (4, 1.2))),),
    "softmax adam": (("#000000", (0, (4, 1, 1, 1))),),
}
Kind = tuple[str, str]


@dataclass(frozen=True)
class Arm:
    """One arm of a comparison: its place along the dimension `arm`, its name and its look."""

    index: int
    label: str
    colour: str
    linestyle: Any
    optimizer: str = "proximal"


@dataclass(frozen=True)
class Column:
    """The arms of one column of panels, and the settings they have in common."""

    title: str
    settings: str
    arms: tuple[Arm, ...]


def arms_of(dataset: xr.Dataset, group: str | None = None) -> list[Arm]:
    """List the arms of a tidy dataset, each with a label of what sets it apart and a look.

    Args:
        dataset: a tidy dataset.
        group: a field that the figure spreads over its columns. Labels say what varies at one of
            its values, and an arm has one look at all of them.

    Raises:
        ValueError: more arms of one optimizer than can be told apart in a figure.
    """
    fields = {str(name): item for name, item in dataset.coords.items() if item.dims == ("arm",)}
    optimizers, kinds = optimizers_of(dataset), kinds_of(dataset)
    groups = [str(value) for value in np.asarray(fields.get(str(group), optimizers))]
    fields = {name: values for name, values in fields.items() if name not in KIND_FIELDS}
    families = list(zip(kinds, groups, strict=True))
    apart: dict[Kind, set[str]] = {kind: set() for kind in kinds}
    for family in set(families):
        members = [index for index, other in enumerate(families) if other == family]
        apart[family[0]] |= {
            name for name, values in fields.items() if len(np.unique(values[members])) > 1
        }
    labels = []
    for index, kind in enumerate(kinds):
        told = [
            f"{values.attrs.get('symbol', name)} = {worded(values[index].item())}"
            for name, values in fields.items()
            if name in apart[kind]
        ]
        labels.append(", ".join([*_names_of(kind, kinds), *told]))
    return [
        Arm(index, label, *_look(dataset, kinds, labels, index), optimizers[index])
        for index, label in enumerate(labels)
    ]


def optimizers_of(dataset: xr.Dataset) -> list[str]:
    """Give the optimizer of each arm of a tidy dataset."""
    return [str(name) for name in along_arms(dataset, "optimizer", "proximal")]


def kinds_of(dataset: xr.Dataset) -> list[Kind]:
    """Give what the look of each arm stands for: its attention map and its optimizer."""
    maps = map(str, along_arms(dataset, "attention_map", "linear"))
    return list(zip(maps, optimizers_of(dataset), strict=True))


def _names_of(kind: Kind, kinds: Sequence[Kind]) -> list[str]:
    """Give the words for a kind of arm: its map where one of the study's is not linear."""
    attention_map, optimizer = kind
    linear = all(other == "linear" for other, _ in kinds)
    return [attention_map] * (not linear) + [OPTIMIZER_NAMES.get(optimizer, optimizer)]


def _look(
    dataset: xr.Dataset, kinds: Sequence[Kind], labels: Sequence[str], index: int
) -> tuple[str, Any]:
    """Give an arm the look that its label has among those of its map and its optimizer."""
    kind = attention_map, optimizer = kinds[index]
    pairs = zip(kinds, labels, strict=True)
    known = list(dict.fromkeys(label for other, label in pairs if other == kind))
    looks = LOOKS.get(optimizer, LOOKS["proximal"])
    looks = LOOKS.get(f"{attention_map} {optimizer}", looks)
    if len(known) > len(looks):
        name, values = next(
            (name, item)
            for name, item in dataset.coords.items()
            if item.dims == ("arm",) and name not in KIND_FIELDS
        )
        raise ValueError(
            f"the study has {len(known)} arms with optimizer {optimizer} and the figure can "
            f"tell {len(looks)} apart; choose, for instance by --set {name}={values[0].item()}"
        )
    return looks[known.index(labels[index])]


def columns_of(dataset: xr.Dataset) -> list[Column]:
    """Spread the arms of a tidy dataset over columns of panels, by the geometry they learn in.

    The study of the paper's main setting has the printed settings, with the printed projector, and
    settings that work, with the other one. Arms that are too many for a panel are split by whether
    they are proximal.
    """
    arms = arms_of(dataset, "geometry")
    same = [str(setting(dataset, "geometry", ""))] * len(arms)
    geometries = [str(name) for name in np.asarray(dataset.coords.get("geometry", same)).ravel()]
    columns: list[Column] = []
    for geometry in dict.fromkeys(geometries):
        name = GEOMETRY_NAMES.get(geometry, "")
        group = [arm for arm, other in zip(arms, geometries, strict=True) if other == geometry]
        proximal = [arm for arm in group if arm.optimizer == "proximal"]
        others = [arm for arm in group if arm.optimizer != "proximal"]
        if len(group) <= MAX_ARMS or not (proximal and others):
            columns.append(Column(name, name, tuple(group)))
        else:
            columns.append(Column(f"{name}: proximal steps", name, tuple(proximal)))
            columns.append(Column(f"{name}: SGD", name, tuple(others)))
    return columns


def worded(value: object) -> str:
    """Write a setting's value: floats without needless digits, small ones as 1e-4.

    >>> worded(0.005), worded(3e-4)
    ('0.005', '3e-4')
    """
    if not isinstance(value, float):
        return str(value)
    if not 0 < abs(value) < SMALL:
        return f"{value:g}"
    mantissa, exponent = f"{value:.6e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"
