"""An attention map of one's own: A = W^2 entry by entry, nonnegative without a constraint."""

import math

import jax

import scbjax

# Known by its functions: another one may have the same name. `step_scale` is left to be derived,
# and without `gain` the two observables attention_gain_* can't be recorded.
square = scbjax.AttentionMap(
    weights=lambda roots: roots**2,
    start=lambda context_length: 1 / math.sqrt(context_length),
    name="square",
)

task = scbjax.random_task(jax.random.key(0), num_tokens=3, context_length=100, sparsity=2)
settings = scbjax.Settings(
    batch_size=32,
    steps=600,
    record_every=200,
    optimizer="adam",  # what makes column sums one is for the linear map: others go by plain steps
    attention_map=square,
    scale_rates=False,
    learning_rate_1=0.01,
    learning_rate_2=0.01,
    record=("value_distance", "attention_distance"),
)
trajectory = jax.jit(scbjax.train)(jax.random.key(1), task, settings)
print(trajectory.records["attention_distance"])

learned = scbjax.map_attention(trajectory.params, square)  # W as it was trained, A as it acts
print(scbjax.observe(learned, task, ("attention_distance",)))
