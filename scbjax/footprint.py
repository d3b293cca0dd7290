"""What the steps of the paper's learner go through again and again, in bytes.

Fits to what the compiler reports for programs with N from 3 to 300 and T from 500 to 5000. Imports
no JAX: studies are planned with it, and `scbjax.train` decides by it how to map trajectories.
"""

import math

SMALL_VOCABULARY = 32
"""Vocabularies up to this size have programs of their own (`scbjax.sampling`)."""
BLOCK_TOKENS = 2**15
"""Tokens that a step of a small vocabulary works on at a time (`scbjax.blocks`)."""
OUTER_BYTES = (1.75, 10.0)
"""Bytes per token of the batch that all who share it go through; for small vocabularies, others."""
STEP_BYTES = (4.5, 1.5)
"""Bytes per token that each of them works on at a time; for small vocabularies, and for others."""
TEMPORARY_ATTENTIONS = 2.25
"""Arrays of the size of A [T, N] that a step holds besides A."""


def step_bytes(
    num_tokens: int, rows: int, batch_size: int, *, learners: int = 1, float_bytes: int = 4
) -> int:
    """Bytes that a step goes through.

    Args:
        num_tokens: N.
        rows: of A, T where all positions get tokens.
        batch_size: B.
        learners: how many share the mini-batch.
        float_bytes: of a number.

    Example:
        >>> step_bytes(3, 5000, 64), step_bytes(20, 5000, 64)
        (902456, 2007456)
    """
    tokens = batch_size * rows
    is_large = num_tokens > SMALL_VOCABULARY
    at_a_time = tokens if is_large else min(tokens, BLOCK_TOKENS)
    each = STEP_BYTES[is_large] * at_a_time
    each += float_bytes * (1 + TEMPORARY_ATTENTIONS) * rows * num_tokens
    return math.ceil(OUTER_BYTES[is_large] * tokens + learners * each)
