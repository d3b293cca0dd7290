"""The numbers of a chunk, as its program takes them."""

import contextlib
from typing import Any, NamedTuple

import jax
import numpy as np
import numpy.typing as npt

from scbjax.sweep.plan.plans import Chunk
from scbjax.sweep.plan.programs import Layer, Program
from scbjax.sweep.study.fields import fields_of


class Inputs(NamedTuple):
    """The numbers of a chunk, by dotted path.

    Attributes:
        outer: arrays [outer].
        inner: arrays [inner].
        fixed: scalars.
    """

    outer: dict[str, Any]
    inner: dict[str, Any]
    fixed: dict[str, Any]


def chunk_inputs(program: Program, chunk: Chunk) -> Inputs:
    """The numbers of a chunk on the host, padded to the program's chunk shape with its last point.

    Args:
        program: the program.
        chunk: one of its chunks.

    Returns:
        Arrays of int32 and of the floats of the program; fields that are left to the library (None)
        are absent.
    """
    fixed = {
        path: _as_array(program, path, value)
        for path, value in program.fixed.items()
        if _is_traced(program, path) and value is not None
    }
    outer_size, inner_size = program.chunk_shape
    return Inputs(
        outer=_layer_inputs(program, program.outer, chunk.outer[0], outer_size),
        inner=_layer_inputs(program, program.inner, chunk.inner[0], inner_size),
        fixed=fixed,
    )


def _layer_inputs(
    program: Program, layer: Layer, first: int, size: int
) -> dict[str, npt.NDArray[Any]]:
    points = np.minimum(np.arange(first, first + size), layer.size - 1)
    return {
        path: _as_array(program, path, column)[points] for path, column in layer.columns.items()
    }


def _is_traced(program: Program, path: str) -> bool:
    field = fields_of(program.experiment)[path]
    return field.kind in {"traced", "data"} or path == "root_seed"


def _as_array(program: Program, path: str, value: npt.ArrayLike) -> npt.NDArray[Any]:
    holds = fields_of(program.experiment)[path].type
    return np.asarray(value, dtype_of(program) if holds is float else np.int32)


def dtype_of(program: Program) -> str:
    """The numbers that a program computes in."""
    return program.experiment.dtype(program.fixed)


def numbers_of(program: Program) -> contextlib.AbstractContextManager[Any]:
    """What lets JAX make the numbers that a program works with, whatever the user has set."""
    is_double = dtype_of(program) == "float64"
    context: contextlib.AbstractContextManager[Any] = jax.enable_x64(is_double)
    return context
