"""Experiments of one's own by the command: killed and resumed, verified, by Dask, and drawn.

The learner and the data source of ``docs/examples``, each in processes of its own, with a segment
and a checkpoint for every record.
"""

import contextlib
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import xarray

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
SHORT = ("steps=400", "record_every=10", "axes.seed=[0, 1, 2]")
WAIT_SECONDS = 300.0
OFTEN = [str(Path(__file__).with_name("often.py")), "0", "0"]


@dataclass(frozen=True)
class Example:
    """An example's study, and what a run of it gives that nothing happened to."""

    name: str
    folder: Path
    content: dict[str, bytes]

    def start(self, *arguments: str, experiment: bool = True) -> "subprocess.Popen[str]":
        asked = ["--experiment", str(EXAMPLES / f"{self.name}.py")] if experiment else []
        return subprocess.Popen(
            [sys.executable, *OFTEN, *arguments, *asked],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
        )

    def run(self, out: Path, *options: str) -> "subprocess.Popen[str]":
        study = str(EXAMPLES / f"{self.name}.toml")
        short = [f"--set={override}" for override in SHORT]
        cache = ["--compilation-cache", str(self.folder / "programs")]
        return self.start("run", study, *short, "--out", str(out), *cache, *options)

    def content_of(self, out: Path) -> dict[str, bytes]:
        with xarray.open_dataset(out / f"{self.name}.nc", engine="h5netcdf") as found:
            return {str(name): found[name].to_numpy().tobytes() for name in found.variables}


def checkpoints(out: Path) -> dict[str, int]:
    """The checkpoints of a run, and when they were written."""
    found = {}
    for path in out.glob("checkpoints/*.npz"):
        with contextlib.suppress(OSError):  # gone since
            found[path.name] = path.stat().st_mtime_ns
    return found


def finished(process: "subprocess.Popen[str]") -> str:
    """What a command that must succeed has printed, and said."""
    printed, said = process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == 0, said
    return printed + said


@pytest.fixture(scope="module", params=["heads", "letters"])
def example(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Example:
    folder = tmp_path_factory.mktemp(request.param)
    first = Example(request.param, folder, {})
    finished(first.run(folder / "whole"))
    assert (folder / "whole" / f"{first.name}.png").stat().st_size > 0
    return Example(first.name, folder, first.content_of(folder / "whole"))


def test_what_is_killed_goes_on_bit_for_bit(example: Example, tmp_path: Path) -> None:
    for _ in range(2):
        seen = checkpoints(tmp_path)
        process = example.run(tmp_path, "--no-figure")
        while process.poll() is None and checkpoints(tmp_path) in (seen, {}):
            time.sleep(0.005)
        process.kill()
        process.communicate(timeout=WAIT_SECONDS)
        assert process.returncode != 0
        assert checkpoints(tmp_path) not in (seen, {})
    finished(example.run(tmp_path, "--no-figure"))
    assert example.content_of(tmp_path) == example.content


def test_what_is_stored_is_verified(example: Example) -> None:
    said = finished(example.start("verify", str(example.folder / "whole")))
    assert "the same, bit for bit" in said


def test_dask_gives_the_same(example: Example, tmp_path: Path) -> None:
    finished(example.run(tmp_path, "--engine", "dask", "--cpu-devices", "1"))
    assert (tmp_path / f"{example.name}.png").stat().st_size > 0
    with (
        xarray.open_dataset(tmp_path / f"{example.name}.nc") as found,
        xarray.open_dataset(example.folder / "whole" / f"{example.name}.nc") as whole,
    ):
        assert found.data_vars.keys() == whole.data_vars.keys()
        for name in whole.data_vars:
            np.testing.assert_allclose(found[name], whole[name], rtol=1e-3, atol=1e-5)


def test_its_figure_is_drawn_again(example: Example, tmp_path: Path) -> None:
    dataset = str(example.folder / "whole" / f"{example.name}.nc")
    finished(example.start("figure", dataset, "--out", str(tmp_path), experiment=False))
    assert [path.suffix for path in sorted(tmp_path.iterdir())] == [".pdf", ".png"]
