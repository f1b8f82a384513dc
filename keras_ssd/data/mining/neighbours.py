"""The nearest of many hashes and of many vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from keras_ssd.arguments import check_count, is_number
from keras_ssd.data.mining.hashes import HASH_BITS, packed

NORM_FLOOR = 1e-12
EVALUATION_BLOCK, CANDIDATE_BLOCK = 2_048, 1_024  # the product of two blocks takes 8 MB
VALUES = 2**20  # numbers of other temporary arrays
BITS_OF_BYTES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, np.newaxis], axis=1).sum(axis=1)


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
    check_cosine("threshold", threshold)
    check_count("block_size", block_size)
    vectors, index = Vectors.of("candidates", candidates), Vectors.of("evaluation", evaluation)
    if not len(index):
        raise ValueError("`evaluation` must have a row at least, got none.")
    best_match, best_similarity = nearest_rows(vectors, index, block_size)
    return reach(best_similarity, threshold), best_match, best_similarity


class HashTables:
    """Hashes that are found by a part of them.

    Of two hashes with `distance` different bits at most, one of `distance + 1` parts is the same.

    Args:
        hashes: Array uint64 `[M]`.
        distance: The number of different bits up to which hashes are near.
    """

    def __init__(self, hashes: np.ndarray, distance: int) -> None:
        self._hashes, self._distance = hashes, distance
        parts = np.arange(HASH_BITS) % (distance + 1) == np.arange(distance + 1)[:, np.newaxis]
        self._tables = []
        for mask in packed(parts):
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


@dataclass(frozen=True)
class Vectors:
    """Rows and their norms, of which unit vectors are made when they are needed."""

    values: np.ndarray  # [N, D]
    norms: np.ndarray  # float64 [N]

    @classmethod
    def of(cls, name: str, array: np.ndarray) -> Vectors:
        """The rows of a matrix, which `name` calls in an error."""
        values = np.asarray(array)
        if not np.can_cast(values.dtype, np.float64):
            raise TypeError(f"`{name}` must be real numbers, got {values.dtype}.")
        if values.ndim != 2 or not values.shape[1]:
            raise ValueError(f"`{name}` must be a matrix [rows, D], got shape {values.shape}.")
        every = np.arange(len(values))
        with np.errstate(over="ignore"):
            norms = np.sqrt(_products(values, values, every, every))
        if not np.isfinite(norms).all():
            row = np.flatnonzero(~np.isfinite(norms))[0]
            raise ValueError(f"`{name}` must be finite, row {row} is not: leave such rows out.")
        return cls(values, np.maximum(norms, NORM_FLOOR))

    @classmethod
    def joined(cls, parts: Sequence[Vectors]) -> Vectors:
        """The rows of all parts."""
        _check_widths(parts)
        values = np.concatenate([part.values for part in parts])
        return cls(values, np.concatenate([part.norms for part in parts]))

    def __len__(self) -> int:
        return len(self.values)

    def part(self, start: int, size: int) -> Vectors:
        """Up to `size` rows."""
        rows = slice(start, start + size)
        return Vectors(self.values[rows], self.norms[rows])

    def units(self) -> np.ndarray:
        """The rows divided by their norms, float32 `[N, D]`."""
        return (self.values / self.norms[:, np.newaxis]).astype(np.float32)


def nearest_rows(
    candidates: Vectors, evaluation: Vectors, block_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """The first of the nearest evaluation rows of each candidate, and their cosines in float64."""
    _check_widths([candidates, evaluation])
    nearest = np.zeros(len(candidates), int)
    for start in range(0, len(candidates), CANDIDATE_BLOCK):
        some = candidates.part(start, CANDIDATE_BLOCK)
        nearest[start : start + CANDIDATE_BLOCK] = _nearest_of_few(some, evaluation, block_size)
    return nearest, _cosines(candidates, evaluation, np.arange(len(candidates)), nearest)


def _nearest_of_few(candidates: Vectors, evaluation: Vectors, block_size: int) -> np.ndarray:
    # Two products of float32 unit vectors whose cosines are equal in float32 differ by less.
    margin = np.float32((candidates.values.shape[1] + 4) * np.finfo(np.float32).eps)
    units = candidates.units()
    nearest, highest = np.zeros(len(candidates), int), np.full(len(candidates), -np.inf, np.float32)
    for start in range(0, len(evaluation), block_size):
        block = evaluation.part(start, block_size)
        products = _matrix_product(units, block.units())
        bounds = products.max(axis=1, keepdims=True) - margin
        rows, columns = np.divmod(np.flatnonzero(products >= bounds), len(block))
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
    candidates: Vectors, evaluation: Vectors, rows: np.ndarray, columns: np.ndarray
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
        terms = left.take(left_rows[pairs], axis=0).astype(np.float64)
        terms *= right.take(right_rows[pairs], axis=0)
        products[pairs] = terms.sum(axis=1)
    return products


def reach(cosines: np.ndarray, threshold: float) -> np.ndarray:
    """Whether each is the threshold at least, both rounded to float32."""
    return cosines.astype(np.float32) >= np.float32(threshold)


def _firsts(groups: np.ndarray, distances: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The place of the smallest distance of each group, of equal ones that of the lowest row."""
    order = np.lexsort((rows, distances, groups))
    return order[np.unique(groups[order], return_index=True)[1]]


def check_cosine(name: str, value: float) -> None:
    """Refuses what is no number in (0, 1]."""
    if not is_number(value) or not 0 < value <= 1:
        raise ValueError(f"`{name}` must be a number in (0, 1], got {value!r}.")


def _check_widths(vectors: Sequence[Vectors]) -> None:
    widths = {some.values.shape[1] for some in vectors}
    if len(widths) > 1:
        raise ValueError(f"Vectors to be compared must have one width, got {sorted(widths)}.")
