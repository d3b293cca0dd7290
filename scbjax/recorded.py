"""What can be recorded of a state: each observable is declared here, and only here.

A function of a :class:`scbjax.observables.View`, a name in words, a symbol and units; the names are
those of study files and datasets. Nothing here imports JAX, so that studies are checked without it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from scbjax.parts import Observable
from scbjax.tables import Registry, brief, nearest

RECORDED: dict[str, Observable] = {
    "alpha_value": Observable(
        lambda v: v.projection.alpha_value, "signal in the value matrix", r"$\alpha_V$"
    ),
    "alpha_attention": Observable(
        lambda v: v.projection.alpha_attention, "signal in the attention matrix", r"$\alpha_A$"
    ),
    "delta_value": Observable(
        lambda v: v.norm(v.projection.delta_value),
        "value matrix off the population path",
        r"$\|\Delta_V\|_\mu$",
    ),
    "delta_attention": Observable(
        lambda v: v.norm(v.projection.delta_attention),
        "attention matrix off the population path",
        r"$\|\Delta_A\|_\mu$",
    ),
    "value_distance": Observable(
        lambda v: v.distance(v.params.value, v.task.transition),
        "distance of V to P",
        r"$\|V - P\|_\mu$",
    ),
    "attention_distance": Observable(
        lambda v: v.distance(v.params.attention, v.task.pattern),
        "distance of A to Q",
        r"$\|A - Q\|_\mu$",
    ),
    "value_similarity": Observable(
        lambda v: v.similarity(v.params.value, v.task.transition),
        "cosine similarity of V and P",
        r"$\cos_\mu(V, P)$",
    ),
    "attention_similarity": Observable(
        lambda v: v.similarity(v.params.attention, v.task.pattern),
        "cosine similarity of A and Q",
        r"$\cos_\mu(A, Q)$",
    ),
    "rounded_value_distance": Observable(
        lambda v: v.distance(v.refitted_value, v.task.transition),
        "distance of V to P, V refitted on fresh samples to the rounded A",
        r"$\|\hat V - P\|_\mu$",
    ),
    "rounded_attention_distance": Observable(
        lambda v: v.distance(v.rounded_attention, v.task.pattern),
        "distance of the rounded A to Q",
        r"$\|\hat A - Q\|_\mu$",
    ),
    "rounded_value_similarity": Observable(
        lambda v: v.similarity(v.refitted_value, v.task.transition),
        "cosine similarity of P and the V refitted on fresh samples to the rounded A",
        r"$\cos_\mu(\hat V, P)$",
    ),
    "rounded_attention_similarity": Observable(
        lambda v: v.similarity(v.rounded_attention, v.task.pattern),
        "cosine similarity of the rounded A and Q",
        r"$\cos_\mu(\hat A, Q)$",
    ),
    "excess_loss": Observable(
        lambda v: v.excess_loss,
        "expected loss above that of the truth",
        r"$L(V, A) - L(P, Q)$",
    ),
    "batch_loss": Observable(
        lambda v: v.batch_loss, "loss of the last mini-batch, before its step", r"$\ell$"
    ),
    "nonzeros": Observable(
        lambda v: v.nonzeros,
        "entries of A that stand out from the background of their column",
        r"$\|A\|_0$",
        units="count",
        dtype="int32",
    ),
    "stage": Observable(lambda v: v.stage, "stage of the algorithm", "stage", dtype="int32"),
    "flipped": Observable(
        lambda v: v.flips,
        "whether the sign flip at the end of stage 1 fired",
        "flip",
        dtype="int32",
    ),
    "samples": Observable(
        lambda v: v.samples, "samples used so far", r"$\tau B$", units="samples", dtype="int32"
    ),
    "population_alpha_value": Observable(
        lambda v: v.population[0],
        "signal in V of the noiseless recursion",
        r"$\alpha_V$ (population)",
    ),
    "population_alpha_attention": Observable(
        lambda v: v.population[1],
        "signal in A of the noiseless recursion",
        r"$\alpha_A$ (population)",
    ),
    "population_refit_distance": Observable(
        lambda v: v.distance(v.population_refit, v.task.transition),
        "distance of V to P, V fitted to the rounded A with the law of the task itself",
        r"$\|V^* - P\|_\mu$",
        default=False,
    ),
    "attention_gain_support": Observable(
        lambda v: v.gain_on_support,
        "effective preconditioner of A relative to its start, mean over the support of Q",
        r"$(JJ^\top)_{tt}$ on $Q$",
        default=False,
    ),
    "attention_gain_rest": Observable(
        lambda v: v.gain_off_support,
        "effective preconditioner of A relative to its start, mean off the support of Q",
        r"$(JJ^\top)_{tt}$ off $Q$",
        default=False,
    ),
    "alpha_value_noise_mu": Observable(
        lambda v: v.noise.deviation.value_mu,
        "deviation over samples of the gradient of alpha_V, mu geometry",
        r"$\sigma(\nabla \alpha_V)$, $\mu$",
        default=False,
    ),
    "alpha_value_noise_paper": Observable(
        lambda v: v.noise.deviation.value_paper,
        "deviation over samples of the gradient of alpha_V, projector as printed",
        r"$\sigma(\nabla \alpha_V)$, printed",
        default=False,
    ),
    "alpha_attention_noise": Observable(
        lambda v: v.noise.deviation.attention,
        "deviation over samples of the gradient of alpha_A",
        r"$\sigma(\nabla \alpha_A)$",
        default=False,
    ),
    "alpha_value_gradient_mu": Observable(
        lambda v: v.noise.mean.value_mu,
        "mean over samples of the gradient of alpha_V, mu geometry",
        r"$\nabla \alpha_V$, $\mu$",
        default=False,
    ),
    "alpha_value_gradient_paper": Observable(
        lambda v: v.noise.mean.value_paper,
        "mean over samples of the gradient of alpha_V, projector as printed",
        r"$\nabla \alpha_V$, printed",
        default=False,
    ),
    "alpha_attention_gradient": Observable(
        lambda v: v.noise.mean.attention,
        "mean over samples of the gradient of alpha_A",
        r"$\nabla \alpha_A$",
        default=False,
    ),
    "initial_noise_mu": Observable(
        lambda v: v.initial_noise("mu"),
        "deviation over samples of the gradient of alpha_V at the start, mu geometry, exact",
        r"$\sigma_0(\nabla \alpha_V)$, $\mu$",
        default=False,
    ),
    "initial_noise_paper": Observable(
        lambda v: v.initial_noise("paper"),
        "deviation over samples of the gradient of alpha_V at the start, as printed, exact",
        r"$\sigma_0(\nabla \alpha_V)$, printed",
        default=False,
    ),
}
"""All of them by name; :data:`scbjax.recorded.OBSERVABLES` takes a user's as well."""

# What takes long, or is there for a comparison only, is recorded where it is named.
DEFAULT_RECORD: tuple[str, ...] = tuple(name for name, entry in RECORDED.items() if entry.default)
"""What is recorded unless a study or a setting says otherwise."""

NOISE_RECORD: tuple[str, ...] = (
    "alpha_value_noise_mu",
    "alpha_value_noise_paper",
    "alpha_attention_noise",
    "alpha_value_gradient_mu",
    "alpha_value_gradient_paper",
    "alpha_attention_gradient",
)
"""Variables for which fresh contexts are drawn in every record."""

OBSERVABLES: Registry[Observable] = Registry("observable", RECORDED)
"""The table; a name stands for one observable for as long as the process lasts.

See :class:`scbjax.tables.Registry`."""

Recorded: TypeAlias = str | Observable | Callable[..., Any]
"""One thing to record: the name of one of ours, or one's own as an observable or a function."""

Record: TypeAlias = Sequence[Recorded] | Mapping[str, Recorded]
"""What to record: a list, or a dictionary by names of one's own."""


def as_record(record: Record) -> tuple[str | Observable, ...]:
    """What to record, as a tuple by which compiled programs are known.

    Args:
        record: names of :data:`OBSERVABLES`, observables, and functions of a
            :class:`scbjax.View`. In a
            list, an observable is recorded under its ``name`` and a function under its own; in a
            dictionary, under the key.

    Returns:
        A name for each one of ours that keeps its name, and an :class:`Observable` with a name for
        each other.

    Raises:
        ValueError: for a name that nothing has, or that two things have; and for what is none.

    Example:
        >>> def largest(view):
        ...     "largest entry of A"
        ...     return jnp.max(view.params.attention)
        >>> names = as_record(("stage", largest))
        >>> names[0], names[1].name, names[1].long_name
        ('stage', 'largest', 'largest entry of A')
        >>> as_record({"peak": largest})[0].name
        'peak'
    """
    if isinstance(record, str):
        raise ValueError(
            f"record is {record!r}; it must be a tuple of names, such as ({record!r},)"
        )
    if isinstance(record, Observable) or not isinstance(record, tuple | list | Mapping):
        from scbjax.arguments import what

        raise ValueError(
            f"record is {what(record)}; it must be a tuple of names of observables, or of "
            "functions of a view, or a dictionary of these"
        )
    if isinstance(record, Mapping):
        entries = tuple(_as_entry(entry, name) for name, entry in record.items())
    else:
        entries = tuple(_as_entry(entry) for entry in record)
    own: dict[str, str | Observable] = {}
    for entry in entries:
        if own.setdefault(record_name(entry), entry) != entry:
            raise ValueError(f"record has two things named {record_name(entry)!r}")
    return entries


def _as_entry(entry: object, name: str | None = None) -> str | Observable:
    if name is not None and not isinstance(name, str):
        raise ValueError(f"record has the key {brief(name)}; it must be a name")
    if isinstance(entry, str) and entry in OBSERVABLES:
        return entry if name in (None, entry) else OBSERVABLES[entry]._replace(name=name or "")
    if callable(entry) and not isinstance(entry, type):
        words = (getattr(entry, "__doc__", None) or "").strip().partition("\n")[0]
        entry = Observable(entry, words, name=getattr(entry, "__name__", ""))
    if not isinstance(entry, Observable):
        hint = nearest(entry, OBSERVABLES) if isinstance(entry, str) else ""
        known = f"; it must name observables: {', '.join(OBSERVABLES)}"
        raise ValueError(f"record has {brief(entry)}{hint or known}")
    entry = entry if name is None else entry._replace(name=name)
    if not entry.name.isidentifier() or entry.name in OBSERVABLES:
        taken = " is the name of one of ours" if entry.name in OBSERVABLES else " is no name"
        raise ValueError(
            f"record has an observable of one's own, of which {entry.name!r}{taken}; "
            'it must be given one, as in {"largest_weight": function}'
        )
    return entry


def record_name(entry: str | Observable) -> str:
    """The name of an entry of a record."""
    return entry if isinstance(entry, str) else entry.name


def record_dims(entry: str | Observable) -> tuple[str, ...]:
    """The names of the axes that an entry of a record has, beside that of the records."""
    return (OBSERVABLES[entry] if isinstance(entry, str) else entry).dims
