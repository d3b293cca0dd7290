"""Names of what is recorded of the paper's learner, without JAX."""

DEFAULT_RECORD: tuple[str, ...] = (
    "alpha_value",
    "alpha_attention",
    "delta_value",
    "delta_attention",
    "value_distance",
    "attention_distance",
    "value_similarity",
    "attention_similarity",
    "rounded_value_distance",
    "rounded_attention_distance",
    "rounded_value_similarity",
    "rounded_attention_similarity",
    "excess_loss",
    "batch_loss",
    "nonzeros",
    "stage",
    "flipped",
    "samples",
    "population_alpha_value",
    "population_alpha_attention",
)
"""What is recorded unless a study says otherwise: `scbjax.observables.DEFAULT_RECORD`."""

NOISE_RECORD: tuple[str, ...] = (
    "alpha_value_noise_mu",
    "alpha_value_noise_paper",
    "alpha_attention_noise",
    "alpha_value_gradient_mu",
    "alpha_value_gradient_paper",
    "alpha_attention_gradient",
)
"""Variables for which fresh contexts are drawn in every record."""

RECORDABLE: tuple[str, ...] = (
    *DEFAULT_RECORD,
    "population_refit_distance",
    "attention_gain_support",
    "attention_gain_rest",
    *NOISE_RECORD,
    "initial_noise_mu",
    "initial_noise_paper",
)
"""Names of `scbjax.observables.OBSERVABLES`, repeated so that studies are checked without JAX."""
