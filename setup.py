"""What pyproject.toml can't say: studies, benchmarks and figures travel inside the wheel.

In a checkout they stand in folders of their own, `sweeps/` and `figures/`, and there the library
finds them (`scbjax.sweep.study.locating`). A wheel holds copies of them in `scbjax/_shipped/`,
laid out as in the checkout, so that scripts find what stands beside them. A source distribution
holds the checkout's folders (MANIFEST.in), and an editable installation uses the checkout itself.
"""

from __future__ import annotations

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
SHIPPED = Path("scbjax", "_shipped")
PATTERNS = (
    "sweeps/*.toml",
    "sweeps/benchmarks/*.py",
    "figures/*.py",
    "figures/*.mplstyle",
)
"""Not `sweeps/claims`: it checks the documents, and they stay in the checkout."""
LEFT_OUT = ("_report.py",)
"""Writes tables into the documents."""


class BuildWithShipped(build_py):
    """Builds the package, and beside it copies of the studies and scripts of the checkout."""

    def run(self) -> None:
        """Builds the package."""
        super().run()
        if self.editable_mode:
            return
        for built, source in self._shipped().items():
            self.mkpath(str(Path(built).parent))
            self.copy_file(source, built)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """The files that are built."""
        shipped = [] if self.editable_mode else list(self._shipped())
        return [*super().get_outputs(include_bytecode), *shipped]

    def get_source_files(self) -> list[str]:
        """The files that are built of."""
        sources = [Path(source).relative_to(ROOT) for source in self._shipped().values()]
        return [*super().get_source_files(), *map(str, sources)]

    def _shipped(self) -> dict[str, str]:
        """Where each shipped file is built, and of which it is a copy."""
        found = [path for pattern in PATTERNS for path in sorted(ROOT.glob(pattern))]
        return {
            str(self.build_lib / SHIPPED / path.relative_to(ROOT)): str(path)
            for path in found
            if path.name not in LEFT_OUT
        }


setup(cmdclass={"build_py": BuildWithShipped})
