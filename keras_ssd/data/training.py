"""What a training set is made of, and unlabeled images between the labelled ones of each batch."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from keras_ssd.data.encoded import on_cpu
from keras_ssd.data.images import Images

_Batch = tuple[tf.Tensor, tf.Tensor]


@dataclass(frozen=True, eq=False)
class Training:
    """Which images train, and how they become batches.

    Attributes:
        images: The images and their labels.
        rows: Which of them train.
        batch_size: How many of them are in a batch.
        seed: Chooses, with the epoch, their order.
        labeled: Whether they have labels.
        unlabeled: Images that each batch holds beside them, so many as its own `batch_size` says.
        indexed: Whether an image comes with its place in `rows`.
    """

    images: Images
    rows: np.ndarray
    batch_size: int
    seed: int
    labeled: bool = True
    unlabeled: Training | None = None
    indexed: bool = False

    @property
    def steps(self) -> int:
        """The number of batches in an epoch: each image of `rows` is in one, at most."""
        return len(self.rows) // self.batch_size

    def with_unlabeled(self, unlabeled: Training, share: float | None) -> Training:
        """The same images in batches of the same size that hold a share of unlabeled ones."""
        if share is None:
            share = len(unlabeled.rows) / (len(unlabeled.rows) + len(self.rows))
        count = _count_in_batch(share, self.batch_size)
        return dataclasses.replace(
            self,
            batch_size=self.batch_size - count,
            unlabeled=dataclasses.replace(unlabeled, batch_size=count),
        )

    def dataset(self) -> tf.data.Dataset:
        """Batches (images, labels), or images alone where there are no labels."""
        if self.indexed:
            return self._with_places()
        batches = self.images.shuffled(self.rows, self.batch_size, self.seed)
        if not self.labeled:
            return batches.map(lambda images, _: images)
        if self.unlabeled is None:
            return batches
        more = self.unlabeled
        per_epoch = self.steps * more.batch_size
        others = more.images.shuffled(more.rows, more.batch_size, more.seed, per_epoch)
        mixed = tf.data.Dataset.zip((batches, others))
        return mixed.map(_joined(self.batch_size, more.batch_size)).prefetch(tf.data.AUTOTUNE)

    def _with_places(self) -> tf.data.Dataset:
        """Batches ({image, index}, labels); unlabeled images have the index -1."""
        labels = on_cpu(self.images.labels[self.rows])
        places = np.full(self.images.size, -1, "int32")
        places[self.rows] = np.arange(len(self.rows))
        images = self.images.relabeled(places)
        numbered = dataclasses.replace(self, images=images, indexed=False).dataset()

        def with_labels(images: tf.Tensor, index: tf.Tensor) -> tuple[dict[str, tf.Tensor], Any]:
            known = tf.gather(labels, tf.maximum(index, 0))
            return {"image": images, "index": index}, tf.where(index >= 0, known, -1)

        return numbered.map(with_labels, num_parallel_calls=tf.data.AUTOTUNE)


def _count_in_batch(share: float, batch_size: int) -> int:
    if not isinstance(share, numbers.Real) or not 0 < share < 1:
        raise ValueError(f"`share` must be a number in (0, 1) or None, got {share!r}.")
    count = round(share * batch_size)
    if not 0 < count < batch_size:
        raise ValueError(
            f"A share of {share:.4g} is {count} of the {batch_size} images of a batch, which needs "
            "an unlabeled one and a labelled one at least: give another `share`, or load with a "
            "larger `batch_size`."
        )
    return count


def _joined(labeled: int, unlabeled: int) -> Callable[[_Batch, _Batch], _Batch]:
    """From a labelled and an unlabeled batch to one of both, with the label -1 for the latter."""
    places = tf.constant(_spread(labeled, unlabeled))

    def join(known: _Batch, others: _Batch) -> _Batch:
        labels = tf.concat([known[1], tf.fill([unlabeled], -1)], axis=0)
        return tf.gather(tf.concat([known[0], others[0]], axis=0), places), tf.gather(
            labels, places
        )

    return join


def _spread(labeled: int, unlabeled: int) -> np.ndarray:
    """The order of rows, labelled ones before unlabeled ones, that spreads the latter evenly.

    Any part of the batch then holds its share of them, rounded up or down: so do those of replicas.
    """
    before = np.arange(labeled + unlabeled + 1) * unlabeled // (labeled + unlabeled)
    is_unlabeled = np.diff(before) > 0
    return np.where(is_unlabeled, labeled + before[:-1], np.cumsum(~is_unlabeled) - 1)
