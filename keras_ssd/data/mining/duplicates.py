"""Near-duplicates: which images of a pool show what is in an evaluation set."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from keras_ssd.arguments import is_integer
from keras_ssd.data.mining import neighbours
from keras_ssd.data.mining.hashes import HASH_BITS, hashes_of, sha256_of
from keras_ssd.data.mining.neighbours import HashTables, Vectors, check_cosine

DETECTORS = ("dhash", "embedding")


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
    """What finds the images of an evaluation set again, without their pixels.

    Takes about 0.4 kB of memory an image, and its embedding. What `match` says of an image depends
    on it and its embedding alone, not on the batch. Neither threshold was ever published.

    Args:
        name: Of the evaluation set. Its images are called `f"{name}/{row:08d}"`, from row 0.
        batches: Pairs of images (uint8 arrays `[H, W, 3]`, of one size or several) and their
            embeddings `[images, D]`; None instead of embeddings if "embedding" is off.
        detectors: Which of "dhash" and "embedding" are on. "exact" always is.
        hamming_distance: Integer in [0, 63]: up to so many different bits of 64 "dhash" fires, for
            an evaluation image or its mirror image. Above 8 it is slow and fires at random.
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
        if not is_integer(hamming_distance) or not 0 <= hamming_distance < HASH_BITS:
            raise ValueError(
                f"`hamming_distance` must be an integer in [0, 63], got {hamming_distance!r}."
            )
        check_cosine("similarity", similarity)
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
                hashes.append(np.stack([hashes_of(images), hashes_of(mirrored)], axis=1).ravel())
            vectors.append(self._checked(images, embeddings))
            self.size += len(images)
        if not self.size:
            raise ValueError(f"The evaluation set {name!r} must have images, got none.")
        self.digest = digest.hexdigest()
        self._hashes = HashTables(np.concatenate(hashes), hamming_distance) if hashes else None
        known = [some for some in vectors if some is not None]
        self._vectors = Vectors.joined(known) if known else None

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
            hits["dhash"] = (self._hashes.nearest(hashes_of(images)) // 2).tolist()
        if vectors is None or self._vectors is None:
            return [Match(detector, self._id(row), None) for detector, row in _first_hits(hits)]
        nearest, cosines = neighbours.nearest_rows(
            vectors, self._vectors, neighbours.EVALUATION_BLOCK
        )
        hits["embedding"] = np.where(
            neighbours.reach(cosines, self._similarity), nearest, -1
        ).tolist()
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
    ) -> Vectors | None:
        if (embeddings is not None) != ("embedding" in self._detectors):
            raise ValueError(
                "`embeddings` must be given if the detector 'embedding' is on, and else be None: "
                f"the detectors are {sorted(self._detectors)}."
            )
        if embeddings is None:
            return None
        vectors = Vectors.of("embeddings", embeddings)
        if len(vectors) != len(images):
            raise ValueError(
                f"`embeddings` must have a row for each image, got {len(vectors)} rows and "
                f"{len(images)} images."
            )
        return vectors


def _first_hits(hits: dict[str, list[int]]) -> list[tuple[str | None, int]]:
    """The first detector of each image that found a row (>= 0), and the row."""
    nothing: tuple[str | None, int] = (None, -1)
    return [
        next(((name, row) for name, row in zip(hits, rows, strict=True) if row >= 0), nothing)
        for rows in zip(*hits.values(), strict=True)
    ]


def _check_detectors(detectors: Collection[str]) -> None:
    if not set(detectors) <= set(DETECTORS):
        raise ValueError(
            f"`detectors` must be some of {DETECTORS} ('exact' always is on), got {detectors!r}."
        )
