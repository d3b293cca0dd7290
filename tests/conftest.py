"""Strict JAX settings for every test: promotion that nobody asked for is an error."""

import os

# Before JAX is imported: tests run on the CPU whatever else the machine has.
os.environ["JAX_PLATFORMS"] = "cpu"

import hypothesis
import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
# A cache that outlives the process could serve a program compiled before the code changed on disk.
jax.config.update("jax_enable_compilation_cache", False)
# How long an example takes says nothing where other tests run at the same time.
hypothesis.settings.register_profile(
    "untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("untimed")
# Started here with one device: the command would make one for each core.
jax.devices()
