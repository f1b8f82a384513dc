"""Which images of a scored pool are kept: the best of each class, none of them in evaluation."""

from __future__ import annotations

import collections
import heapq
import itertools
import math
import os
import pathlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from keras_ssd.arguments import check_count, is_integer, is_number
from keras_ssd.data.folder_layout import listed
from keras_ssd.data.mining.manifest import FATES, SCHEMA, Manifest, Row, float32, write
from keras_ssd.data.mining.records import Scored
from keras_ssd.data.mining.scores import Scores, shortened

# Bytes of UTF-8 are at most 0xF4. So texts in these bytes, ended by 0xFF, are in reverse order.
_REVERSED = bytes(max(0xFE - byte, 0) for byte in range(256))

# All else in the header of scores decides a score. Keras numbers models that were given no name.
_MAY_DIFFER = {"scorer", "pool_name", "pool_size", "pool_digest", "shard", "chunk"}
_OF_THE_SCORES = (
    "scorer_digest",
    "num_classes",
    "class_names",
    "temperature",
    "classes_per_image",
    "preprocessing",
    "evaluation_name",
    "detectors",
)


@dataclass(frozen=True)
class Selection:
    """What `top_k_per_class` keeps.

    Attributes:
        rows: The images kept, sorted by class and rank.
        counts: `seen` and the five counts that add up to it, see `Manifest`.
        per_class: How many of `rows` each class has.
    """

    rows: tuple[Row, ...]
    counts: Mapping[str, int]
    per_class: tuple[int, ...]


class _Entry(NamedTuple):
    """An image in the heap of a class; the least of them is the one to go first."""

    score: float
    reversed_id: bytes
    arrival: int  # tells images of one id apart
    record: Scored


class _Best:
    """The best k images of a class, as a heap with the worst of them first."""

    def __init__(self, k: int) -> None:
        self._k = k
        self._entries: list[_Entry] = []
        self._best_lost = (-1.0, b"")

    def offer(self, score: float, arrival: int, record: Scored) -> None:
        entries = self._entries
        full = len(entries) == self._k
        if full and (not entries or score < entries[0].score):
            return
        reversed_id = _encoded(record.id).translate(_REVERSED) + b"\xff"
        entry = _Entry(score, reversed_id, arrival, record)
        if full:
            lost = heapq.heappushpop(entries, entry)
            self._best_lost = max(self._best_lost, lost[:2])
        else:
            heapq.heappush(entries, entry)

    def drained(self) -> list[_Entry]:
        """The best first; the heap is empty then, so that nothing is held twice."""
        entries, self._entries = self._entries, []
        return sorted(entries, reverse=True)

    def lost(self, entry: _Entry) -> bool:
        """Whether an image of the same id and score found no place."""
        return entry[:2] == self._best_lost


def top_k_per_class(
    records: Iterable[Scored], num_classes: int, k: int, min_score: float = 0.0
) -> Selection:
    """The k images of highest score in each class.

    Within a class the higher score comes first and of equal ones (as float32) the lower id, by its
    UTF-8 bytes; so neither the order of the records nor how they were split into shards matters.
    At most `num_classes * k` records are held at a time. Images found in the evaluation set are
    counted as duplicates, whatever their score, and their places go to the next ones.

    An image with several classes competes in each of them and is kept once: in the class where its
    rank is best, the lowest of these. Ranks are those before that, so that some may be missing.

    Args:
        records: Images with their classes and scores, in any order; read once.
        num_classes: Integer >= 1.
        k: Integer >= 0; a class with fewer images gives all of them.
        min_score: Number in [0, 1], compared as float32: images of a lower score are left out.

    Returns:
        The rows that are kept, and counts.

    Raises:
        ValueError: If an argument is out of range, a record has a class that is none, or an id
            that is kept stands for several records.

    Source: Yalniz et al. 2019, arXiv:1905.00546, section 3 (several classes an image), and the
    SSLD recipe (one). There, ties and duplicate ids are not spoken of.
    """
    _check(k, min_score)
    check_count("num_classes", num_classes)
    threshold = float32(min_score)
    best = [_Best(int(k)) for _ in range(num_classes)]
    counts = dict.fromkeys(("seen", *FATES), 0)
    for arrival, record in enumerate(records):
        counts["seen"] += 1
        counts[_fate(arrival, record, best, threshold)] += 1
    rows = _merged(best)
    counts["kept"] = len(rows)
    counts["not_in_top_k"] -= len(rows)
    labels = np.bincount([row.label for row in rows], minlength=num_classes)
    return Selection(rows, counts, tuple(labels.tolist()))


def _check(k: int, min_score: float) -> None:
    if not is_integer(k) or k < 0:
        raise ValueError(f"`k`, the images to keep of a class, must be an integer >= 0, got {k!r}.")
    if not is_number(min_score) or not 0 <= min_score <= 1:
        raise ValueError(f"`min_score` must be a number in [0, 1], got {min_score!r}.")


def _encoded(id: str) -> bytes:
    try:
        return id.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"Ids must be text that UTF-8 can write, as they are sorted by it, got {id!r}: rename "
            "the file."
        ) from None


def _fate(arrival: int, record: Scored, best: list[_Best], threshold: float) -> str:
    """Offers an image to its classes; `not_in_top_k` is what it is until the end is known."""
    if not all(map(math.isfinite, record.scores)):
        return "non_finite"
    if record.detector is not None:
        return "duplicates"
    fate = "below_min_score"
    for label, score in zip(record.classes, map(float32, record.scores), strict=True):
        if not 0 <= label < len(best):
            raise ValueError(
                f"Classes must lie in 0 to {len(best) - 1}, got {label} for {record.id!r}: give "
                "the number of classes of the scorer."
            )
        if score >= threshold:
            best[label].offer(score, arrival, record)
            fate = "not_in_top_k"
    return fate


def _merged(best: list[_Best]) -> tuple[Row, ...]:
    """Each image once, where its rank is best, sorted by class and rank."""
    rows: dict[str, Row] = {}
    arrivals: dict[str, int] = {}
    twice: set[str] = set()
    for label, heap in enumerate(best):
        for rank, entry in enumerate(heap.drained()):
            id = entry.record.id
            if heap.lost(entry) or arrivals.setdefault(id, entry.arrival) != entry.arrival:
                twice.add(id)
            if id not in rows or rank < rows[id].rank:
                rows[id] = _row(entry, label, rank)
    if twice:
        raise ValueError(
            "The ids of all images that are mined together must be unique, got several images of "
            f"{listed(twice)}: give each image and each folder of scores once, and pools of "
            "several folders different names."
        )
    return tuple(sorted(rows.values(), key=lambda row: (row.label, row.rank)))


def _row(entry: _Entry, label: int, rank: int) -> Row:
    record = entry.record
    similarity = record.best_similarity
    return Row(
        id=record.id,
        source=record.source,
        label=label,
        score=entry.score,
        rank=rank,
        sha256=record.sha256,
        best_match=record.best_match,
        best_similarity=None if similarity is None else float32(similarity),
    )


def select(
    scores: Scores | str | os.PathLike[str] | Sequence[Scores | str | os.PathLike[str]],
    manifest: str | os.PathLike[str],
    *,
    k: int,
    min_score: float = 0.0,
) -> Manifest:
    """Writes the manifest of the best images of each class, of a pool that `score` went through.

    The file is a function of the scores, `k` and `min_score` alone: the same bytes however the pool
    was split and in whatever order its shards are given. See `top_k_per_class` for what is kept.
    Where the names of pools, or those that Keras gave to one scorer, differ, "+" joins them.

    Args:
        scores: What `score` returned, or its folder, or several: shards of a pool, or pools, scored
            with the same arguments. A warning tells if shards of a pool are missing.
        manifest: The file to write; one that is there is replaced.
        k: Integer >= 0, the images to keep of a class at most. With more than the whole pool has,
            all are kept, with a warning.
        min_score: Number in [0, 1]: images of a lower score are left out.

    Returns:
        What was written, as `read_manifest` gives it.

    Raises:
        ValueError: If an argument is out of range, a folder holds no finished scores, the folders
            were scored with different arguments, no image was seen, or an id that is kept stands
            for several images. Nothing is written then.
    """
    _check(k, min_score)
    is_one = isinstance(scores, str | os.PathLike) or hasattr(scores, "folder")
    several: list[Any] = [scores] if is_one else list(scores)  # type: ignore[arg-type]
    folders = [getattr(each, "folder", each) for each in several]
    if not folders:
        raise ValueError("`scores` must be at least one folder that `score` wrote, got none.")
    path = pathlib.Path(manifest)
    if path.is_dir():
        raise ValueError(
            f"`manifest` must be the path of a file, got the folder {str(path)!r}: add a name."
        )
    pools = {os.fspath(folder): Scores(folder) for folder in folders}
    if len(set(map(os.path.realpath, folders))) < len(folders):
        raise ValueError(f"`scores` must name each folder once, got {folders!r}.")
    return _select(pools, path, int(k), float32(min_score))


def _select(pools: Mapping[str, Scores], path: pathlib.Path, k: int, min_score: float) -> Manifest:
    """`select` on what lies in the folders."""
    _check_agreement(pools)
    _warn_of_missing_shards(pools)
    tallies = [scores.tallies for scores in pools.values()]
    seen = sum(tally["seen"] for tally in tallies)
    non_finite = sum(tally["non_finite"] for tally in tallies)
    unreadable = sum(len(tally["unreadable"]) for tally in tallies)
    if seen == 0:
        raise ValueError(
            f"There must be images to select from, got none and {unreadable:,} that could not be "
            "read: score a pool that has some."
        )
    if k > seen:
        warnings.warn(
            f"`k`={k:,} is more than the {seen:,} images of the whole pool, so all of them are "
            "kept that `min_score` and the evaluation set allow: give a smaller `k` to choose.",
            stacklevel=3,
        )
    header = next(iter(pools.values())).header
    records = itertools.chain.from_iterable(scores.records() for scores in pools.values())
    chosen = top_k_per_class(records, header["num_classes"], k, min_score)
    counts = {**chosen.counts, "seen": seen, "non_finite": chosen.counts["non_finite"] + non_finite}
    if seen != chosen.counts["seen"] + non_finite:
        raise ValueError(
            f"{listed(pools)} must hold {seen - non_finite:,} scores by their tallies, got "
            f"{chosen.counts['seen']:,}: they were changed, so score the pool into a new folder."
        )
    entries = {
        **{key: header[key] for key in _OF_THE_SCORES},
        "schema": SCHEMA,
        "k": k,
        "min_score": min_score,
        "assign": "predicted" if header["classes_per_image"] == 1 else "top_p",
        "scorer": _names("scorer", pools),
        "pool_name": _names("pool_name", pools),
        "counts": counts,
        "per_class": chosen.per_class,
        "unreadable": unreadable,
    }
    if counts["duplicates"] > seen / 2:
        warnings.warn(
            f"{counts['duplicates']:,} of the {seen:,} images look like images of the evaluation "
            "set and are left out, more than half: look at some, and call `score` with other "
            "`detectors` or a higher `similarity` if they are none.",
            stacklevel=3,
        )
    written = write(path, entries, chosen.rows)
    print(_summary(path, written))
    return written


def _names(key: str, pools: Mapping[str, Scores]) -> str:
    return "+".join(sorted({scores.header[key] for scores in pools.values()}))


def _summary(path: pathlib.Path, manifest: Manifest) -> str:
    header, counts = manifest.header, manifest.header["counts"]
    return (
        f"{path}: {counts['kept']:,} of the {counts['seen']:,} images of {header['pool_name']} "
        f"kept, at most {header['k']:,} in each of {header['num_classes']:,} classes; left out: "
        f"{counts['duplicates']:,} duplicates of evaluation images, {counts['below_min_score']:,} "
        f"of a score below {header['min_score']:g}, {counts['not_in_top_k']:,} beyond the best, "
        f"{counts['non_finite']:,} without a finite score; {header['unreadable']:,} unreadable."
    )


def _check_agreement(pools: Mapping[str, Scores]) -> None:
    """Raises unless all folders are finished and hold scores that can be compared."""
    (first, wanted), *others = [(folder, scores.header) for folder, scores in pools.items()]
    for folder, scores in pools.items():
        if not scores.complete:
            raise ValueError(
                f"The scores in {folder!r} must be complete, but are not: call `score` with the "
                "same arguments, which goes on with them."
            )
    for folder, header in others:
        for key in sorted((wanted.keys() | header.keys()) - _MAY_DIFFER):
            found = _difference(key, wanted.get(key), header.get(key))
            if found:
                name, value, other = found
                raise ValueError(
                    f"Scores must agree in `{name}` to be merged, got {shortened(repr(value))} in "
                    f"{first!r} and {shortened(repr(other))} in {folder!r}: score both with the "
                    "same arguments."
                )


def _warn_of_missing_shards(pools: Mapping[str, Scores]) -> None:
    shares: dict[tuple[str, str], Fraction] = collections.defaultdict(Fraction)
    for scores in pools.values():
        of = scores.header["pool_name"], scores.header["pool_digest"]
        shares[of] += Fraction(1, scores.header["shard"][1])
    for (name, _), share in shares.items():
        if share < 1:
            warnings.warn(
                f"The scores of {name!r} are those of shards that hold {float(share):.3g} of the "
                "pool: give the folders of the others, too, unless they are lost.",
                stacklevel=4,
            )


def _difference(name: str, value: Any, other: Any) -> tuple[str, Any, Any] | None:
    """Where two entries of headers first differ, and the values there."""
    pairs: list[tuple[str, Any, Any]] = []
    if isinstance(value, Mapping) and isinstance(other, Mapping):
        keys = sorted(value.keys() | other.keys())
        pairs = [(f"{name}.{key}", value.get(key), other.get(key)) for key in keys]
    elif isinstance(value, list) and isinstance(other, list) and len(value) == len(other):
        entries = zip(value, other, strict=True)
        pairs = [(f"{name}[{place}]", *pair) for place, pair in enumerate(entries)]
    elif value != other:
        return name, value, other
    return next(filter(None, (_difference(*pair) for pair in pairs)), None)
