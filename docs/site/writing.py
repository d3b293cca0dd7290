"""Writes the sources of the site, and small pictures, where they have changed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from PIL import Image

THUMBNAIL = 640  # pixels


def write(
    out: Path,
    texts: Mapping[str, str],
    copies: Mapping[str, Path],
    thumbnails: Mapping[str, Path],
) -> None:
    """Writes the sources; files that are as they were keep their time, so that Sphinx sees it.

    Args:
        out: the folder; what else is in it is removed.
        texts: pages, by their paths in it.
        copies: of files, by their paths in it.
        thumbnails: small ones of pictures, by their paths in it.
    """
    for path, text in texts.items():
        _write_bytes(out / path, text.encode("utf-8"))
    for path, source in copies.items():
        _write_bytes(out / path, source.read_bytes())
    for path, source in thumbnails.items():
        if not (out / path).is_file() or _older(out / path, source):
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            _shrink(source, out / path)
    wanted = {*texts, *copies, *thumbnails}
    for found in list(_files(out)):
        if found.relative_to(out).as_posix() not in wanted:
            found.unlink()


def _write_bytes(path: Path, content: bytes) -> None:
    if path.is_file() and path.read_bytes() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _older(path: Path, source: Path) -> bool:
    return path.stat().st_mtime < source.stat().st_mtime


def _shrink(source: Path, out: Path) -> None:
    with Image.open(source) as picture:
        height = round(picture.height * THUMBNAIL / picture.width)
        picture.convert("RGB").resize((THUMBNAIL, height), Image.Resampling.LANCZOS).save(out)


def _files(folder: Path) -> Iterator[Path]:
    for base, _, names in os.walk(folder):
        yield from (Path(base) / name for name in names)
