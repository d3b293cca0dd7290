"""The learner at context lengths T where real contexts are dear: a step costs the same for any T.

Ren, Wang & Lee (2024), section 5, run Lemmas C.5 and C.6 with Gaussian noise where N is 100 or 500
and T is 100000. Here the noise is not postulated but sampled, with the covariance that mini-batches
have. A has R rows, far fewer than T: the *tagged* positions. All positions in which Q has weight
are among them; a tagged position off this support stands for ``m = (T - Q) / (R - Q)`` positions
that go through the same in law. What is left out, T - R positions of small weights, is summed up:

* Tagged positions get tokens, and with them labels, attention and gradients, as in
  :mod:`scbjax.training`. Since their own tokens are in ``h = X a`` with their own weights, the
  drift of Lemma B.8 need not be put in by hand.
* Of the others a sample needs ``h_o = sum a_t e_{x_t}`` and, for the mean of a gradient over
  positions, the counts ``n_o = sum e_{x_t}``. Tokens are i.i.d., so with ``Sigma = diag(mu) - mu
  mu^T``, ``s_1 = sum a_t`` and ``s_2 = sum a_t^2`` over these positions,

      E h_o = s_1 mu,            E n_o = (T - R) mu,
      Cov h_o = s_2 Sigma,       Cov n_o = (T - R) Sigma,       Cov(h_o, n_o) = s_1 Sigma,

  exactly. They are drawn as Gaussian vectors; ``s_1`` and ``s_2`` come from the tagged positions.
* What tagged positions can't tell about a sum over all positions is put right by the drawn vectors:
  the mean of the gradient, and ``<a, u>`` of a column a and its update u, which moves ``|a|^2``.

So the noise has the mean and covariance of real mini-batches for given (V, A), up to O(1/T) for the
part that is quadratic in h, and up to O(1/R) in ``|h_A|^2``. With R = T nothing is left out, and
the simulation is the training itself. What R tagged positions can't show: what happens to fewer
than one in R of the positions, such as a few false positives that survive a threshold.

A recursion of the four numbers of Lemmas C.5 and C.6 alone does not close: the covariance of the
noise depends on V and on the columns of A themselves (``s_2`` of every column, for one), not only
on the signals and on the norms of the remainders. Hence this form.
"""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from scbjax import optim
from scbjax.algorithm import strengths, three_stages
from scbjax.arguments import SIZES, as_integer, check_is
from scbjax.composition import REFITS, LearnerState
from scbjax.model import LINEAR, Params, as_attention_map, attend, attend_transpose
from scbjax.observables import observe_view
from scbjax.paper import check_arguments, init as init_training, step_sizes
from scbjax.parameters import SIMULATED_OPTIMIZERS, Geometry
from scbjax.recorded import DEFAULT_RECORD, Record, as_record, record_name
from scbjax.sampling import (
    Batch,
    Sampler,
    check_batch,
    draw_batch,
    fold_in,
    make_sampler,
    make_seed,
)
from scbjax.settings import Settings, check_settings
from scbjax.stages import mirror, round_attention, rounding_level
from scbjax.staging import end_stage
from scbjax.tagged import Others, SimulatedView, draw_others, repeats
from scbjax.task import Task, check_one_task, mu_inner, pattern_signal, product, transition_signal
from scbjax.theory import PathProjection, path_point, population_step, ratio, signals
from scbjax.training import changed
from scbjax.trajectories import Loop, Trajectory, as_trajectory, in_stretches, record_at, run

# Streams of a trajectory's key. Of those of scbjax.paper only the refits are shared: a
# simulation and a training with the same seed see independent noise.
_TAGGED, _OTHERS = 100, 101
# A column whose entries are equal up to so many units in the last place counts as flat: more than
# its sum may be off by.
_FLAT = 32


class Gradient(NamedTuple):
    """The gradient of a mini-batch loss, with sums over all T positions.

    Attributes:
        value: of V, [N, N].
        attention: of the tagged rows of A, [R, N].
        total: sum of the gradient of A over all positions, [N].
        overlap: ``sum a_t g_t`` over all positions off the support, [N].
        loss: the mini-batch loss, a scalar.
    """

    value: jax.Array
    attention: jax.Array
    total: jax.Array
    overlap: jax.Array
    loss: jax.Array


@dataclasses.dataclass(frozen=True)
class Simulation:
    """The learner at context length T, with the functions of :mod:`scbjax.paper`.

    Tasks that it is given have R rows, the tagged positions, at least one of them off the support
    of every column of Q.

    Attributes:
        context_length: T.

    Raises:
        ValueError: if T is no positive integer.
    """

    context_length: int

    def __post_init__(self) -> None:
        """Checks T and makes a plain integer of it, by which compiled programs are known."""
        length = as_integer("context_length", self.context_length, SIZES)
        object.__setattr__(self, "context_length", length)

    def init(self, key: jax.Array, task: Task, settings: Settings) -> LearnerState:
        """The state before the first step; see :func:`scbjax.paper.init`.

        Raises:
            TypeError: if an argument is something else than it is meant to be.
            ValueError: for Adam and for attention maps other than the linear one.
        """
        check_arguments(key, task, settings)
        allowed = {"attention_map": ("linear",), "optimizer": SIMULATED_OPTIMIZERS}
        own_map = as_attention_map(settings.attention_map)
        found = {"attention_map": own_map.name, "optimizer": settings.optimizer}
        fit = {
            "attention_map": own_map == LINEAR,
            "optimizer": settings.optimizer in SIMULATED_OPTIMIZERS,
        }
        for name, choices in allowed.items():
            if not fit[name]:
                raise ValueError(
                    f"{name} is {found[name]!r}; "
                    f"in a simulation it must be one of {', '.join(choices)}"
                )
        state = init_training(key, task, settings)
        uniform = jnp.full_like(task.pattern, 1.0 / self.context_length)
        return state._replace(params=state.params._replace(attention=uniform), opt_state=())

    def gradient(self, params: Params, batch: Batch, others: Others, task: Task) -> Gradient:
        """The gradient of the loss on a mini-batch of which only tagged tokens are known.

        Args:
            params: V [N, N] and the tagged rows of A [R, N].
            batch: tokens [B, R], query [B], label [B].
            others: what stands for the T - R other positions.
            task: the task.

        Returns:
            The gradient.

        Raises:
            TypeError: if the task or the batch is something else.
            ValueError: for a wrong batch, see :func:`scbjax.sampling.check_batch`.
        """
        check_one_task("task", task)
        check_batch(batch, task)
        return self._gradient(params, batch, others, task)

    def _gradient(self, params: Params, batch: Batch, others: Others, task: Task) -> Gradient:
        """:meth:`gradient`, with everything checked."""
        mu, attention = task.stationary, params.attention
        left_out = repeats(task.pattern, self.context_length) - 1.0
        mass = jnp.sum(left_out * attention, axis=0)[batch.query]
        square = jnp.sum(left_out * attention**2, axis=0)[batch.query]
        size = jnp.sqrt(square)
        rest = mass[:, None] * mu[None, :] + size[:, None] * others.sums
        attended = attend(attention, batch.tokens, batch.query) + rest
        labels = jax.nn.one_hot(batch.label, task.num_tokens, dtype=attended.dtype)
        error = product(attended, params.value.T) - labels
        scores = product(error, params.value) / batch.label.shape[0]
        rows = attend_transpose(scores, batch.tokens, batch.query)

        explained = _over(mass, size)
        number = self.context_length - attention.shape[0]
        mean = product(scores, mu)
        spread = jnp.sqrt(jnp.maximum(product(scores**2, mu) - mean**2, 0.0))
        counted = number * mean + explained * jnp.sum(scores * others.sums, axis=1)
        unexplained = jnp.sqrt(jnp.maximum(number - explained**2, 0.0))
        counted = counted + unexplained * spread * others.counts
        outside = jnp.where(task.pattern == 0, attention * rows, 0.0)
        return Gradient(
            value=product(error.T, attended) / batch.label.shape[0],
            attention=rows,
            total=jnp.sum(rows, axis=0) + _by_query(counted, batch.query, mu),
            overlap=jnp.sum(outside, axis=0)
            + _by_query(jnp.sum(scores * rest, axis=1), batch.query, mu),
            loss=0.5 * jnp.sum(error**2) / batch.label.shape[0],
        )

    def direction(
        self, gradient: Gradient, params: Params, task: Task, geometry: Geometry
    ) -> Params:
        """The preconditioned, projected gradient (eq. 4), with ``1^T`` of A over all T positions.

        Args:
            gradient: of a mini-batch.
            params: V [N, N] and A [R, N].
            task: the task.
            geometry: right projector of V, see :func:`scbjax.optim.project_tangent`.

        Returns:
            Directions of the shapes of the parameters.
        """
        mu = task.stationary
        each = repeats(task.pattern, self.context_length)
        off = jnp.where(task.pattern == 0, each, 0.0)
        count = jnp.sum(off, axis=0)
        # What the tagged rows say of <a, u> is exchanged for what all positions say, along the one
        # direction that it is about.
        level = jnp.sum(off * params.attention, axis=0) / count
        centred = params.attention - level[None, :]
        support = jnp.sum(jnp.where(task.pattern == 0, 0.0, gradient.attention), axis=0)
        known = jnp.sum(off * centred * gradient.attention, axis=0)
        wanted = gradient.overlap - level * (gradient.total - support)
        spread = jnp.sum(off * centred**2, axis=0)
        # Of a column that is flat, as at the start, rounding alone is left, which has no direction.
        rounding = (_FLAT * jnp.finfo(mu.dtype).eps) ** 2 * jnp.sum(
            off * params.attention**2, axis=0
        )
        missing = _over(wanted - known, jnp.where(spread > rounding, spread, 0.0))
        rows = gradient.attention + jnp.where(off > 0, centred * missing[None, :], 0.0)
        rows = (rows - gradient.total[None, :] / self.context_length) / mu[None, :]
        # The sum over all positions is zero; tagged rows off the support are a sample of theirs.
        excess = jnp.sum(each * rows, axis=0) / count
        rows = rows - jnp.where(off > 0, excess[None, :], 0.0)
        return Params(_value_direction(gradient.value, mu, geometry), rows)

    def step(
        self, state: LearnerState, batch: Batch, others: Others, task: Task, settings: Settings
    ) -> LearnerState:
        """One step; the stage stays what it is. See :func:`scbjax.paper.step`."""
        check_is("state", state, LearnerState, "such as init makes")
        check_one_task("task", task)
        check_batch(batch, task)
        check_settings(settings)
        return self._step(state, batch, others, task, settings)

    def _step(
        self, state: LearnerState, batch: Batch, others: Others, task: Task, settings: Settings
    ) -> LearnerState:
        """:meth:`step`, with everything checked."""
        signal = pattern_signal(task, self.context_length)
        rates, l1 = step_sizes(state, task, settings, signal)
        with jax.default_matmul_precision(settings.precision):
            gradient = self._gradient(state.params, batch, others, task)
        if settings.optimizer == "raw_sgd":
            move = Params(gradient.value, gradient.attention)
        else:
            move = self.direction(gradient, state.params, task, settings.geometry)
        attention = state.params.attention - rates.attention * move.attention
        if settings.optimizer == "proximal":
            attention = self._restore(optim.soft_threshold(attention, l1), task)
        attention = jnp.where(state.stage == 3, state.params.attention, attention)
        alpha_value, alpha_attention = state.tracked.population
        population = population_step(
            alpha_value,
            alpha_attention,
            rates,
            transition_signal=transition_signal(task),
            pattern_signal=signal,
            context_length=self.context_length,
        )
        return state._replace(
            params=Params(state.params.value - rates.value * move.value, attention),
            step=state.step + 1,
            batch_loss=gradient.loss,
            tracked=state.tracked._replace(population=population),
        )

    def next_stage(self, state: LearnerState, task: Task, settings: Settings) -> LearnerState:
        """Ends stage 1 or 2 if it is over; see :func:`scbjax.paper.next_stage`."""
        stages = three_stages(settings, self._end_boosting, self._end_proximal)
        # No end of a stage draws anything.
        view = self._view(jax.random.key(0), task, settings, state)
        ended: LearnerState = end_stage(stages, state, view, task, settings)
        return ended

    def advance(
        self,
        key: jax.Array,
        task: Task,
        settings: Settings,
        state: LearnerState,
        start: jax.Array | int,
        num_records: int,
    ) -> tuple[LearnerState, dict[str, jax.Array]]:
        """Steps and records; see :func:`scbjax.paper.advance`."""
        loop = self.loop(key, task, settings)
        return in_stretches(loop, state, start, settings.record_every, num_records)

    def take_record(
        self, key: jax.Array, task: Task, settings: Settings, state: LearnerState, index: jax.Array
    ) -> tuple[LearnerState, dict[str, jax.Array]]:
        """One record; see :func:`scbjax.paper.take_record`."""
        return record_at(self.loop(key, task, settings), state, settings.record_every, index)

    def loop(self, key: jax.Array, task: Task, settings: Settings) -> Loop:
        """The parts of a trajectory; see :func:`scbjax.trajectories.in_stretches`."""
        key = check_arguments(key, task, settings)
        sampler = make_sampler(task)
        seed = make_seed(jax.random.fold_in(key, _TAGGED), settings.generator)
        key_others = jax.random.fold_in(key, _OTHERS)

        def one_step(state: LearnerState, index: jax.Array) -> LearnerState:
            batch = draw_batch(fold_in(seed, index), sampler, settings.batch_size)
            own = jax.random.fold_in(key_others, index)
            others = draw_others(own, task.stationary, settings.batch_size)
            return self._step(state, batch, others, task, settings)

        def record(state: LearnerState, done: jax.Array) -> dict[str, jax.Array]:
            return self.observe_state(key, task, settings, state, done, sampler)

        return Loop(one_step, partial(self.next_stage, task=task, settings=settings), record)

    def observe_state(
        self,
        key: jax.Array,
        task: Task,
        settings: Settings,
        state: LearnerState,
        start: jax.Array | int,
        sampler: Sampler | None = None,
    ) -> dict[str, jax.Array]:
        """The record of a state; see :func:`scbjax.paper.observe_state`.

        Raises:
            ValueError: for an observable that is not recorded by default.
        """
        key = check_arguments(key, task, settings)
        names = [record_name(entry) for entry in as_record(settings.record)]
        others = [name for name in names if name not in DEFAULT_RECORD]
        if others:
            raise ValueError(
                f"record has {others[0]!r}; a simulation has what is recorded by default"
            )
        own_key = jax.random.fold_in(jax.random.fold_in(key, REFITS), start)
        return observe_view(self._view(own_key, task, settings, state, sampler), settings.record)

    def _view(
        self,
        key: jax.Array,
        task: Task,
        settings: Settings,
        state: LearnerState,
        sampler: Sampler | None = None,
    ) -> "SimulatedView":
        """What observables see of a state, and what decides whether a stage is over."""
        return SimulatedView(
            self,
            state.params,
            key,
            task,
            batch_loss=state.batch_loss,
            stage=state.stage,
            samples=state.step * settings.batch_size,
            flipped=state.tracked.flipped,
            population=state.tracked.population,
            state=state,
            values=settings,
            rounding_share=settings.rounding_level,
            refit_samples=settings.refit_samples,
            refit_support=settings.refit_support,
            noise_samples=settings.noise_samples,
            sampler=sampler,
        )

    def project(self, params: Params, task: Task) -> PathProjection:
        """The split of (V, A) along the population path, for the tagged rows of A.

        Returns:
            As :func:`scbjax.theory.project_on_path`; row t of ``delta_attention`` is multiplied by
            the root of the number of positions it stands for, so that its mu-norm is that of all.
        """
        mu = task.stationary
        overlap = mu_inner(params.attention, task.pattern, mu) - 1.0 / self.context_length
        alpha_value = signals(params, task)[0]
        alpha_attention = ratio(overlap, pattern_signal(task, self.context_length))
        point = path_point(alpha_value, alpha_attention, task, self.context_length)
        root = jnp.sqrt(repeats(task.pattern, self.context_length))
        return PathProjection(
            alpha_value,
            alpha_attention,
            params.value - point.value,
            root * (params.attention - point.attention),
        )

    def _restore(self, attention: jax.Array, task: Task) -> jax.Array:
        """Adds ``(1 - sum) / T`` to the columns of A (eq. 6, iii)."""
        each = repeats(task.pattern, self.context_length)
        missing = 1.0 - jnp.sum(each * attention, axis=0, keepdims=True)
        return attention + missing / self.context_length

    def round(self, attention: jax.Array, task: Task, share: jax.Array | float) -> jax.Array:
        """As :func:`scbjax.stages.round_attention`, with sums over all positions."""
        each = repeats(task.pattern, self.context_length)
        return round_attention(attention, rounding_level(task, share), each)

    def _end_boosting(self, state: LearnerState, task: Task, settings: Settings) -> LearnerState:
        params, each = state.params, repeats(task.pattern, self.context_length)
        strength = strengths(self._view(jax.random.key(0), task, settings, state), settings)[0]
        if settings.flip:
            flips = jnp.sum(each * params.attention**3) < 0
            mirrored = mirror(params, task, self.context_length)
            params = jax.tree.map(lambda a, b: jnp.where(flips, a, b), mirrored, params)
            state = state._replace(
                tracked=state.tracked._replace(flipped=state.tracked.flipped | flips)
            )
        if settings.optimizer == "proximal":
            threshold = jnp.asarray(settings.threshold, params.attention.dtype)
            level = rounding_level(task, threshold * strength)
            kept = jnp.where(params.attention < level, 0.0, params.attention)
            cut = jnp.where(threshold > 0, self._restore(kept, task), params.attention)
            params = params._replace(attention=cut)
        return state._replace(params=params)

    def _end_proximal(self, state: LearnerState, task: Task, settings: Settings) -> LearnerState:
        rounded = self.round(state.params.attention, task, settings.rounding_level)
        alpha_value, alpha_attention = state.tracked.population
        population = alpha_value, jnp.ones_like(alpha_attention)
        tracked = state.tracked._replace(population=population)
        return state._replace(params=state.params._replace(attention=rounded), tracked=tracked)


def simulate(
    key: jax.Array,
    task: Task,
    settings: Settings,
    *,
    context_length: int,
    record: Record | None = None,
    state: LearnerState | None = None,
    steps: int | None = None,
) -> Trajectory:
    """Trains on a task with R positions as if its context had T: see the module's text.

    Args:
        key: a PRNG key.
        task: the task; its R rows are the tagged positions, at least one of them off the support of
            every column of Q. :func:`scbjax.task.random_task` draws the same P, mu and weights of
            Q for every context length.
        settings: the settings.
        context_length: T.
        record: what to record, in the place of ``settings.record``.
        state: the state of a simulation to go on from, as for :func:`scbjax.train`.
        steps: how many steps to take, in the place of ``settings.steps``.

    Returns:
        The trajectory, with ``steps / record_every + 1`` records; its A has R rows.

    Raises:
        TypeError: if an argument is something else than it is meant to be.
        ValueError: if T is below R, and as :func:`scbjax.training.train`.

    Example:
        >>> from scbjax.task import random_task
        >>> task = random_task(jax.random.key(0), num_tokens=3, context_length=40, sparsity=2)
        >>> settings = Settings(batch_size=32, steps=40, record_every=20, record=("samples",))
        >>> run = simulate(jax.random.key(1), task, settings, context_length=10**6)
        >>> run.params.attention.shape, run.records["samples"].tolist()
        ((40, 3), [0, 640, 1280])
    """
    settings = changed(settings, task, record, steps)
    key = check_arguments(key, task, settings)
    simulation = Simulation(context_length)
    if simulation.context_length < task.context_length:
        raise ValueError(
            f"context_length is {context_length}; "
            f"it must be at least the {task.context_length} positions of the task"
        )
    start: jax.Array | int = 0
    if state is None:
        state = simulation.init(key, task, settings)
    else:
        check_is("state", state, LearnerState, "that of a simulation with the same settings")
        start = state.step
    every, loop = settings.record_every, simulation.loop(key, task, settings)
    state, records = run(loop, state, start, every, settings.steps // every)
    return as_trajectory(state, records, start, every)


def _value_direction(update: jax.Array, mu: jax.Array, geometry: Geometry) -> jax.Array:
    """Eq. 4 for V."""
    chain = optax.chain(optim.scale_by_stationary(mu), optim.project_tangent(mu, geometry))
    direction: jax.Array = chain.update(update, chain.init(update))[0]
    return direction


def _by_query(values: jax.Array, query: jax.Array, like: jax.Array) -> jax.Array:
    """Sums values [B] by the query of their sample: [N]."""
    return jnp.zeros_like(like).at[query].add(values)


def _over(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """``numerator / denominator``, and 0 where the denominator is 0."""
    some = denominator > 0
    return jnp.where(some, numerator / jnp.where(some, denominator, 1.0), 0.0)
