"""What trajectories of the paper's learner take: bytes and seconds, estimated without JAX.

A first guess, so that studies are planned at once: the compiler is asked when it has compiled them.
The constants are fits to measurements in float32 on two cores of an x86 server. Bytes are within
three tenths of what the compiler reports for programs with N from 3 to 300 and T from 500 to 5000;
seconds are within a factor of two, and are another matter on other devices. Simulated trajectories
hold what those of as many positions as are tagged hold, up to twice the bytes, and take the time of
the others by the size of the vocabulary.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from scbjax.costs import Cost
from scbjax.footprint import (
    BLOCK_TOKENS,
    OUTER_BYTES,
    SMALL_VOCABULARY,
    STEP_BYTES,
    TEMPORARY_ATTENTIONS,
    step_bytes as bytes_of_step,
)
from scbjax.recorded import NOISE_RECORD
from scbjax.values import Values

TAGGED = "task.tagged_positions"
"""The parameter that simulated trajectories have and others have not."""

PACKED_VOCABULARY = 4
"""Up to this size the tokens of a step are never stored one by one."""

_FLOAT = {"float32": 4, "float64": 8}  # bytes

# Arrays of the size of A [T, N] per trajectory: A before and after, and Q.
_KEPT_ATTENTIONS = 2
# Adam keeps the means of the gradients and of their squares.
_ADAM_MOMENTS = 2
# Arrays of the size of V [N, N] per trajectory: V, P and its distribution functions.
_KEPT_VALUES = 3
# Bytes per draw of the refit that a trajectory holds, for small vocabularies and for others.
_REFIT_BYTES = (13.0, 13.0)
# With packed tokens: bytes per token of the batch and for the table of tuples, which an outer point
# holds; arrays of the size of A that a trajectory holds in a step, whatever the batch; bytes per
# draw of a refit.
_PACKED_BYTES = 0.7
_PACKED_TABLE_BYTES = 192_000
_PACKED_ATTENTIONS = 3.4
_PACKED_REFIT_BYTES = 11.5
# Bytes per sample and token of the least-squares problem of the refit.
_LEAST_SQUARES_BYTES = 2.0

# How many of two cores are busy on average.
_BUSY_CORES = 1.6
# Processor seconds to draw a token, and those of a trajectory for each of them in a step, by the
# size of the vocabulary.
_TOKEN_SIZES = (3, 10, 20, 32, 33)
_DRAW_SECONDS = (0.9e-9, 1.6e-9, 1.7e-9, 1.7e-9, 2.5e-9)
_TOKEN_SECONDS = (0.6e-9, 1.7e-9, 2.8e-9, 4.5e-9, 4.5e-9)
# Processor seconds of a trajectory per row and per entry of A in a step.
_ROW_SECONDS = 25e-9
_ENTRY_SECONDS = 2.5e-9
# The same per entry for vocabularies whose steps go by columns of A.
_COLUMN_ENTRY_SECONDS = 0.9e-9
# Processor seconds of a simulated step: to draw how often a token is seen in a sample's other
# positions, and those of a trajectory for each of these numbers and for each product with V.
_COUNT_SECONDS = 12e-9
_COUNTED_SECONDS = 4e-9
_PRODUCT_SECONDS = 40e-12
# Tokens that are drawn at a time for the noise of the gradients (`scbjax.noise`).
_NOISE_PIECE = 2**18
# Processor seconds of a record: per draw of the refit; and, for each of the other variables, per
# trajectory and per entry of A.
_REFIT_SECONDS = 6e-9
_VARIABLE_SECONDS = 20e-6
_VARIABLE_ENTRY_SECONDS = 2e-9


def _float(values: Mapping[str, Any]) -> int:
    """Bytes of a number."""
    return _FLOAT[values.get("task.dtype", "float32")]


def rows(values: Mapping[str, Any]) -> int:
    """Rows of A: the positions that get tokens, all of them or the tagged ones of a simulation."""
    return int(values.get(TAGGED, values["task.context_length"]))


def tokens_per_trajectory(values: Mapping[str, Any]) -> int:
    """Context tokens that one trajectory reads: B T in each step, and those of its start.

    In a simulation only tagged positions have tokens.
    """
    steps = int(values["train.steps"]) * _tokens(values)
    return steps + _start_samples(values) * rows(values)


def outer_bytes(values: Mapping[str, Any]) -> int:
    """Memory for what the trajectories of one outer point share: the batch."""
    batch, draws = _largest_tokens(values), _refit_draws(values)
    if _is_packed(values):
        stored = max(_PACKED_BYTES * batch, _by_size(values, OUTER_BYTES) * draws)
        return math.ceil(_PACKED_TABLE_BYTES + stored)
    return math.ceil(_by_size(values, OUTER_BYTES) * max(batch, draws))


def kept_bytes(values: Mapping[str, Any]) -> int:
    """Memory that a trajectory holds all the time: its state, its task and its records."""
    records = len(values["record.variables"]) * _num_records(values)
    moments = _ADAM_MOMENTS if values["train.optimizer"] == "adam" else 0
    matrices = (_KEPT_ATTENTIONS + moments) * _entries(values)
    matrices += (_KEPT_VALUES + moments) * _value_entries(values)
    return math.ceil(_float(values) * (matrices + records))


def temporary_bytes(values: Mapping[str, Any]) -> int:
    """Memory that a trajectory holds while it is worked on: in a step, or in a record."""
    draws = _refit_draws(values)
    packed = _is_packed(values)
    refit = (_PACKED_REFIT_BYTES if packed else _by_size(values, _REFIT_BYTES)) * draws
    if draws:
        samples = int(values["train.refit_samples"])
        refit += _LEAST_SQUARES_BYTES * samples * int(values["task.num_tokens"])
    step = 0 if packed else _step_tokens(values)
    tokens = _by_size(values, STEP_BYTES) * max(step, min(_NOISE_PIECE, _noise_tokens(values)))
    attentions = _PACKED_ATTENTIONS if packed else TEMPORARY_ATTENTIONS
    return math.ceil(_float(values) * attentions * _entries(values) + max(tokens, refit))


def step_bytes(values: Mapping[str, Any], inner: int) -> int:
    """Memory that the steps of an outer point go through again and again."""
    return bytes_of_step(
        int(values["task.num_tokens"]),
        rows(values),
        _largest_batch(values),
        learners=inner,
        float_bytes=_float(values),
    )


def run_seconds(values: Mapping[str, Any], shape: tuple[int, int]) -> float:
    """Estimated time of a grid of (outer, inner) trajectories on two CPU cores, once compiled."""
    import numpy as np  # so that a study is read without it

    outer, inner = shape
    tokens, entries = _tokens(values), _entries(values)
    draw, look = (
        tokens * float(np.interp(values["task.num_tokens"], _TOKEN_SIZES, seconds))
        for seconds in (_DRAW_SECONDS, _TOKEN_SECONDS)
    )
    learn = look
    if is_small(values):
        learn += entries * _ENTRY_SECONDS + rows(values) * _ROW_SECONDS
    else:
        learn += entries * _COLUMN_ENTRY_SECONDS
    if TAGGED in values:
        counts = int(values["train.batch_size"]) * int(values["task.num_tokens"])
        draw += counts * _COUNT_SECONDS
        learn += counts * (_COUNTED_SECONDS + values["task.num_tokens"] * _PRODUCT_SECONDS)
    record = _refit_draws(values) * _REFIT_SECONDS
    record += len(values["record.variables"]) * (
        _VARIABLE_SECONDS + entries * _VARIABLE_ENTRY_SECONDS
    )
    steps = int(values["train.steps"]) * (draw + inner * learn)
    steps *= 1 + _start_samples(values) / _samples(values)
    fresh = _noise_tokens(values) / tokens * (draw + inner * look)
    return outer * (steps + _num_records(values) * (inner * record + fresh)) / _BUSY_CORES


def _tokens(values: Mapping[str, Any]) -> int:
    """Context tokens of a batch."""
    return int(values["train.batch_size"]) * rows(values)


def _samples(values: Mapping[str, Any]) -> int:
    """Samples of all steps of a trajectory."""
    return int(values["train.steps"]) * int(values["train.batch_size"])


def _start_samples(values: Mapping[str, Any]) -> int:
    """Samples that a trajectory uses before its first step: of a transfer, and of pretraining."""
    kind = _start(values)
    if kind == "uniform":
        return 0
    pretraining = int(values["transfer.pretraining_steps"])
    pretraining *= int(values["transfer.pretraining_batch_size"])
    return int(values["transfer.first_samples"]) + (pretraining if kind == "pretrained" else 0)


def _start(values: Mapping[str, Any]) -> str:
    """Where training starts; simulations have no choice of it."""
    return str(values.get("train.start", "uniform"))


def _largest_batch(values: Mapping[str, Any]) -> int:
    """Size of the largest batch, that of pretraining or of a step."""
    batch = int(values["train.batch_size"])
    if _start(values) == "pretrained":
        batch = max(batch, int(values["transfer.pretraining_batch_size"]))
    return batch


def _largest_tokens(values: Mapping[str, Any]) -> int:
    """Context tokens of the largest batch."""
    return _largest_batch(values) * rows(values)


def _step_tokens(values: Mapping[str, Any]) -> int:
    """Context tokens that a step works on at a time."""
    tokens = _largest_tokens(values)
    return min(tokens, BLOCK_TOKENS) if is_small(values) else tokens


def is_small(values: Mapping[str, Any]) -> bool:
    """Whether the vocabulary is one of those that have programs of their own."""
    return int(values["task.num_tokens"]) <= SMALL_VOCABULARY


def _is_packed(values: Mapping[str, Any]) -> bool:
    return int(values["task.num_tokens"]) <= PACKED_VOCABULARY


def _entries(values: Mapping[str, Any]) -> int:
    """Entries of A."""
    return rows(values) * int(values["task.num_tokens"])


def _value_entries(values: Mapping[str, Any]) -> int:
    """Entries of V."""
    return int(values["task.num_tokens"]) ** 2


def _num_records(values: Mapping[str, Any]) -> int:
    return int(values["train.steps"]) // int(values["train.record_every"]) + 1


def _refit_draws(values: Mapping[str, Any]) -> int:
    """Tokens drawn to refit V in a record, if it is recorded."""
    if not any(name.startswith("rounded_value") for name in values["record.variables"]):
        return 0
    support = min(int(values["train.refit_support"]), rows(values))
    return int(values["train.refit_samples"]) * support


def _noise_tokens(values: Mapping[str, Any]) -> int:
    """Context tokens drawn in a record for the noise of the gradients, if it is recorded."""
    if not set(NOISE_RECORD) & set(values["record.variables"]):
        return 0
    return int(values["train.noise_samples"]) * int(values["task.context_length"])


def _by_size(values: Mapping[str, Any], costs: tuple[float, float]) -> float:
    small, large = costs
    return small if is_small(values) else large


COST = Cost(
    shared_bytes=outer_bytes,
    kept_bytes=kept_bytes,
    temporary_bytes=temporary_bytes,
    step_bytes=step_bytes,
    run_seconds=run_seconds,
    tokens=tokens_per_trajectory,
    # With a large vocabulary one after the other is twice as fast (`scbjax.singly`).
    is_taken_singly=lambda values: not is_small(values),
)
"""The estimates that the engine plans with."""


def papers_cost(optimizer: str, times: Callable[[Values], int]) -> Cost:
    """The estimates for an experiment whose trajectories are like those of the paper's learner.

    Args:
        optimizer: the paper's arm whose steps are most like those of the experiment.
        times: how many times as much a trajectory holds, by the values of its program.
    """

    def like(function: Callable[..., Any], *, holds: bool = False) -> Callable[..., Any]:
        def estimate(values: Values, *shape: Any) -> Any:  # noqa: ANN401 - of numbers
            found = function({"train.optimizer": optimizer, **values}, *shape)
            return found * times(values) if holds else found

        return estimate

    return Cost(
        shared_bytes=like(COST.shared_bytes),
        kept_bytes=like(COST.kept_bytes, holds=True),
        temporary_bytes=like(COST.temporary_bytes, holds=True),
        step_bytes=like(COST.step_bytes, holds=True),
        run_seconds=like(COST.run_seconds),
        tokens=like(COST.tokens),
        is_taken_singly=like(COST.is_taken_singly),
    )
