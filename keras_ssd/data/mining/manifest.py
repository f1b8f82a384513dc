"""The manifest of a mining run: a file of JSON lines that says which images were kept, and why."""

from __future__ import annotations

import json
import math
import os
import pathlib
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_ssd.data.folder_layout import listed

SCHEMA = 1

# What becomes of an image that was seen: each is counted in one of them.
FATES = ("non_finite", "duplicates", "below_min_score", "not_in_top_k", "kept")

_COUNT = (int,)
_TEXT = (str,)
_NUMBER = (float, int)
_NOTHING = type(None)

_HEADER: dict[str, tuple[type, ...]] = {
    "schema": _COUNT,
    "scorer": _TEXT,
    "scorer_digest": _TEXT,
    "num_classes": _COUNT,
    "class_names": (list, _NOTHING),
    "k": _COUNT,
    "min_score": _NUMBER,
    "temperature": _NUMBER,
    "assign": _TEXT,
    "classes_per_image": _COUNT,
    "preprocessing": (dict,),
    "pool_name": _TEXT,
    "evaluation_name": (str, _NOTHING),
    "detectors": (dict,),
    "counts": (dict,),
    "per_class": (list,),
    "unreadable": _COUNT,
}
_ROW: dict[str, tuple[type, ...]] = {
    "id": _TEXT,
    "source": _TEXT,
    "class": _COUNT,
    "score": _NUMBER,
    "rank": _COUNT,
    "sha256": _TEXT,
    "best_match": (str, _NOTHING),
    "best_similarity": (*_NUMBER, _NOTHING),
}


@dataclass(frozen=True, slots=True)
class Row:
    """An image that was kept.

    Attributes:
        id: Unique in a manifest.
        source: Where `data.load` finds the image; empty for one that was given as an array.
        label: The class that the scorer gives it ("class" in the file).
        score: Its probability, a float32 value in [0, 1].
        rank: Its place among the images of its class, from 0.
        sha256: Hexadecimal digest of the decoded image.
        best_match: The evaluation image that is most like it, or None.
        best_similarity: Cosine similarity to that one, a float32 value, or None.
    """

    id: str
    source: str
    label: int
    score: float
    rank: int
    sha256: str
    best_match: str | None
    best_similarity: float | None


@dataclass(frozen=True)
class Manifest:
    """The images that were kept of a pool, and what decided it.

    Attributes:
        header: The first line of the file: `schema`, `scorer`, `scorer_digest`, `num_classes`,
            `class_names`, `k`, `min_score`, `temperature`, `assign`, `classes_per_image`,
            `preprocessing`, `pool_name`, `evaluation_name`, `detectors`, `counts`, `per_class` and
            `unreadable`. The images seen, `counts["seen"]`, are the sum of the other counts: those
            with a score that is no number (`non_finite`), the `duplicates` of evaluation images,
            those `below_min_score`, those `not_in_top_k` and those `kept`. Each is counted in the
            first of them that applies. `unreadable` ones were not seen.
        rows: The images, sorted by class and rank.
    """

    header: Mapping[str, Any]
    rows: tuple[Row, ...]


def float32(value: float) -> float:
    """The nearest float32 value."""
    return float(np.float32(value))


def write(path: pathlib.Path, header: Mapping[str, Any], rows: Sequence[Row]) -> Manifest:
    """Writes a manifest under a temporary name and renames it, so that none is ever half there.

    Args:
        path: The file to write; one that is there is replaced.
        header: As in `Manifest`; its floats are rounded to float32.
        rows: As in `Manifest`.

    Returns:
        What `read_manifest` reads from the file.
    """
    header = _shortest(header)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as folder:
        new = pathlib.Path(folder, "new")
        with new.open("wb") as file:
            file.write(_line(header))
            file.writelines(_line(_entries(row)) for row in rows)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    return Manifest(header, tuple(rows))


def _shortest(value: Any) -> Any:
    """The value with each float as the one whose shortest form is that of its float32."""
    if isinstance(value, Mapping):
        return {key: _shortest(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_shortest(entry) for entry in value]
    if isinstance(value, float):
        return float(np.format_float_scientific(np.float32(value)))
    return value


def _line(entries: Mapping[str, Any]) -> bytes:
    text = json.dumps(entries, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode()


def _entries(row: Row) -> dict[str, Any]:
    return {
        "id": row.id,
        "source": row.source,
        "class": row.label,
        "score": _shortest(row.score),
        "rank": row.rank,
        "sha256": row.sha256,
        "best_match": row.best_match,
        "best_similarity": _shortest(row.best_similarity),
    }


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """Reads a manifest that `select` wrote, and checks that it is whole.

    Args:
        path: The file.

    Returns:
        The manifest.

    Raises:
        ValueError: If there is no such file, it is no manifest of this schema, was cut off or
            changed, or its rows and counts do not agree.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise ValueError(f"There is no manifest {str(path)!r}: write it with `select`.")
    with path.open("rb") as file:
        header = _read_header(file.readline(), path)
        rows = _read_rows(file, header, path)
    _check_labels(rows, header, path)
    return Manifest(header, rows)


def _read_header(line: bytes, path: pathlib.Path) -> dict[str, Any]:
    header = _parsed(line)
    if not line:
        raise ValueError(f"{str(path)!r} is empty, so it is no manifest: write it with `select`.")
    if header is None or "schema" not in header:
        raise ValueError(
            f"{str(path)!r} is no manifest, as its first line is no whole header: give a file that "
            "`select` wrote."
        )
    if header["schema"] != SCHEMA:
        raise ValueError(
            f"{str(path)!r} has the schema {header['schema']!r}, but this version reads {SCHEMA}: "
            "write it anew with `select`."
        )
    wrong = _wrong(header, _HEADER)
    if wrong:
        raise ValueError(_changed(path, 1, f"its header has {wrong}"))
    _check_counts(header, path)
    return header


def _check_counts(header: Mapping[str, Any], path: pathlib.Path) -> None:
    counts, per_class = header["counts"], header["per_class"]
    wrong = _wrong(counts, dict.fromkeys(("seen", *FATES), _COUNT))
    if wrong:
        raise ValueError(_changed(path, 1, f"its counts have {wrong}"))
    if counts["seen"] != sum(counts[fate] for fate in FATES):
        raise ValueError(_changed(path, 1, f"its counts do not add up to `seen` ({counts})"))
    if any(type(count) is not int for count in per_class) or sum(per_class) != counts["kept"]:
        reason = f"`per_class` does not add up to the {counts['kept']:,} images kept"
        raise ValueError(_changed(path, 1, reason))
    if len(per_class) != header["num_classes"]:
        reason = f"`per_class` counts {len(per_class)} of {header['num_classes']} classes"
        raise ValueError(_changed(path, 1, reason))


def _read_rows(
    lines: Iterable[bytes], header: Mapping[str, Any], path: pathlib.Path
) -> tuple[Row, ...]:
    kept = header["counts"]["kept"]
    rows: list[Row] = []
    for number, line in enumerate(lines, start=2):
        if len(rows) == kept:
            reason = f"it has more than the {kept:,} rows that its header counts"
            raise ValueError(_changed(path, number, reason))
        entries = _parsed(line)
        if entries is None and not line.endswith(b"\n"):
            break
        wrong = "no entries in JSON" if entries is None else _wrong(entries, _ROW)
        if entries is None or wrong:
            raise ValueError(_changed(path, number, f"the row has {wrong}"))
        if entries["class"] >= header["num_classes"]:
            reason = f"class {entries['class']} is none of the {header['num_classes']} classes"
            raise ValueError(_changed(path, number, reason))
        rows.append(_row(entries))
    if len(rows) < kept:
        raise ValueError(
            f"{str(path)!r} was cut off: its header counts {kept:,} rows, but it has "
            f"{len(rows):,} whole ones: copy it again or write it anew with `select`."
        )
    return tuple(rows)


def _row(entries: Mapping[str, Any]) -> Row:
    similarity = entries["best_similarity"]
    return Row(
        id=entries["id"],
        source=entries["source"],
        label=entries["class"],
        score=float32(entries["score"]),
        rank=entries["rank"],
        sha256=entries["sha256"],
        best_match=entries["best_match"],
        best_similarity=None if similarity is None else float32(similarity),
    )


def _check_labels(rows: Sequence[Row], header: Mapping[str, Any], path: pathlib.Path) -> None:
    """Raises unless ids are unique and classes have as many rows as the header counts."""
    if len({row.id for row in rows}) < len(rows):
        twice = [id for id, count in Counter(row.id for row in rows).items() if count > 1]
        raise ValueError(
            f"The ids in {str(path)!r} must be unique, got several rows of {listed(twice)}: write "
            "it anew with `select`."
        )
    found = Counter(row.label for row in rows)
    for label, count in enumerate(header["per_class"]):
        if found[label] != count:
            raise ValueError(
                f"{str(path)!r} counts {count:,} images of class {label}, but has {found[label]:,}:"
                " write it anew with `select`."
            )


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        entries = json.loads(line.decode())
    except ValueError:
        return None
    return entries if isinstance(entries, dict) else None


def _wrong(entries: Mapping[str, Any], types: Mapping[str, tuple[type, ...]]) -> str | None:
    """The first entry that is not there or not of its type, in words."""
    for key, allowed in types.items():
        if key not in entries:
            return f"no `{key}`"
        value = entries[key]
        if type(value) not in allowed or (type(value) is int and value < 0):
            return f"{value!r} as `{key}`"
        if type(value) is float and not math.isfinite(value):
            return f"{value!r} as `{key}`"
    return None


def _changed(path: pathlib.Path, number: int, reason: str) -> str:
    return (
        f"{str(path)!r} is no manifest as `select` writes it: in line {number:,} {reason}; write "
        "it anew."
    )
