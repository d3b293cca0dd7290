"""Data of one's own: the characters of a text, of which the next one is to be told."""

import jax
import numpy as np

import scbjax

# Any array of integers will do. Here a text of the shape of one: a walk along a few words.
words = ["the bird ", "the boat ", "and the ", "sees ", "a boat ", "a bird "]
order = np.random.default_rng(0).integers(len(words), size=4000)
text = "".join(words[number] for number in order)
letters = sorted(set(text))
tokens = np.array([letters.index(letter) for letter in text])

# Contexts of 8 characters at random places; the last tenth of the text is held out. The query is
# also the first token of the context, so that the learner can attend to it.
source = scbjax.windows(
    tokens, context_length=8, num_tokens=len(letters), query_first=True, held_out=0.1
)
settings = scbjax.Settings(
    batch_size=64,
    steps=1000,
    record_every=250,
    optimizer="adam",
    scale_rates=False,  # a text has no K_P and K_Q to scale rates by
    learning_rate_1=0.01,
)


@jax.jit
def train(key: jax.Array) -> scbjax.Trajectory:
    """The linear transformer of the library, with its hand-written gradient."""
    return scbjax.train(key, source, settings, record=("batch_loss", scbjax.held_out_loss))


trajectory = train(jax.random.key(1))
print("held-out loss", trajectory.records["held_out_loss"])
print("attention to the query", trajectory.params.attention[0].round(2))
