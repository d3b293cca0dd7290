"""Learning rates that cannot work, told before a run; and after it, why what diverged did.

Both compare with the stability bound of :func:`scbjax.theory.stable_rate`, which holds for the
preconditioned arms and linear attention. Noise only makes steps less stable.
"""

import math
from collections.abc import Iterator, Mapping
from functools import cache
from types import MappingProxyType

from scbjax.base import CheckedStudy, short_name
from scbjax.values import Values

_MAX_COMBINATIONS = 10_000  # what a warning before a run may look at

_BOUNDED = {"proximal", "sgd"}  # optimizers with a bound
_RATES = tuple(f"train.learning_rate_{stage}" for stage in (1, 2, 3))
_PATHS = (
    *_RATES,
    "train.attention_rate_ratio",
    "train.optimizer",
    "train.scale_rates",
    "train.start",
    "train.switch_on",
    "train.switch_level",
    "train.switch_step",
    "train.stop_level",
    "train.stop_step",
    "train.steps",
    "train.record_every",
    "model.attention_map",
    "task.context_length",
    "task.sparsity",
)

Signals = tuple[float, float]
"""K_P and K_Q."""


def rate_warnings(study: CheckedStudy, given: Values = MappingProxyType({})) -> list[str]:
    """A line for each rate that has values with which the noiseless learner cannot settle.

    A rate counts if its stage can last until the signals are of size one, and if it is above the
    bound of every task that the study may draw.

    Args:
        study: the study.
        given: by path, what its experiment has no choice of.

    Returns:
        The lines; none if nothing is wrong, or if the study is too large to look through.
    """
    paths = tuple(path for path in _PATHS if path not in given)
    if study.count_combinations(paths) > _MAX_COMBINATIONS:
        return []
    found: dict[str, dict[float, float]] = {path: {} for path in _RATES}
    for row in study.combinations(paths):
        values = {**given, **dict(zip(paths, row, strict=True))}
        for path in _RATES:
            bound = _bound(values, path, _most_lenient(values))
            if _can_reach_the_truth(values, path) and values[path] > bound:
                found[path][values[path]] = max(bound, found[path].get(values[path], 0.0))
    return [
        f"warning: {short_name(path)} = {', '.join(f'{rate:g}' for rate in sorted(rates))} "
        f"cannot work: without noise, steps settle at (P, Q) below {max(rates.values()):.3g} only"
        for path, rates in found.items()
        if rates
    ]


def likely_cause(values: Values, constants: Mapping[str, float]) -> str:
    """Why a trajectory diverged, by what it was made of.

    Args:
        values: of its parameters, by dotted path.
        constants: its K_P and K_Q, ``transition_signal`` and ``pattern_signal``.

    Returns:
        The end of a sentence.
    """
    signals = constants["transition_signal"], constants["pattern_signal"]
    above = list(_above(values, signals))
    if above:
        return f"likely cause: {', '.join(above)}"
    if math.isinf(_bound(values, _RATES[0], signals)):
        return "likely cause: its rates; no stability bound is known for its optimizer"
    return "likely cause: noise, as its rates are below the stability bound; try a larger batch"


def _above(values: Values, signals: Signals) -> Iterator[str]:
    for path in _RATES:
        bound = _bound(values, path, signals)
        if values[path] > bound:
            short = short_name(path)
            yield f"{short} = {values[path]:g} is above the stability bound {bound:.3g} of its task"


def _bound(values: Values, path: str, signals: Signals) -> float:
    """The stability bound of a rate; infinity for learners that none is known of."""
    if values["train.optimizer"] not in _BOUNDED or values["model.attention_map"] != "linear":
        return math.inf
    ratio = 0.0 if path == _RATES[2] else values["train.attention_rate_ratio"]
    return _stable_rate(signals, values["task.context_length"], ratio, values["train.scale_rates"])


@cache
def _stable_rate(signals: Signals, context_length: int, ratio: float, scale_rates: bool) -> float:
    from scbjax.theory import stable_rate  # which imports JAX

    k_p, k_q = signals
    if scale_rates and min(signals) <= 0:  # a task without signal has rates of its own
        return math.inf
    return float(
        stable_rate(
            transition_signal=k_p,
            pattern_signal=k_q,
            context_length=context_length,
            attention_rate_ratio=ratio,
            scale_rates=scale_rates,
        )
    )


def _most_lenient(values: Values) -> Signals:
    """K_P and K_Q with the largest bound that a task of the study can have.

    Scaled rates leave K_Q in the bound as 1 / (T K_Q) alone, and K_Q is at most 1 - 1/T. With rates
    as they are, the bound falls with both; K_Q is at least 1/Q - 1/T.
    """
    length, sparsity = values["task.context_length"], values["task.sparsity"]
    if values["train.scale_rates"]:
        return 1.0, 1.0 - 1.0 / length
    return 0.0, 1.0 / sparsity - 1.0 / length


def _can_reach_the_truth(values: Values, path: str) -> bool:
    """Whether the stage of a rate can come, and can last until the signals are of size one."""
    first_ends = _ends(values, "train.switch_step", "train.switch_level")
    second_comes = first_ends or values["train.start"] != "uniform"
    if path == _RATES[0]:
        # A transfer begins with stage 2; pretraining goes through all stages.
        return values["train.start"] != "transfer" and (not first_ends or _overshoots(values))
    if path == _RATES[1]:
        return second_comes
    second_ends = _ends(values, "train.stop_step", "train.stop_level")
    return values["train.optimizer"] == "proximal" and second_comes and second_ends


def _ends(values: Values, step: str, level: str) -> bool:
    """Whether a stage that ends at a step, or at a level, can end at all."""
    if values["train.switch_on"] == "step":
        return int(values[step]) < int(values["train.steps"])
    return math.isfinite(values[level])


def _overshoots(values: Values) -> bool:
    """Whether signals can grow to one in stage 1 before it is looked at again.

    Noiseless steps multiply small signals by ``1 + eta sqrt(r)``, r the ratio of the two rates,
    where rates are scaled; with rates as they are, which multiply by less, the bound is of little
    use in stage 1.
    """
    if not values["train.scale_rates"]:
        return False
    growth = math.log1p(values[_RATES[0]] * math.sqrt(values["train.attention_rate_ratio"]))
    if values["train.switch_on"] == "step":
        # From the push of 1/T at the start.
        steps, needed = int(values["train.switch_step"]), float(values["task.context_length"])
    else:
        steps, level = int(values["train.record_every"]), float(values["train.switch_level"])
        needed = 1.0 / level if level > 0 else math.inf
    return steps * growth >= math.log(needed)
