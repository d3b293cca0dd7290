"""A fit as a file of netCDF: labelled arrays that xarray opens, and how they were made."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

import scbjax
from scbjax.base import StudyError
from scbjax.fitting.fitted import Fit, Options, Row
from scbjax.fitting.mixtures import Mixture
from scbjax.sweep.results.dataset import read_dataset, save_dataset

if TYPE_CHECKING:
    import xarray as xr

_FORMAT = 1


def to_dataset(fit: Fit) -> xr.Dataset:
    """A fit as labelled arrays: weights, matrices, lags, and the table of scores."""
    import xarray as xr

    mixture, names = fit.mixture, list(fit.names)
    scores = [dataclasses.asdict(row) for row in fit.rows]
    query = {"query": names} if mixture.kind == "scb" else {}
    own: dict[str, Any] = {
        "weights": (("head", "lag", "query"), np.asarray(mixture.weights)),
        "matrices": (("matrix", "next_symbol", "symbol"), np.asarray(mixture.matrices)),
        "frequency": (("symbol",), fit.mu),
        "lag_weight": (("lag",), fit.weights),
        "lag_interval": (("lag", "end"), fit.interval),
        "spectrum": (("component",), fit.spectrum),
    }
    for name in ("parameters", "bits", "brier", "accuracy", "aic", "bic"):
        own[f"score_{name}"] = (("model",), np.array([row[name] for row in scores]))
    dataset = xr.Dataset(
        own,
        coords={
            "lag": list(fit.lags), "symbol": names, "next_symbol": names, **query,
            "end": ["low", "high"], "model": [row.name for row in fit.rows],
        },
        attrs={
            "title": "Mixture over lags",
            "model": mixture.kind,
            "symbols": fit.kind,
            "scbjax_version": scbjax.__version__,
            "fit_format": _FORMAT,
            "options": json.dumps(dataclasses.asdict(fit.options)),
            "counts": json.dumps(fit.counts),
            "tried": json.dumps(fit.tried),
        },
    )  # fmt: skip
    units = {
        "weights": "1", "matrices": "1", "frequency": "1", "lag_weight": "1", "spectrum": "1",
        "score_bits": "bits a symbol", "score_brier": "1", "score_accuracy": "1",
    }  # fmt: skip
    words = {
        "weights": "weight of a lag, of a query where there are several; they sum to 1",
        "matrices": "P[next symbol, symbol at the lag], columns sum to 1",
        "lag_weight": "weight of a lag, in the mean over queries",
        "lag_interval": "interval of the weight of a lag, by resampled blocks",
        "spectrum": "squared singular values of the whitened cross-moments, parts of their sum",
    }
    for name, unit in units.items():
        dataset[name].attrs["units"] = unit
    for name, text in words.items():
        dataset[name].attrs["long_name"] = text
    dataset["lag"].attrs["long_name"] = "symbols back from the one that is told; 1 is just before"
    return dataset


def save_fit(fit: Fit, path: str | Path) -> None:
    """Writes a fit to a file, which is there as a whole or not at all."""
    save_dataset(to_dataset(fit), Path(path))


def load_fit(path: str | Path) -> Fit:
    """Reads a fit.

    Raises:
        StudyError: the file can't be read, or holds no fit.
    """
    dataset = read_dataset(Path(path))
    if "fit_format" not in dataset.attrs:
        raise StudyError(f"{path} holds no fit; `scbjax fit` writes one")
    attributes = dataset.attrs
    names = tuple(str(name) for name in dataset["symbol"].to_numpy())
    options = json.loads(attributes["options"])
    if isinstance(options["lags"], list):
        options["lags"] = tuple(options["lags"])
    fields = [field.name for field in dataclasses.fields(Row)][1:]
    rows = tuple(
        Row(str(name), *(_plain(dataset[f"score_{field}"].to_numpy()[n]) for field in fields))
        for n, name in enumerate(dataset["model"].to_numpy())
    )
    mixture = Mixture(
        jnp.asarray(dataset["weights"].to_numpy()),
        jnp.asarray(dataset["matrices"].to_numpy()),
        jnp.asarray(dataset["lag"].to_numpy(), jnp.int32),
    )
    learned, held_out = json.loads(attributes["counts"])
    return Fit(
        mixture,
        names,
        str(attributes["symbols"]),
        dataset["frequency"].to_numpy(),
        rows,
        dataset["lag_weight"].to_numpy(),
        dataset["lag_interval"].to_numpy(),
        tuple((tuple(lags), bic) for lags, bic in json.loads(attributes["tried"])),
        dataset["spectrum"].to_numpy(),
        (learned, held_out),
        Options(**options),
    )


def _plain(value: Any) -> Any:  # noqa: ANN401 - a number of NumPy
    return value.item()
