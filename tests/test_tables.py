"""Tables of names: a name stands for one thing."""

import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import pytest

from scbjax.model import ATTENTION_MAPS, AttentionMap, Params, map_attention
from scbjax.parts import Observable
from scbjax.recorded import OBSERVABLES
from scbjax.tables import Registry

TABLES = [(ATTENTION_MAPS, "an attention map", "linear"), (OBSERVABLES, "an observable", "stage")]
WAYS: dict[str, Callable[[Registry[object], str, object], object]] = {
    "set": lambda table, name, entry: table.__setitem__(name, entry),
    "update": lambda table, name, entry: table.update({name: entry}),
    "update_pairs": lambda table, name, entry: table.update([(name, entry)]),
    "named": lambda table, name, entry: table.update(**{name: entry}),
    "or": lambda table, name, entry: table.__ior__({name: entry}),
}


@pytest.mark.parametrize("way", list(WAYS))
@pytest.mark.parametrize(("table", "kind", "name"), TABLES)
def test_a_name_is_not_given_something_else(
    table: Registry[object], kind: str, name: str, way: str
) -> None:
    before = table[name]
    message = f"{kind} '{name}' is registered already; choose another name"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        WAYS[way](table, name, object())
    assert table[name] is before
    WAYS[way](table, name, before)  # the same once more does no harm


@pytest.mark.parametrize("way", list(WAYS))
def test_new_names_can_be_added_in_any_way(way: str) -> None:
    table: Registry[object] = Registry("thing", {"first": 1})
    WAYS[way](table, "second", "x")
    assert table == {"first": 1, "second": "x"}
    assert table.setdefault("second", "y") == "x"
    assert table.setdefault("third", "z") == table["third"] == "z"


def test_a_name_that_was_removed_is_taken() -> None:
    table: Registry[object] = Registry("thing", {})
    table["name"] = first = object()
    del table["name"]
    with pytest.raises(ValueError, match=r"^a thing 'name' is registered already"):
        table["name"] = object()
    table["name"] = first


def test_a_compiled_program_has_what_its_name_stands_for() -> None:
    """The fault that names are kept for: programs are compiled for the name, not for the map."""

    def scale(factor: float) -> AttentionMap:
        return AttentionMap(lambda w: factor * w, lambda _: 1.0, lambda _: 1.0, jnp.ones_like)

    def run(name: str) -> float:
        params = Params(jnp.eye(2), jnp.ones((3, 2)))
        mapped = jax.jit(map_attention, static_argnums=1)(params, name)
        return float(mapped.attention[0, 0])

    name = "times_for_a_test"
    ATTENTION_MAPS[name] = scale(2.0)
    try:
        assert run(name) == 2.0
        with pytest.raises(ValueError, match="registered already"):
            ATTENTION_MAPS[name] = scale(3.0)
        assert run(name) == ATTENTION_MAPS[name].weights(jnp.ones(()))
    finally:
        del ATTENTION_MAPS[name]
    assert isinstance(OBSERVABLES["stage"], Observable)
