"""The paper's learner as an experiment: what can be set, what is recorded, and what must fit.

Nothing here imports JAX; :mod:`scbjax.experiments.scb_functions` holds what is computed.
"""

from collections.abc import Mapping
from typing import Any

from scbjax.base import Experiment, Functions, Variable
from scbjax.experiments.scb_common import (
    LIVE,
    LOWERING,
    OF_MU,
    OF_P,
    OF_Q,
    SEARCH,
    SPARSITY_FITS,
    SWITCH_HAS_A_STEP,
    constants,
    variables,
)
from scbjax.experiments.scb_cost import COST
from scbjax.experiments.scb_rates import likely_cause, rate_warnings
from scbjax.parameters import MODEL, PRETRAINING_FITS, TASK, TOGETHER, TRAIN, TRANSFER
from scbjax.recorded import DEFAULT_RECORD, RECORDED
from scbjax.values import Values


def _sizes(values: Values) -> dict[str, int]:
    tokens, length = values["task.num_tokens"], values["task.context_length"]
    return {"token_out": tokens, "token_in": tokens, "position": length, "query": tokens}


def _build(fixed: Values, varying: Mapping[str, tuple[Any, ...]]) -> Functions:
    from scbjax.experiments.scb_functions import functions

    return functions(fixed, varying)


_TOKENS, _POSITIONS = ("token_out", "token_in"), ("position", "query")

EXPERIMENT = Experiment(
    name="scb",
    parameters=(*TASK, *MODEL, *TRAIN, *TRANSFER),
    build=_build,
    variables=variables(RECORDED),
    default_record=DEFAULT_RECORD,
    constants=constants(OF_Q),
    kept={
        "value": Variable("value matrix", "$V$", dims=_TOKENS),
        "attention": Variable("attention matrix", "$A$", dims=_POSITIONS),
    },
    truth={
        "transition": Variable("transition matrix", "$P$", dims=_TOKENS, depends_on=OF_P),
        "stationary": Variable(
            "stationary distribution", r"$\mu$", dims=("token_in",), depends_on=OF_MU
        ),
        "pattern": Variable("attention pattern", "$Q$", dims=_POSITIONS, depends_on=OF_Q),
    },
    dims={
        "token_out": Variable("row of V, the token predicted", "$n$"),
        "token_in": Variable("column of V, the token attended to", "$m$"),
        "position": Variable("position in the context", "$t$"),
        "query": Variable("query token", "$k$"),
    },
    sizes=_sizes,
    size_paths=("task.num_tokens", "task.context_length"),
    live=LIVE,
    relations=(SPARSITY_FITS, SWITCH_HAS_A_STEP, *TOGETHER),
    warn=rate_warnings,
    cause=likely_cause,
    dtype=lambda values: str(values.get("task.dtype", "float32")),
    lowering=LOWERING,
    cost=COST,
    search=SEARCH._replace(fit=(PRETRAINING_FITS,)),
)
"""The sparse contextual bigram and its one-layer linear transformer."""
