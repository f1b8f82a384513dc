"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Iterator


@contextlib.contextmanager
def replaced_when_complete(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Gives a name to write to, in the same folder; renamed to `path` once all is on the disk.

    The name has the ending of `path`, and is always the same: a killed process leaves one file.
    """
    path = pathlib.Path(path)
    partial = path.with_name(f".partial-{path.name}")
    try:
        yield partial
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
