"""Files that are there whole or not at all, and who of several processes writes one."""

from __future__ import annotations

import contextlib
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import IO


@contextlib.contextmanager
def replaced_when_complete(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Gives a name to write to, in the same folder; renamed to `path` once all is on the disk.

    The name has the ending of `path`, and is always the same: a killed process leaves one file.
    Where several processes may write one file, each does so while it is `claimed`.
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


@contextlib.contextmanager
def claimed(path: str | os.PathLike) -> Iterator[bool]:
    """Keeps a file to write for this process alone; the system ends the claim of a killed one.

    So processes share the files of a folder without anybody who hands them out: each takes the
    next that is neither there nor claimed. Look whether the file is there after it was claimed: it
    may have been written just before.

    The claim is an advisory lock on a file beside it. It reaches across hosts where the file
    system's locks do: NFS (version 4) and Lustre with `flock`, not a mounted object store.

    Args:
        path: A file in a folder that is there.

    Yields:
        Whether the file is this process' to write; False where another one is at it.

    Raises:
        OSError: If the file system has no locks.
    """
    path = pathlib.Path(path)
    lock = path.with_name(f".claim-{path.name}")
    with lock.open("ab") as file:
        # A lock of a name that was deleted in between is a lock of nothing.
        mine = _locked(file) and _is_named(file, lock)
        try:
            yield mine
        finally:
            if mine:
                with contextlib.suppress(PermissionError):  # Windows deletes no open file
                    lock.unlink()


def _is_named(file: IO[bytes], path: pathlib.Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _locked(file: IO[bytes]) -> bool:
    """Locks an open file until it is closed, without waiting."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # the latter on Windows
        return False
    except OSError as error:
        raise OSError(
            f"Processes share a folder by locks on its files, and {file.name} cannot be locked "
            f"({error}): let one process fill the folder, or give each its own part of the images "
            "(`pool.shard(i, n)`) and its own folder."
        ) from error
    return True
