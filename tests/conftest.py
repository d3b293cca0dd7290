"""Strict JAX settings for every test: promotion that nobody asked for is an error."""

import importlib.metadata
import os
import sys

# Before JAX is imported: tests run on the CPU whatever else the machine has.
os.environ["JAX_PLATFORMS"] = "cpu"
# Most of the time of the tests is the compiler's, which takes half of it with the older of its two
# ways to make loops and no optimisation. Tests marked slow are compiled as users have it. An
# option that a release does not know would end the process. Workers have what the process that
# started them has.
_STARTED = "PYTEST_XDIST_WORKER" in os.environ
_KNOWN = importlib.metadata.version("jaxlib").startswith("0.10.")
if _KNOWN and not _STARTED and "slow" not in sys.argv:
    os.environ.setdefault(
        "XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level=0"
    )

import hypothesis  # noqa: E402
import jax  # noqa: E402

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
