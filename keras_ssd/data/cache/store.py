"""The folder of stored outputs: a header and shards of images, each there whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import pathlib
import time
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import numpy as np

from keras_ssd.data.cache.forms import Field
from keras_ssd.whole_files import claimed, replaced_when_complete

SCHEMA = 1
SHARD = 4_096  # images in a file: what a kill loses at most
_HEADER = "header.json"
_OF = {  # what one has changed where an entry differs
    "teacher_fingerprint": "another teacher",
    "data_fingerprint": "other data",
    "images": "other data",
    "image_shape": "other data",
    "rows": "other training images",
    "views": "other views",
    "outputs": "other outputs",
}
_FOR_THE_READER = ("data",)  # a name, which decides nothing
_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
WAIT = 0.5  # seconds between two looks at what other processes write


class Store:
    """Arrays `[images, augmentations, ...]` in files of NumPy's own format, some images each.

    NumPy's format, not TFRecord: training meets images in an order of its own each epoch, so it
    needs any of them at once. These files are mapped into memory, and any NumPy reads them.

    Args:
        folder: Where they are or are to be written; it is made with the first of them.
        header: What decides every byte of them.
        fields: What is stored of one image and augmentation, by name.

    Attributes:
        folder: Its path.
        count: The number of shards.

    Raises:
        ValueError: If the folder holds something else.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        header: Mapping[str, Any],
        fields: Mapping[str, Field],
    ) -> None:
        self.folder, self._fields = pathlib.Path(folder), fields
        self._header = json.loads(json.dumps(header))  # as it is read
        self._own = _digest(self._header)
        self.count = -(-header["images"] // header["shard"])
        there = next(path for path in (self.folder, *self.folder.parents) if path.exists())
        if not there.is_dir():
            raise ValueError(f"`folder` must be a folder, got {str(folder)!r}: {there} is a file.")
        if (self.folder / _HEADER).exists():
            if self._has_shards():  # what a call without one has left is of nothing
                self._check_header()
        elif any(self.folder.glob("[0-9]*.npy")):
            raise ValueError(
                f"{str(folder)!r} holds arrays and no {_HEADER}, so that nothing tells what they "
                "are of: give another folder."
            )

    @property
    def bytes_of_image(self) -> int:
        """What is stored of an image."""
        return self._header["augmentations"] * sum(field.size for field in self._fields.values())

    def images_of(self, number: int) -> range:
        """The images of a shard, as they are numbered here."""
        shard = self._header["shard"]
        return range(number * shard, min((number + 1) * shard, self._header["images"]))

    def path(self, number: int) -> pathlib.Path:
        """What stands for a shard: the file that is written when all others are there."""
        return self.folder / f"{number:05d}.json"

    def is_there(self, number: int) -> bool:
        """Whether a shard was written, and under this header."""
        files = (self._file(number, field) for field in self._fields)
        if not (self.path(number).exists() and all(file.exists() for file in files)):
            return False
        return self._record(number).get("header", self._own) == self._own

    def missing(self) -> list[int]:
        """The numbers of the shards that were not written."""
        return [number for number in range(self.count) if not self.is_there(number)]

    def write_header(self) -> None:
        """Makes the folder, and says in it what it is for.

        Raises:
            ValueError: If another process, at the same time, says something else.
        """
        path = self.folder / _HEADER
        content = {**self._header, "sha256": self._own}
        with self._full_disk_told():
            self.folder.mkdir(parents=True, exist_ok=True)
            while not path.exists() or not self._has_shards():
                with claimed(path) as mine:
                    if mine and not self._has_shards():
                        with replaced_when_complete(path) as partial:
                            partial.write_text(json.dumps(content, indent=1, sort_keys=True))
                if mine:
                    break
                time.sleep(WAIT)
        self._check_header()

    @contextlib.contextmanager
    def claimed(self, number: int) -> Iterator[bool]:
        """Whether a shard is this process' to write, as long as it lasts."""
        with self._full_disk_told(), claimed(self.path(number)) as mine:
            yield mine

    def write(self, number: int, parts: Iterable[Mapping[str, np.ndarray]]) -> None:
        """Writes a shard.

        Args:
            number: Its number, claimed by this process.
            parts: Its images in order, some at a time: by field `[some, augmentations, ...]`.

        Raises:
            OSError: If the disk is full; nothing is left of the shard.
        """
        with self._full_disk_told():
            self._write(number, parts)

    def arrays(self, number: int) -> dict[str, np.ndarray]:
        """A shard, mapped into memory.

        Raises:
            ValueError: If a file is not as it was written.
        """
        record = self._record(number)
        digests = record.get("sha256", {})
        if record.get("header") != self._own or digests.keys() != self._fields.keys():
            raise ValueError(self._damaged(self.path(number)))
        arrays = {}
        for field in self._fields:
            file = self._file(number, field)
            content = np.memmap(file, np.uint8, "r").data if file.stat().st_size else b""
            if hashlib.sha256(content).hexdigest() != digests.get(field):
                raise ValueError(self._damaged(file))
            arrays[field] = np.asarray(np.load(file, mmap_mode="r"))
        return arrays

    def all_arrays(self, numbers: Iterable[int]) -> dict[int, dict[str, np.ndarray]]:
        """Some shards; their digests are computed in several threads."""
        numbers = list(numbers)
        with ThreadPoolExecutor() as threads:
            return dict(zip(numbers, threads.map(self.arrays, numbers), strict=True))

    def _write(self, number: int, parts: Iterable[Mapping[str, np.ndarray]]) -> None:
        images = len(self.images_of(number))
        digests = {}
        with ExitStack() as renamed, ExitStack() as opened:  # closed first, then renamed
            files = {}
            for field in self._fields:
                path = self._file(number, field)
                partial = renamed.enter_context(replaced_when_complete(path))
                files[field] = opened.enter_context(partial.open("wb"))
                beginning = self._beginning(field, images)
                files[field].write(beginning)
                digests[field] = hashlib.sha256(beginning)
            for part in parts:
                for field, array in part.items():
                    content = array.tobytes()
                    files[field].write(content)
                    digests[field].update(content)
            for file in files.values():  # a disk may say only here that it is full
                file.flush()
                os.fsync(file.fileno())
            self._check_header()  # a call with other arguments may have begun at the same time
        sha256 = {field: digest.hexdigest() for field, digest in digests.items()}
        record = {"header": self._own, "sha256": sha256}
        with replaced_when_complete(self.path(number)) as partial:
            partial.write_text(json.dumps(record, indent=1, sort_keys=True))

    def _record(self, number: int) -> dict[str, Any]:
        """What a shard's own file says; empty where it was changed."""
        try:
            record = dict(json.loads(self.path(number).read_bytes()))
            return {**record, "sha256": dict(record["sha256"])}
        except (ValueError, TypeError, KeyError):
            return {}

    @contextlib.contextmanager
    def _full_disk_told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise OSError(
                f"The disk of {str(self.folder)!r} is full: make room and call again, which goes "
                "on with what is missing."
            ) from error

    def _beginning(self, field: str, images: int) -> bytes:
        """What stands before the numbers in a file of NumPy's format."""
        shape, dtype = self._fields[field]
        content = io.BytesIO()
        description = {
            "descr": np.lib.format.dtype_to_descr(np.dtype(dtype).newbyteorder("<")),
            "fortran_order": False,
            "shape": (images, self._header["augmentations"], *shape),
        }
        np.lib.format.write_array_header_1_0(content, description)
        return content.getvalue()

    def _has_shards(self) -> bool:
        return any(self.folder.glob("[0-9]*.json"))

    def _file(self, number: int, field: str) -> pathlib.Path:
        return self.folder / f"{number:05d}.{urllib.parse.quote(field, safe='+')}.npy"

    def _damaged(self, file: pathlib.Path) -> str:
        return (
            f"{file} is not as it was written (bytes changed, or it was cut off): delete it and "
            "call again, which makes it anew."
        )

    def _check_header(self) -> None:
        path = self.folder / _HEADER
        try:
            there = dict(json.loads(path.read_bytes()))
            whole = there.pop("sha256") == _digest(there)
        except (ValueError, TypeError, KeyError):
            whole = False
        if not whole:
            raise ValueError(
                f"{path} was cut off or changed: give another folder, or delete this one."
            )
        if there["schema"] != SCHEMA:
            raise ValueError(
                f"{path} has the schema {there['schema']!r}, but this version reads {SCHEMA}: give "
                "another folder."
            )
        for key, now in self._header.items():
            if there[key] != now and key not in _FOR_THE_READER:
                raise ValueError(
                    f"{str(self.folder)!r} holds the outputs of "
                    f"{_OF.get(key, f'another `{key}`')} ({key} is {_short(there[key])} there and "
                    f"{_short(now)} now): give another folder, or delete this one."
                )


def _digest(header: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
