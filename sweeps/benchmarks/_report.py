"""Writes the tables of docs/performance.md, and redraws the pictures, from the stored JSON.

A table stands between the lines `<!-- begin NAME -->` and `<!-- end NAME -->`, once for every
device that has measurements; all else in the page is left as it is.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from _measure import ROOT, STORED, Payload, digits, render, spread

PAGE = ROOT / "docs" / "performance.md"
MIB = 2**20
PARTS = ("gradient", "parameters", "update")  # what errors are told of


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown.

    >>> print(table(("N", "speed"), [("3", "fast")]))
    | N | speed |
    |---|---|
    | 3 | fast |
    """
    lines = [header, ["---"] * len(header), *rows]
    marked = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([marked[0], marked[1].replace(" ", ""), *marked[2:]])


def told(value: Mapping[str, float], scale: float = 1.0) -> str:
    """Median, and smallest to largest."""
    low, high = digits(scale * value["min"]), digits(scale * value["max"])
    return f"{digits(scale * value['median'])} ({low} to {high})"


def step_table(payload: Payload) -> str:
    """Speeds of a step and how many times that of each other contender it is."""
    rows = []
    for size in payload["sizes"]:
        ours = [row for row in size["rows"] if row["name"] in ("scbjax", "scbjax, all cores")]
        best = max(row["rate"]["max"] for row in ours)
        for row in size["rows"]:
            if ": " in row["name"]:  # a part of a step
                continue
            ratios = [size[key].get(row["name"]) for key in ("ratios", "ratios_all_cores")]
            times = [told(ratio) if ratio else "" for ratio in ratios]
            if row["name"].startswith("scbjax"):
                times[1] = ""
            fastest = digits(best / row["rate"]["max"])
            cells = (told(row["rate"], 1e-6), *times, fastest)
            rows.append((str(size["num_tokens"]), row["name"], *cells))
    header = ("N", "", "million tokens/s", "scbjax is faster by", "on all cores by",
              "fastest of all calls by")  # fmt: skip
    return table(header, rows)


def parts_table(payload: Payload) -> str:
    """Where the time of a step goes, and what the compiled program does for each token."""
    from step import parts

    bandwidth = payload["memory_copy"]["rate"]["median"]
    rows = []
    for size in payload["sizes"]:
        counts = size["census"]
        nanoseconds = [value for _, value in parts(size)]
        cells = (
            *(digits(value) for value in nanoseconds),
            digits(counts["random_words"]),
            digits(counts["bytes"]),
            digits(1e9 * counts["bytes"] / bandwidth),
            digits(counts["operations"]),
            str(counts["gathers"]),
            str(counts["scatters"]),
        )
        rows.append((str(size["num_tokens"]), *cells))
    header = ("N", "sampling, ns", "gradient, ns", "eqs. 4 to 6, ns", "random words", "bytes",
              "ns to copy them", "operations", "gathers", "scatters")  # fmt: skip
    return table(header, rows)


def precision_table(payload: Payload) -> str:
    """Speeds and errors of a step in every precision."""
    rows = [
        (
            str(size["num_tokens"]),
            row["name"],
            told(row["rate"], 1e-6),
            told(size["ratios"][row["name"]]),
            *(f"{size['errors'][row['name']][part]:.1e}" for part in PARTS),
        )
        for size in payload["sizes"]
        for row in size["rows"]
    ]
    header = ("N", "", "million tokens/s", "times float32", "error of the gradient",
              "of V and A", "of what the step changes")  # fmt: skip
    return table(header, rows)


def sampler_table(payload: Payload) -> str:
    """Speeds of the sampler alone."""
    rows = [
        (
            str(size["num_tokens"]),
            row["name"],
            told(row["rate"], 1e-6),
            told(ratio) if (ratio := size["ratios"].get(row["name"])) else "",
        )
        for size in payload["sizes"]
        for row in size["rows"]
    ]
    return table(("N", "", "million tokens/s", "scbjax is faster by"), rows)


def trajectory_table(payload: Payload) -> str:
    """Seconds of a whole trajectory."""
    rows = []
    for row in payload["rows"]:
        seconds = [second / row["units"] for second in row["seconds"]]
        ratio = payload["ratios"].get(row["name"])
        compiling = row.get("compile_seconds")
        rows.append(
            (
                row["name"],
                told(spread(seconds)),
                "" if compiling is None else digits(compiling),
                told(ratio) if ratio else "",
            )
        )
    return table(("", "seconds", "compiling, s", "scbjax is faster by"), rows)


def sweep_table(payload: Payload) -> str:
    """Seconds of sweeps, and how they compare with one trajectory at a time."""
    rows = []
    for series in payload["series"]:
        for row in series["rows"]:
            start = (str(series["devices"]), series["axis"], str(row["trajectories"]))
            if "left_out" in row:
                rows.append((*start, "", row["left_out"], "", "", ""))
                continue
            rows.append(
                (
                    *start,
                    str(row["chunks"]),
                    told(row["run_seconds"]),
                    told(row["times_one"]),
                    told(row["times_one"], 1 / row["trajectories"]),
                    digits(row["compile_seconds"]),
                )
            )
    header = ("devices", "axis", "S", "chunks", "seconds", "times one trajectory",
              "times S trajectories", "compiling, s")  # fmt: skip
    return table(header, rows)


def grid_table(payload: Payload) -> str:
    """What a mixed grid compiles."""
    grid = payload["grid"]
    cells = (
        f"{len(grid['lengths'])} values of T by {grid['trajectories'] // len(grid['lengths'])}",
        str(grid["chunks"]),
        str(len(grid["compiled"])),
        str(len(grid["compilations"])),
        ", ".join(digits(seconds) for seconds in grid["compilations"]),
    )
    header = ("grid", "chunks", "programs", "compilations", "seconds of each")
    return table(header, [cells])


def growth_table(payload: Payload) -> str:
    """Milliseconds of a step at every size, and the exponent of the upper half."""
    from growth import SYMBOLS

    rows = []
    for field, found in payload["series"].items():
        base = found["base"]
        others = ", ".join(f"{s} = {base[f]}" for f, s in SYMBOLS.items() if f != field)
        steps = zip(found["values"], found["step_seconds"], strict=True)
        cells = ", ".join(f"{value}: {digits(1e3 * seconds)}" for value, seconds in steps)
        rows.append((SYMBOLS[field], others, cells, f"{found['exponent']:.2f}"))
    return table(("size", "at", "milliseconds per step", "exponent"), rows)


def large_table(payload: Payload) -> str:
    """Time of a step and of a record, and the peak of memory, at the largest sizes."""
    rows = []
    for row in payload["rows"]:
        sizes = (str(row["num_tokens"]), str(row["context_length"]), str(row["batch_size"]))
        run = (str(row["steps"]), digits(row["seconds"]), told(row["step_seconds"], 1e3))
        rows.append((*sizes, *run, digits(row["peak_bytes"] / 2**30)))
    return table(("N", "T", "B", "steps", "seconds", "ms per step", "peak, GiB"), rows)


def split_table(payload: Payload) -> str:
    """Time of a step of one trajectory on one device and on all of them."""
    split = payload["split"]
    sizes = tuple(str(split[key]) for key in ("num_tokens", "context_length", "batch_size"))
    steps = [[second / row["work"] for second in row["seconds"]] for row in split["rows"]]
    rows = [
        (*sizes, row["name"], told(spread(seconds), 1e3))
        for row, seconds in zip(split["rows"], steps, strict=True)
    ]
    return table(("N", "T", "B", f"of {split['devices']} devices", "ms per step"), rows)


def startup_table(payload: Payload) -> str:
    """Seconds of imports, commands and compilations."""
    seconds = {row["name"]: row["seconds"] for row in payload["rows"]}
    seconds.update(payload["compile_seconds"])
    return table(("", "seconds"), [(name, told(spread(all_))) for name, all_ in seconds.items()])


def mapping_table(payload: Payload) -> str:
    """Speeds of the ways to map whole trajectories, and how near they come to a sweep's."""
    rows = [
        (
            str(size["num_tokens"]),
            row["name"],
            told(row["rate"], 1e-6),
            told(size["ratios"][row["name"]]) if row["name"] in size["ratios"] else "",
        )
        for size in payload["sizes"]
        for row in size["rows"]
    ]
    return table(("N", "", "million tokens/s", "times a sweep on one device"), rows)


def first_table(payload: Payload) -> str:
    """Seconds until a first result."""
    from first import CACHED, COLD, LOOPS

    rows = [
        (
            row["name"],
            *(told(spread([each["seconds"] for each in row[kind]])) for kind in (COLD, CACHED)),
            told(spread([each["processor_seconds"] for each in row[COLD]])),
            str(payload[LOOPS].get(row["name"], "")),
        )
        for row in payload["rows"]
    ]
    header = ("seconds", COLD, CACHED, "nothing compiled before, of all cores", "loops compiled")
    return table(header, rows)


def learners_table(payload: Payload) -> str:
    """Speeds of the learners beyond the paper, of the linear one and of plain JAX."""
    rows = []
    for size in payload["sizes"]:
        rates = {row["name"]: row["rate"] for row in size["rows"]}
        for name, times in size["times_plain"].items():
            plain = next(rates[other] for other in rates if other.startswith(f"{name}, plain"))
            cells = (told(rates[name], 1e-6), told(plain, 1e-6), told(times))
            linear = told(size["times_linear"][name])
            rows.append((str(size["num_tokens"]), name, *cells, linear))
    header = ("N", "", "million tokens/s", "plain JAX", "times plain JAX", "times the linear one")
    return table(header, rows)


def fit_table(payload: Payload) -> str:
    """Steps of EM of `scbjax fit` beside NumPy."""
    rates = {row["name"]: row["rate"] for row in payload["rows"]}
    rows = []
    for name, times in payload["times_numpy"].items():
        seconds = spread(
            [payload["symbols"] / rates[name][end] for end in ("min", "median", "max")]
        )
        cells = (told(rates[name], 1e-6), told(rates[f"{name}, NumPy"], 1e-6), told(times))
        rows.append((name, told(seconds), *cells))
    header = ("", "seconds a step", "million symbols/s", "NumPy", "times NumPy")
    long = payload["long"]
    told_long = (
        f"A whole fit of {long['symbols'] / 1e6:g} million symbols of {long['num_tokens']} kinds, "
        f"contexts of {long['context']}, with selection of lags and bootstrap: "
        f"{digits(long['seconds'])} s, {digits(long['peak_bytes'] / 2**30)} GiB."
    )
    return f"{table(header, rows)}\n\n{told_long}"


def memory_table(payload: Payload) -> str:
    """Peak memory of every case beside the planner's estimate."""
    rows = []
    for row in payload["rows"]:
        planned = row["planned_bytes"]
        estimate = ("", "")
        if planned is not None:
            estimate = (digits(planned / MIB), digits(planned / row["bytes"]))
        sizes = (str(row["num_tokens"]), str(row["trajectories"]))
        measured = (digits(row["bytes"] / MIB), *estimate, digits(row["process_bytes"] / MIB))
        rows.append((row["name"], *sizes, *measured))
    header = ("", "N", "S", "MiB", "planned, MiB", "planned / measured", "process, MiB")
    return table(header, rows)


def roofline_table(payload: Payload) -> str:
    """What a step does for each token on every chip, and what that should make of its speed."""
    rows = []
    for row in payload["rows"]:
        counts, seconds = row["counts"], row["seconds"]
        picoseconds = (1e12 * seconds[part] / tokens_of(payload) for part in seconds)
        cells = (
            *(digits(counts[name]) for name in ("bytes", "operations", "random_words")),
            str(counts["kernels"]),
            *(digits(value) for value in picoseconds),
            digits(row["rate"] / 1e6),
            row["limit"],
        )
        # Of a compiler that was not there.
        mark = (
            "" if row["counted_for"] == row["chip"] else f" (as compiled for {row['counted_for']})"
        )
        rows.append((str(row["num_tokens"]), row["chip"] + mark, *cells))
    header = ("N", "", "bytes", "operations", "random words", "kernels of a step", "memory, ps",
              "arithmetic, ps", "kernels, ps", "million tokens/s, at most", "limit")  # fmt: skip
    sources = "\n".join(f"- *{chip['name']}*: {chip['source']}." for chip in payload["chips"])
    return f"{table(header, rows)}\n\nSources:\n\n{sources}"


def tokens_of(payload: Payload) -> int:
    """Tokens of a step of all trajectories."""
    return int(payload["context_length"] * payload["batch_size"] * payload["trajectories"])


def roofline_check_table(payload: Payload) -> str:
    """The same prediction for the device at hand, beside what was measured."""
    rows = [
        (
            str(row["num_tokens"]),
            *(digits(row["counts"][name]) for name in ("bytes", "operations", "random_words")),
            digits(row["rates"]["bandwidth"] / 1e9),
            digits(row["rates"]["operations"] / 1e9),
            digits(row["predicted"] / 1e6),
            row["limit"],
            digits(row["measured"]["max"] / 1e6),
            digits(row["measured"]["max"] / row["predicted"]),
        )
        for row in payload["checks"]
    ]
    header = ("N", "bytes", "operations", "random words", "GB/s", "billion operations/s",
              "predicted, million tokens/s", "limit", "measured", "measured / predicted",
              )  # fmt: skip
    return table(header, rows)


TABLES: dict[str, tuple[str, Callable[[Payload], str]]] = {
    "step": ("step", step_table),
    "parts": ("step", parts_table),
    "precision": ("precision", precision_table),
    "sampler": ("sampler", sampler_table),
    "trajectory": ("trajectory", trajectory_table),
    "sweep": ("sweep", sweep_table),
    "grid": ("sweep", grid_table),
    "growth": ("growth", growth_table),
    "large": ("large", large_table),
    "split": ("large", split_table),
    "startup": ("startup", startup_table),
    "mapping": ("mapping", mapping_table),
    "first": ("first", first_table),
    "memory": ("memory", memory_table),
    "learners": ("learners", learners_table),
    "fit": ("fit", fit_table),
    "roofline": ("roofline", roofline_table),
    "roofline_check": ("roofline", roofline_check_table),
}
PICTURED = frozenset(TABLES) - {"parts", "grid", "split", "roofline_check"}


def section(name: str) -> str:
    """What stands between the marks of a table: for every device, where and when, and the table."""
    benchmark, make = TABLES[name]
    parts = []
    for path in sorted(STORED.glob(f"*/{benchmark}.json")):
        payload = json.loads(path.read_text(encoding="utf-8"))
        parts += [_where(payload), make(payload)]
        if name in PICTURED:
            picture = path.with_suffix(".png").relative_to(PAGE.parent).as_posix()
            parts.append(f"![{benchmark}: the table above as a picture]({picture})")
    return "\n\n".join(parts) or "Not measured yet."


def _where(payload: Payload) -> str:
    about = payload["environment"]
    versions = ", ".join(
        f"{name} {version}" for name, version in about["versions"].items() if version
    )
    return (
        f"**{about['device']}**, {about['system']}, Python {about['python']}, {versions}, commit "
        f"{about['commit']}, {about['taken'][:10]}; load average before the start "
        f"{about['load_average']:.1f}."
    )


def page(text: str) -> str:
    """The page with its tables renewed."""
    for name in TABLES:
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        if begin not in text or end not in text:
            raise ValueError(f"{PAGE} has no place for the table {name!r}")
        pattern = re.compile(f"{re.escape(begin)}.*{re.escape(end)}", flags=re.DOTALL)
        filled = f"{begin}\n\n{section(name)}\n\n{end}"
        before, after = pattern.split(text)
        text = before + filled + after
    return text


def main() -> int:
    """Renews pictures and tables."""
    for path in sorted(STORED.glob("*/*.json")):
        print(render(importlib.import_module(path.stem).draw, path))
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(Path(PAGE))
    return 0


if __name__ == "__main__":
    sys.exit(main())
