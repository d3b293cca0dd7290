"""Data of one's own in a sweep: the letters of a text, of which the next one is to be told.

Run it: scbjax run docs/examples/letters.toml --experiment docs/examples/letters.py
"""

import numpy as np
import optax

import scbjax
from scbjax.base import Parameter

words = ["the bird ", "the boat ", "and the ", "sees ", "a boat ", "a bird "]
text = "".join(words[n] for n in np.random.default_rng(0).integers(len(words), size=4000))
letters = sorted(set(text))
tokens = np.array([letters.index(letter) for letter in text])

PARAMETERS = (
    Parameter("data.context_length", int, 8, "static", "outer", "Context length T", symbol="$T$"),
    Parameter("train.rate", float, 0.01, "traced", "inner", "Rate of Adam", symbol=r"$\eta$"),
)


def source(static):  # contexts at random places of the text, whose last tenth is held out
    length = static["context_length"]
    return scbjax.windows(tokens, context_length=length, num_tokens=len(letters), held_out=0.1)


def make(source, static, **given):
    model = scbjax.linear_transformer()
    return scbjax.learner(source, model, lambda task, v, _: optax.adam(v["rate"]), **given)


record = ("batch_loss", scbjax.held_out_loss)
EXPERIMENT = scbjax.learning("letters", source, make, record=record, parameters=PARAMETERS)
