"""The folder of scores: a header and chunks of images, each there as a whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np

from keras_ssd.data.mining.records import Scored
from keras_ssd.whole_files import claimed, replaced_when_complete

SCHEMA = 1
_HEADER = "header.json"
_A_MOMENT = 0.05  # seconds in which another process writes it
_KEYS = frozenset(
    (
        "schema",
        "scorer",
        "scorer_digest",
        "num_classes",
        "class_names",
        "temperature",
        "classes_per_image",
        "preprocessing",
        "pool_name",
        "pool_size",
        "pool_digest",
        "shard",
        "evaluation_name",
        "evaluation_digest",
        "detectors",
        "chunk",
    )
)
_OF = {  # what one has changed where an entry differs
    "scorer_digest": "teacher",
    "pool_name": "pool",
    "pool_size": "pool",
    "pool_digest": "pool",
    "shard": "shard",
    "evaluation_name": "target",
    "evaluation_digest": "target",
}
_NO_SCORE = frozenset(("scorer",))  # what decides none: Keras numbers models in the order they come


@dataclass
class Chunk:
    """Some images of a pool, in its order.

    Attributes:
        first: Id of the first image, whatever became of it.
        records: The images with a score.
        seen: Number of images with a score, finite or not.
        unreadable: The other ones: where each lies, or its id, and why it cannot be read.
        duplicates: How many records each detector found in the evaluation set.
    """

    first: str
    records: list[Scored] = field(default_factory=list)
    seen: int = 0
    unreadable: list[list[str]] = field(default_factory=list)
    duplicates: dict[str, int] = field(default_factory=dict)


class Scores:
    """What `score` wrote into a folder.

    Args:
        folder: The folder.

    Attributes:
        folder: Its path.
        header: What decided the scores: `schema`, `scorer`, `scorer_digest`, `num_classes`,
            `class_names`, `temperature`, `classes_per_image`, `preprocessing`, `pool_name`,
            `pool_size`, `pool_digest`, `shard` (index and count), `evaluation_name`,
            `evaluation_digest`, `detectors` and `chunk`, the number
            of images in a file.

    Raises:
        ValueError: If there is no folder of scores, or its header is not as it was written.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = pathlib.Path(folder)
        self.header = _read_header(self.folder)

    @classmethod
    def made_with(cls, folder: str | os.PathLike[str], header: Mapping[str, Any]) -> Scores:
        """The scores in a folder, or those that are to be written there.

        Nothing is written before the first chunk is, so that a mistake leaves nothing behind.

        Raises:
            ValueError: If there are scores that another header decided.
        """
        path = pathlib.Path(folder)
        if path.exists() and not path.is_dir():
            raise ValueError(f"`folder` must be a folder, got the file {str(path)!r}.")
        scores = cls.__new__(cls)
        scores.folder, scores.header = path, json.loads(_json(header))  # as it would be read
        if (path / _HEADER).exists():
            _check_same(path, _read_header(path), scores.header)
        elif any(path.glob("[0-9]*.jsonl")):
            raise ValueError(
                f"{str(path)!r} holds chunks of scores and no {_HEADER}, so that nothing tells "
                "what they are of: give another folder."
            )
        return scores

    @property
    def complete(self) -> bool:
        """Whether the whole pool was scored."""
        return all(self._path(number).exists() for number in range(self.count))

    @property
    def count(self) -> int:
        """The number of chunks of the whole pool."""
        return -(-self.header["pool_size"] // self.header["chunk"])

    @property
    def tallies(self) -> dict[str, Any]:
        """How many images were `seen`, `non_finite` of them without a finite score, those that are
        `unreadable` (pairs of source and reason) and the `duplicates` by detector, so far.

        Raises:
            ValueError: If a chunk was cut off.
        """  # noqa: D205
        total: dict[str, Any] = {"seen": 0, "non_finite": 0, "unreadable": [], "duplicates": {}}
        for number in range(self.count):
            if not self._path(number).exists():
                continue
            tally = self.tally(number)
            for key in ("seen", "non_finite", "unreadable"):
                total[key] += tally[key]
            for detector, found in tally["duplicates"].items():
                total["duplicates"][detector] = total["duplicates"].get(detector, 0) + found
        return total

    def records(self) -> Iterator[Scored]:
        """The images with a score in the order of the pool, read one after the other.

        Raises:
            ValueError: If a chunk is missing, was cut off or changed.
        """
        for number in range(self.count):
            yield from (_scored(json.loads(line)) for line in self._lines(number))

    def missing(self) -> list[int]:
        """The numbers of the chunks that are not there, or not as they were written."""
        return [number for number in range(self.count) if not self.is_whole(number)]

    def present(self, numbers: Collection[int]) -> set[int]:
        """Those of some chunks that have a file, whole or not."""
        names = set(os.listdir(self.folder)) if numbers and self.folder.exists() else set()
        return {number for number in numbers if self._path(number).name in names}

    def is_whole(self, number: int) -> bool:
        """Whether a chunk is there as it was written."""
        try:
            self._lines(number)
        except ValueError:
            return False
        return True

    def claimed(self, number: int) -> contextlib.AbstractContextManager[bool]:
        """Keeps a chunk for this process to write, see `whole_files.claimed`."""
        return claimed(self._path(number))

    def put_header(self) -> None:
        """Puts the header into the folder, once, whoever of several processes comes first.

        Raises:
            ValueError: If there is one already, of something else.
        """
        path, content = self.folder / _HEADER, _json(self.header)
        self.folder.mkdir(parents=True, exist_ok=True)
        while not path.exists():
            with claimed(path) as mine:
                if mine and not path.exists():
                    _write(path, content)
            if not mine:
                time.sleep(_A_MOMENT)
        if path.read_bytes() != content:
            _check_same(self.folder, _read_header(self.folder), self.header)

    def write(self, number: int, chunk: Chunk) -> None:
        """Puts a chunk into the folder, and the header before the first one."""
        self.put_header()
        lines = b"".join(map(_line, chunk.records))
        tally: dict[str, Any] = {
            "first": chunk.first,
            "seen": chunk.seen,
            "non_finite": chunk.seen - len(chunk.records),
            "unreadable": chunk.unreadable,
            "duplicates": chunk.duplicates,
        }
        digest = hashlib.sha256(_json(tally) + lines).hexdigest()
        _write(self._path(number), _json({**tally, "sha256": digest}) + lines)

    def tally(self, number: int) -> dict[str, Any]:
        """The first line of a chunk, which counts what is in it."""
        with self._open(number) as file:
            return self._parsed(number, file.readline())

    def _path(self, number: int) -> pathlib.Path:
        return self.folder / f"{number:08d}.jsonl"

    def _open(self, number: int) -> BinaryIO:
        try:
            return self._path(number).open("rb")
        except FileNotFoundError:
            raise ValueError(f"{self._path(number)} is missing: {_MEND}.") from None

    def _parsed(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            return dict(json.loads(line))
        except (ValueError, TypeError):
            raise ValueError(self._changed(number)) from None

    def _changed(self, number: int) -> str:
        return f"{self._path(number)} was cut off or changed: {_MEND}."

    def _lines(self, number: int) -> list[bytes]:
        """The lines of a chunk, without the first, as they were written."""
        with self._open(number) as file:
            tally, lines = self._parsed(number, file.readline()), file.read()
        digest = tally.pop("sha256", None)
        if hashlib.sha256(_json(tally) + lines).hexdigest() != digest:
            raise ValueError(self._changed(number))
        return lines.splitlines()


_MEND = "call `score` with the same arguments, which writes it anew"


def _check_same(folder: pathlib.Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    for key in sorted(_KEYS - _NO_SCORE):
        if old[key] != new[key]:
            was, now = (shortened(repr(header[key])) for header in (old, new))
            raise ValueError(
                f"{str(folder)!r} holds scores of another {_OF.get(key, 'setting')} (`{key}` is "
                f"{was} there and {now} now): give another folder."
            )


def _write(path: pathlib.Path, content: bytes) -> None:
    with replaced_when_complete(path) as partial:
        partial.write_bytes(content)


def shortened(text: str, length: int = 80) -> str:
    """A text that is long without its end."""
    return text if len(text) <= length else f"{text[: length - 3]}..."


def _shortest(values: Sequence[float]) -> list[float]:
    """Numbers whose decimals are no more than tell them from others in float32."""
    return [float(str(np.float32(value))) for value in values]


def _read_header(folder: pathlib.Path) -> dict[str, Any]:
    path = folder / _HEADER
    if not path.is_file():
        raise ValueError(f"There are no scores in {str(folder)!r}: write them with `score`.")
    try:
        header = json.loads(path.read_bytes())
    except ValueError:
        header = None
    if not isinstance(header, dict) or "schema" not in header:
        raise ValueError(f"{path} was cut off or changed: score into another folder.")
    if header["schema"] != SCHEMA:
        raise ValueError(
            f"{path} has the schema {header['schema']!r}, but this version reads {SCHEMA}: score "
            "into another folder."
        )
    if header.keys() != _KEYS:
        raise ValueError(f"{path} was cut off or changed: score into another folder.")
    return header


def _json(entries: Mapping[str, Any]) -> bytes:
    text = json.dumps(entries, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode()


def _line(record: Scored) -> bytes:
    similarity = record.best_similarity
    return _json(
        {
            "id": record.id,
            "source": record.source,
            "classes": record.classes,
            "scores": _shortest(record.scores),
            "sha256": record.sha256,
            "detector": record.detector,
            "best_match": record.best_match,
            "best_similarity": None if similarity is None else _shortest([similarity])[0],
        }
    )


def _scored(entries: Mapping[str, Any]) -> Scored:
    similarity = entries["best_similarity"]
    return Scored(
        id=entries["id"],
        source=entries["source"],
        classes=tuple(entries["classes"]),
        scores=tuple(np.array(entries["scores"], np.float32).tolist()),
        sha256=entries["sha256"],
        detector=entries["detector"],
        best_match=entries["best_match"],
        best_similarity=None if similarity is None else float(np.float32(similarity)),
    )
