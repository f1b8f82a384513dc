"""Near-duplicates: which images of a pool show what is in an evaluation set."""

from __future__ import annotations

import hashlib
import math
import numbers
import struct
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import tensorflow as tf

DETECTORS = ("dhash", "embedding")
HASH_ROWS, HASH_COLUMNS = 8, 9
HASH_BITS = HASH_ROWS * (HASH_COLUMNS - 1)
GREY = (299, 587, 114)  # thousandths of red, green and blue
NORM_FLOOR = 1e-12
EVALUATION_BLOCK, CANDIDATE_BLOCK = 2_048, 1_024  # the product of two blocks takes 8 MB
VALUES = 2**20  # numbers of other temporary arrays
MAX_TABLE_DISTANCE = 8  # beyond it parts of a hash have so few bits that most of them are equal
BITS_OF_BYTES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, np.newaxis], axis=1).sum(axis=1)


class Match(NamedTuple):
    """What an evaluation set has that is like an image.

    Attributes:
        detector: The first of "exact", "dhash" and "embedding" that fires, or None.
        best_match: Id of the evaluation image of the nearest embedding. Where embeddings are not
            compared, of the image that was found, or None.
        best_similarity: Cosine similarity to the nearest embedding, a float32 value. None where
            embeddings are not compared.
    """

    detector: str | None
    best_match: str | None
    best_similarity: float | None


class EvaluationIndex:
    """What finds the images of an evaluation set again: no pixels, about 1 kB and the embeddings.

    What `match` says of an image depends on it and its embedding alone, not on the batch.

    Args:
        name: Of the evaluation set. Its images are called `f"{name}/{row:08d}"`, from row 0.
        batches: Pairs of images (uint8 arrays `[H, W, 3]`, of one size or several) and their
            embeddings `[images, D]`; None instead of embeddings if "embedding" is off.
        detectors: Which of "dhash" and "embedding" are on. "exact" always is.
        hamming_distance: Integer in [0, 63]: up to so many different bits of 64 "dhash" fires, for
            an evaluation image or its mirror image.
        similarity: Cosine in (0, 1] from which "embedding" fires.

    Attributes:
        size: Number of evaluation images.
        digest: Hexadecimal SHA-256 of the digests of the evaluation images, in order.

    Raises:
        TypeError: If images are not uint8 arrays, or embeddings no real numbers.
        ValueError: If there are no images, embeddings do not fit or an argument is out of range.
    """

    def __init__(
        self,
        name: str,
        batches: Iterable[tuple[Sequence[np.ndarray], np.ndarray | None]],
        *,
        detectors: Collection[str] = DETECTORS,
        hamming_distance: int = 4,
        similarity: float = 0.95,
    ) -> None:
        _check_detectors(detectors)
        if not _is_integer(hamming_distance) or not 0 <= hamming_distance < HASH_BITS:
            raise ValueError(
                f"`hamming_distance` must be an integer in [0, 63], got {hamming_distance!r}."
            )
        _check_cosine("similarity", similarity)
        self.name, self.size = name, 0
        self._detectors = frozenset(detectors)
        self._similarity = similarity
        self._rows: dict[str, int] = {}
        digest, hashes, vectors = hashlib.sha256(), [], []
        for images, embeddings in batches:
            for row, image in enumerate(images, self.size):
                one = sha256_of(image)
                self._rows.setdefault(one, row)
                digest.update(bytes.fromhex(one))
            if "dhash" in self._detectors:
                mirrored = [image[:, ::-1] for image in images]
                hashes.append(np.stack([_hashes(images), _hashes(mirrored)], axis=1).ravel())
            vectors.append(self._checked(images, embeddings))
            self.size += len(images)
        if not self.size:
            raise ValueError(f"The evaluation set {name!r} must have images, got none.")
        self.digest = digest.hexdigest()
        self._hashes = _HashTables(np.concatenate(hashes), hamming_distance) if hashes else None
        known = [some for some in vectors if some is not None]
        self._vectors = _Vectors.joined(known) if known else None

    def match(self, images: Sequence[np.ndarray], embeddings: np.ndarray | None) -> list[Match]:
        """What the evaluation set has that is like each of some images.

        Args:
            images: Arrays uint8 `[H, W, 3]`, of one size or several.
            embeddings: Finite numbers `[images, D]`; None if "embedding" is off.

        Returns:
            A `Match` for each image.

        Raises:
            TypeError: If images are not uint8 arrays, or embeddings no real numbers.
            ValueError: If `embeddings` are missing or not asked for, do not fit or are not finite.
        """
        vectors = self._checked(images, embeddings)
        hits = {"exact": [self._rows.get(sha256_of(image), -1) for image in images]}
        if self._hashes is not None:
            hits["dhash"] = (self._hashes.nearest(_hashes(images)) // 2).tolist()
        if vectors is None or self._vectors is None:
            return [Match(detector, self._id(row), None) for detector, row in _first_hits(hits)]
        nearest, cosines = _nearest(vectors, self._vectors, EVALUATION_BLOCK)
        hits["embedding"] = np.where(_reach(cosines, self._similarity), nearest, -1).tolist()
        similarities = cosines.astype(np.float32).tolist()
        return [
            Match(detector, self._id(row), similarity)
            for (detector, _), row, similarity in zip(
                _first_hits(hits), nearest, similarities, strict=True
            )
        ]

    def _id(self, row: int) -> str | None:
        return None if row < 0 else f"{self.name}/{row:08d}"

    def _checked(
        self, images: Sequence[np.ndarray], embeddings: np.ndarray | None
    ) -> _Vectors | None:
        if (embeddings is not None) != ("embedding" in self._detectors):
            raise ValueError(
                "`embeddings` must be given if the detector 'embedding' is on, and else be None: "
                f"the detectors are {sorted(self._detectors)}."
            )
        if embeddings is None:
            return None
        vectors = _Vectors.of("embeddings", embeddings)
        if len(vectors) != len(images):
            raise ValueError(
                f"`embeddings` must have a row for each image, got {len(vectors)} rows and "
                f"{len(images)} images."
            )
        return vectors


def near_duplicates(
    candidates: np.ndarray,
    evaluation: np.ndarray,
    threshold: float = 0.95,
    block_size: int = EVALUATION_BLOCK,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Candidates whose direction is close to that of an evaluation vector.

    Products of float32 blocks name what may be nearest, and float64 sums of fixed order decide,
    rounded to float32: decisions and ties depend neither on `block_size` nor on how a machine
    multiplies matrices. A zero vector has similarity 0 to everything.

    Args:
        candidates: Finite numbers `[N, D]`; N may be 0.
        evaluation: Finite numbers `[M, D]`, M >= 1.
        threshold: Cosine in (0, 1].
        block_size: Evaluation rows compared at once, >= 1.

    Returns:
        `removed` bool `[N]`: similarity >= `threshold`; `best_match` `[N]`: the evaluation row of
        highest similarity, the lowest of equal ones; `best_similarity` float64 `[N]`.

    Raises:
        TypeError: If the vectors are no real numbers.
        ValueError: If shapes do not fit, values are not finite or an argument is out of range.
    """
    _check_cosine("threshold", threshold)
    if not _is_integer(block_size) or block_size < 1:
        raise ValueError(f"`block_size` must be an integer >= 1, got {block_size!r}.")
    vectors, index = _Vectors.of("candidates", candidates), _Vectors.of("evaluation", evaluation)
    if not len(index):
        raise ValueError("`evaluation` must have a row at least, got none.")
    best_match, best_similarity = _nearest(vectors, index, block_size)
    return _reach(best_similarity, threshold), best_match, best_similarity


def sha256_of(image: np.ndarray) -> str:
    """Hexadecimal SHA-256 of height and width (little-endian uint32) and the pixels of an image.

    Args:
        image: Array uint8 `[H, W, 3]`.

    Raises:
        TypeError: If it is no uint8 array.
        ValueError: If it has another shape.
    """
    height, width, _ = _shape(image)
    return hashlib.sha256(struct.pack("<II", height, width) + image.tobytes()).hexdigest()


def difference_hash(image: np.ndarray) -> np.ndarray:
    """64 bits that copies of an image share: where it becomes lighter from left to right.

    Grey is 0.299 R + 0.587 G + 0.114 B; 8 rows of 9 areas, which share pixels where the size does
    not divide, are compared with their right neighbours. All sums are integers and exact.

    Args:
        image: Array uint8 `[H, W, 3]` of any size.

    Returns:
        Array bool `[64]`, row by row from the top left.

    Raises:
        TypeError: If it is no uint8 array.
        ValueError: If it has another shape.
    """
    _shape(image)
    return _difference_hashes(image[np.newaxis])[0]


def _difference_hashes(images: np.ndarray) -> np.ndarray:
    """The hashes `[N, 64]` of images `[N, H, W, 3]`."""
    count, height, width, _ = images.shape
    lines = images.reshape(count, height, width * 3)
    exact = np.float32 if 255 * height < 2**24 else np.float64  # holds the sum of a column
    bands = np.empty((count, HASH_ROWS, width * 3), exact)
    for row, shares in enumerate(_overlaps(height, HASH_ROWS).astype(exact)):
        part = slice(row * height // HASH_ROWS, -(-(row + 1) * height // HASH_ROWS))
        bands[:, row] = np.einsum("h,nhw->nw", shares[part], lines[:, part].astype(exact))
    weights = (_overlaps(width, HASH_COLUMNS)[:, :, np.newaxis] * GREY).reshape(HASH_COLUMNS, -1)
    areas = bands.astype(np.float64) @ weights.T
    return (areas[:, :, :-1] < areas[:, :, 1:]).reshape(count, HASH_BITS)


def _overlaps(pixels: int, cells: int) -> np.ndarray:
    """How much of each pixel is in each of equal cells `[cells, pixels]`; 1 pixel = `cells`."""
    pixel, cell = np.arange(pixels) * cells, np.arange(cells)[:, np.newaxis] * pixels
    shared = np.minimum(pixel + cells, cell + pixels) - np.maximum(pixel, cell)
    return np.maximum(shared, 0).astype(np.float64)


def _hashes(images: Sequence[np.ndarray]) -> np.ndarray:
    """The hashes of images of any sizes, each packed into a uint64."""
    hashes = np.empty((len(images), HASH_BITS), bool)
    for rows in _rows_of_one_size(images):
        hashes[rows] = _difference_hashes(np.stack([images[row] for row in rows]))
    return _packed(hashes)


def _packed(bits: np.ndarray) -> np.ndarray:
    return np.packbits(bits, axis=1).view(np.uint64)[:, 0]


def _rows_of_one_size(images: Sequence[np.ndarray]) -> Iterator[list[int]]:
    by_shape: dict[tuple[int, int, int], list[int]] = {}
    for row, image in enumerate(images):
        by_shape.setdefault(_shape(image), []).append(row)
    for shape, rows in by_shape.items():
        step = max(1, VALUES // math.prod(shape))
        yield from (rows[start : start + step] for start in range(0, len(rows), step))


class _HashTables:
    """Hashes that are found by a part of them.

    Of two hashes with `distance` different bits at most, one of `distance + 1` parts is the same.

    Args:
        hashes: Array uint64 `[M]`.
        distance: The number of different bits up to which hashes are near.
    """

    def __init__(self, hashes: np.ndarray, distance: int) -> None:
        self._hashes, self._distance = hashes, distance
        parts = np.arange(HASH_BITS) % (distance + 1) == np.arange(distance + 1)[:, np.newaxis]
        if distance > MAX_TABLE_DISTANCE:
            parts = np.zeros((1, HASH_BITS), bool)  # all have the same empty part
        self._tables = []
        for mask in _packed(parts):
            order = np.argsort(hashes & mask, kind="stable")
            self._tables.append((mask, hashes[order] & mask, order))

    def nearest(self, hashes: np.ndarray) -> np.ndarray:
        """The first of the nearest rows for each of some hashes; -1 where none is near."""
        nearest = np.full(len(hashes), -1)
        step = max(1, VALUES // len(self._hashes))
        for start in range(0, len(hashes), step):
            some = hashes[start : start + step]
            pairs = [self._near_pairs(some, *table) for table in self._tables]
            queries, distances, rows = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
            firsts = _firsts(queries, distances, rows)
            nearest[start + queries[firsts]] = rows[firsts]
        return nearest

    def _near_pairs(
        self, hashes: np.ndarray, mask: np.ndarray, keys: np.ndarray, order: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        wanted = hashes & mask
        first = np.searchsorted(keys, wanted)
        counts = np.searchsorted(keys, wanted, side="right") - first
        queries = np.repeat(np.arange(len(hashes)), counts)
        within = np.arange(len(queries)) - np.repeat(np.cumsum(counts) - counts, counts)
        rows = order[first[queries] + within]
        different = (hashes[queries] ^ self._hashes[rows]).view(np.uint8).reshape(-1, 8)
        distances = BITS_OF_BYTES[different].sum(axis=1)
        near = distances <= self._distance
        return queries[near], distances[near], rows[near]


def _firsts(groups: np.ndarray, distances: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The place of the smallest distance of each group, of equal ones that of the lowest row."""
    order = np.lexsort((rows, distances, groups))
    return order[np.unique(groups[order], return_index=True)[1]]


@dataclass(frozen=True)
class _Vectors:
    """Rows and their norms, of which unit vectors are made when they are needed."""

    values: np.ndarray  # [N, D], float32 or float64
    norms: np.ndarray  # float64 [N]

    @classmethod
    def of(cls, name: str, array: np.ndarray) -> _Vectors:
        values = np.asarray(array)
        if not np.can_cast(values.dtype, np.float64):
            raise TypeError(f"`{name}` must be real numbers, got {values.dtype}.")
        if values.ndim != 2 or not values.shape[1]:
            raise ValueError(f"`{name}` must be a matrix [rows, D], got shape {values.shape}.")
        values = np.ascontiguousarray(values, np.result_type(values.dtype, np.float32))
        every = np.arange(len(values))
        with np.errstate(over="ignore"):
            norms = np.sqrt(_products(values, values, every, every))
        if not np.isfinite(norms).all():
            row = np.flatnonzero(~np.isfinite(norms))[0]
            raise ValueError(f"`{name}` must be finite, row {row} is not: leave such rows out.")
        return cls(values, np.maximum(norms, NORM_FLOOR))

    @classmethod
    def joined(cls, parts: Sequence[_Vectors]) -> _Vectors:
        _check_widths(parts)
        values = np.concatenate([part.values for part in parts])
        return cls(values, np.concatenate([part.norms for part in parts]))

    def __len__(self) -> int:
        return len(self.values)

    def part(self, start: int, size: int) -> _Vectors:
        rows = slice(start, start + size)
        return _Vectors(self.values[rows], self.norms[rows])

    def units(self) -> np.ndarray:
        return (self.values / self.norms[:, np.newaxis]).astype(np.float32)


def _nearest(
    candidates: _Vectors, evaluation: _Vectors, block_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """The first of the nearest evaluation rows of each candidate, and their cosines in float64."""
    _check_widths([candidates, evaluation])
    nearest = np.zeros(len(candidates), int)
    for start in range(0, len(candidates), CANDIDATE_BLOCK):
        some = candidates.part(start, CANDIDATE_BLOCK)
        nearest[start : start + CANDIDATE_BLOCK] = _nearest_of_few(some, evaluation, block_size)
    return nearest, _cosines(candidates, evaluation, np.arange(len(candidates)), nearest)


def _nearest_of_few(candidates: _Vectors, evaluation: _Vectors, block_size: int) -> np.ndarray:
    # Two products of float32 unit vectors whose cosines are equal in float32 differ by less.
    margin = np.float32((candidates.values.shape[1] + 4) * np.finfo(np.float32).eps)
    units = candidates.units()
    nearest, highest = np.zeros(len(candidates), int), np.full(len(candidates), -np.inf, np.float32)
    for start in range(0, len(evaluation), block_size):
        block = evaluation.part(start, block_size)
        products = _matrix_product(units, block.units())
        bounds = np.maximum(products.max(axis=1), highest) - margin
        rows, columns = np.divmod(np.flatnonzero(products >= bounds[:, np.newaxis]), len(block))
        cosines = _cosines(candidates, block, rows, columns).astype(np.float32)
        firsts = _firsts(rows, -cosines, columns)
        better = firsts[cosines[firsts] > highest[rows[firsts]]]
        nearest[rows[better]], highest[rows[better]] = start + columns[better], cosines[better]
    return nearest


def _matrix_product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The products of float32 rows with rows.

    TensorFlow multiplies, since its own threads do: where those run a network, the threads of
    NumPy wait for each other and take five times the processor time.
    """
    with tf.device("CPU:0"):
        return np.asarray(tf.matmul(left, right, transpose_b=True))


def _cosines(
    candidates: _Vectors, evaluation: _Vectors, rows: np.ndarray, columns: np.ndarray
) -> np.ndarray:
    products = _products(candidates.values, evaluation.values, rows, columns)
    return np.clip(products / (candidates.norms[rows] * evaluation.norms[columns]), -1, 1)


def _products(
    left: np.ndarray, right: np.ndarray, left_rows: np.ndarray, right_rows: np.ndarray
) -> np.ndarray:
    """Scalar products of pairs of rows in float64, each the same whatever the others are."""
    products = np.empty(len(left_rows))
    step = max(1, VALUES // left.shape[1])
    for start in range(0, len(products), step):
        pairs = slice(start, start + step)
        terms = left[left_rows[pairs]].astype(np.float64) * right[right_rows[pairs]]
        products[pairs] = terms.sum(axis=1)
    return products


def _reach(cosines: np.ndarray, threshold: float) -> np.ndarray:
    return cosines.astype(np.float32) >= np.float32(threshold)


def _first_hits(hits: dict[str, list[int]]) -> list[tuple[str | None, int]]:
    """The first detector of each image that found a row (>= 0), and the row."""
    nothing: tuple[str | None, int] = (None, -1)
    return [
        next(((name, row) for name, row in zip(hits, rows, strict=True) if row >= 0), nothing)
        for rows in zip(*hits.values(), strict=True)
    ]


def _shape(image: np.ndarray) -> tuple[int, int, int]:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        kind = image.dtype if isinstance(image, np.ndarray) else type(image).__name__
        raise TypeError(f"An image must be a uint8 array [H, W, 3], got {kind}.")
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"An image must be a uint8 array [H, W, 3], got shape {image.shape}.")
    return image.shape


def _check_detectors(detectors: Collection[str]) -> None:
    if isinstance(detectors, str) or not set(detectors) <= set(DETECTORS):
        raise ValueError(
            f"`detectors` must be some of {DETECTORS} ('exact' always is on), got {detectors!r}."
        )


def _is_integer(value: object) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _check_cosine(name: str, value: float) -> None:
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number or not 0 < value <= 1:
        raise ValueError(f"`{name}` must be a number in (0, 1], got {value!r}.")


def _check_widths(vectors: Sequence[_Vectors]) -> None:
    widths = {some.values.shape[1] for some in vectors}
    if len(widths) > 1:
        raise ValueError(f"Vectors to be compared must have one width, got {sorted(widths)}.")
