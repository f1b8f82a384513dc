"""The images that no image of a pool may show: those that accuracy is measured on."""

from __future__ import annotations

import hashlib
import os
import pathlib
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_ssd.data.mining.duplicates import DETECTORS, EvaluationIndex, Match
from keras_ssd.data.mining.scorer import Scorer
from keras_ssd.data.splits import Splits

_STRENGTH = {"exact": 0, "dhash": 1, "embedding": 2, None: 3}
_NOTHING = Match(None, None, None)


class Index:
    """What finds the images of all parts of a target set.

    Args:
        parts: The index of each part; none where there is no target set.
    """

    def __init__(self, parts: Sequence[EvaluationIndex]) -> None:
        self._parts = parts

    def match(self, images: Sequence[np.ndarray], embeddings: np.ndarray | None) -> list[Match]:
        """A `Match` for each image, see `EvaluationIndex.match`."""
        if not images or not self._parts:
            return [_NOTHING] * len(images)
        found = (part.match(images, embeddings) for part in self._parts)
        return [_joined(matches) for matches in zip(*found, strict=True)]


class Evaluation:
    """The target set of a pass over a pool: which images there are, and how they are looked for.

    Args:
        target: `Splits`, of which the test and validation images are meant, a data set, or None.
        detectors: Which of `DETECTORS` look for them.
        hamming_distance: See `EvaluationIndex`.
        similarity: See `EvaluationIndex`.

    Attributes:
        name: The set's, or None.
        compares_embeddings: Whether the scorer must give embeddings.

    Raises:
        TypeError: If `target` is of another kind, or its images are not uint8.
        ValueError: If it has no images or never ends, or a detector is unknown.
    """

    def __init__(
        self,
        target: Splits | tf.data.Dataset | None,
        detectors: Collection[str],
        hamming_distance: int,
        similarity: float,
    ) -> None:
        if isinstance(detectors, str) or not set(detectors) <= set(DETECTORS):
            raise ValueError(
                f"`detectors` must be some of {DETECTORS} ('exact' always is on), got "
                f"{detectors!r}."
            )
        self._parts = _parts(target)
        for name, part in self._parts.items():
            _check_images(part, name)
        self.name = None
        if self._parts:
            self.name = _name_of(target) if isinstance(target, Splits) else "evaluation"
        self._detectors = set(detectors) if self._parts else set()
        self._limits: dict[str, Any] = {
            "hamming_distance": hamming_distance,
            "similarity": similarity,
        }
        self.compares_embeddings = "embedding" in self._detectors

    @property
    def detectors(self) -> dict[str, Any]:
        """Each detector with what it fires at, None where it is off."""
        distance, similarity = self._limits["hamming_distance"], self._limits["similarity"]
        limits: dict[str, Any] = {
            "dhash": {"hamming_distance": int(distance)},
            "embedding": {"similarity": float(similarity)},
        }
        found = {name: limits[name] if name in self._detectors else None for name in DETECTORS}
        return {"exact": True if self._parts else None, **found}

    def digest(self) -> str | None:
        """SHA-256 of all images in their order; None where there is no target set."""
        if not self._parts:
            return None
        return _digest(
            EvaluationIndex(
                name, ((images, None) for images in _images(part)), detectors=(), **self._limits
            )
            for name, part in self._parts.items()
        )

    def index(self, scorer: Scorer) -> Index:
        """What finds the images, with their embeddings where these are compared."""
        return Index(
            [
                EvaluationIndex(
                    name,
                    self._with_embeddings(part, scorer),
                    detectors=self._detectors,
                    **self._limits,
                )
                for name, part in self._parts.items()
            ]
        )

    def _with_embeddings(
        self, part: tf.data.Dataset, scorer: Scorer
    ) -> Iterator[tuple[list[np.ndarray], np.ndarray | None]]:
        for images in _images(part):
            for start in range(0, len(images), scorer.rows):
                some = images[start : start + scorer.rows]
                embeddings = None
                if self.compares_embeddings:
                    embeddings = scorer(scorer.prepared(some), len(some)).embeddings
                yield some, embeddings


def _parts(target: Any) -> dict[str, tf.data.Dataset]:
    """The data sets of images, by the names that stand in their ids."""
    if target is None:
        return {}
    if isinstance(target, tf.data.Dataset):
        return {"evaluation": target}
    if not isinstance(target, Splits):
        raise TypeError(
            "`target` must be what `data.load` gives, a tf.data.Dataset of images or None, got a "
            f"{type(target).__name__}."
        )
    splits = {"test": target.test, "validation": target.validation}
    name = _name_of(target)
    parts = {f"{name}[{split}]": part for split, part in splits.items() if part is not None}
    if not parts:
        raise ValueError(
            f"`target` must have test images, got {name!r} without: give the set that accuracy "
            "will be measured on."
        )
    return parts


def _check_images(dataset: tf.data.Dataset, name: str) -> None:
    spec = dataset.element_spec
    images = spec[0] if isinstance(spec, tuple) else spec
    if not isinstance(images, tf.TensorSpec) or images.dtype != tf.uint8:
        raise TypeError(
            f"`target` must give batches of uint8 images, with or without labels, got {spec} in "
            f"{name!r}."
        )
    if images.shape.rank != 4 or images.shape[3] not in (1, 3):
        raise ValueError(
            f"The images of {name!r} must be [batch, height, width, channels] of 1 or 3 channels, "
            f"got {images.shape}: a data set of single images needs `.batch(64)`."
        )
    if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ValueError(f"The images of {name!r} never end: leave `.repeat()` out.")


def _images(dataset: tf.data.Dataset) -> Iterator[list[np.ndarray]]:
    """The images, batch by batch, with 3 channels."""
    for element in dataset.as_numpy_iterator():
        images = element[0] if isinstance(element, tuple) else element
        yield list(images if images.shape[3] == 3 else np.repeat(images, 3, axis=3))


def _digest(indices: Iterator[EvaluationIndex]) -> str:
    digests = [index.digest for index in indices]
    return (
        digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    )


def _joined(matches: tuple[Match, ...]) -> Match:
    """What all parts together have that is like an image."""
    first = min(matches, key=lambda match: _STRENGTH[match.detector])
    if first.best_similarity is None:
        return first
    nearest = max(
        matches, key=lambda match: -1.0 if match.best_similarity is None else match.best_similarity
    )
    return Match(first.detector, nearest.best_match, nearest.best_similarity)


def _name_of(target: Splits) -> str:
    """Its name; of a folder its own alone, so that no path of this machine gets into a file."""
    return pathlib.Path(os.path.abspath(target.info.name)).name
