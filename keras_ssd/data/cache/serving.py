"""Training sets whose images come with what a teacher said of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
import tensorflow as tf

from keras_ssd.data.encoded import on_cpu
from keras_ssd.data.order import by_epoch, permuted
from keras_ssd.data.splits import Splits
from keras_ssd.data.training import Training

_OFFSETS = 1 << 32  # beside the epochs, which choose the order of the images by the same seed

# From places and stored augmentations, int64 `[B]` each, to float32 `[B, ...]` of each output.
Read = Callable[[np.ndarray, np.ndarray], Sequence[np.ndarray]]


class WithTeacher(Splits):
    """Splits whose training images come with stored outputs of a teacher, and so cannot change."""

    def _with(self, training: Training, change: str) -> NoReturn:  # noqa: ARG002
        method = change.partition("(")[0]
        raise ValueError(
            f"`{method}` comes before the teacher's outputs are stored or imported, got a data set "
            "that has them: call it on what `data.load` returns."
        )


@dataclasses.dataclass(frozen=True)
class Stored:
    """What a teacher said of training images.

    Attributes:
        shapes: Of what an image gives, by the name of the output.
        read: From places and augmentations to the outputs, in the order of `shapes`.
        draws: Of each augmentation and place, float32 `[augmentations, n, num_draws]` by the
            fingerprint of the views; empty where nothing is known of views.
        augmentations: k, how many of each image there are.
        seed: Chooses, with the epoch, which of them an image gets.
    """

    shapes: Mapping[str, tuple[int, ...]]
    read: Read
    draws: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    augmentations: int = 1
    seed: int = 0


def check_data(function: str, data: Any) -> Splits:
    """Refuses what has no training images of one kind whose places are known."""
    if not isinstance(data, Splits):
        raise TypeError(
            f"`{function}` takes what `data.load` returns, as nothing tells the images of another "
            f"data set or what was done to them, got a {type(data).__name__}."
        )
    if isinstance(data, WithTeacher):
        raise ValueError(
            f"`{function}` takes images without outputs of a teacher, got some that have them: "
            "give it what `data.load` returns."
        )
    if data._training.unlabeled is not None:
        raise ValueError(
            f"`{function}` takes labelled images or those of a manifest, got both in one set "
            "(`with_unlabeled`): let the teacher run there."
        )
    return data


def with_teacher(data: Splits, stored: Stored, change: str) -> WithTeacher:
    """The same data sets, each training image with the outputs that are stored of it."""
    info = dataclasses.replace(data.info, changes=(*data.info.changes, change))
    return WithTeacher(
        train=_dataset(data._training, stored),
        validation=data.validation,
        test=data.test,
        info=info,
        _training=data._training,
    )


def _dataset(training: Training, stored: Stored) -> tf.data.Dataset:
    """Batches of `training.dataset()` in their order, each image with what was said of it."""
    places = np.full(training.images.size, -1, "int32")
    places[training.rows] = np.arange(len(training.rows))
    images = training.images.relabeled(places)
    numbered = dataclasses.replace(training, images=images, labeled=True, indexed=False).dataset()

    def epoch_of_each(seeds: tf.Tensor) -> tf.data.Dataset:
        return tf.data.Dataset.from_tensors(seeds[1]).repeat(training.steps)

    epochs = by_epoch(epoch_of_each, training.seed, training.steps)
    batches = tf.data.Dataset.zip((numbered, epochs))
    labels = on_cpu(training.images.labels[training.rows]) if training.labeled else None
    draws = {name: on_cpu(table) for name, table in stored.draws.items()}
    offsets = _offsets(len(training.rows), stored)

    def join(numbered: tuple[tf.Tensor, tf.Tensor], epoch: tf.Tensor) -> Any:
        images, index = numbered
        which = (epoch + tf.gather(offsets, index)) % stored.augmentations
        x = {"image": images, "index": index, "teacher": _read(stored, index, which)}
        if draws:
            x["draws"] = {name: _chosen(table, which, index) for name, table in draws.items()}
        return x if labels is None else (x, tf.gather(labels, index))

    return batches.map(join, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def _offsets(size: int, stored: Stored) -> tf.Tensor:
    """A number in 0..k-1 for each image, each as often as the others: where it begins."""
    with tf.device("CPU:0"):
        order = permuted(tf.range(size, dtype=tf.int64), tf.constant([stored.seed, _OFFSETS]))
        return order % stored.augmentations


def _chosen(table: tf.Tensor, which: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
    """The draws `[B, num_draws]` of some augmentations and places."""
    if table.shape[-1] == 0:  # nothing can be gathered from a table of nothing
        return tf.zeros([*index.shape, 0])
    return tf.gather_nd(table, tf.stack([which, tf.cast(index, tf.int64)], axis=1))


def _read(stored: Stored, index: tf.Tensor, which: tf.Tensor) -> dict[str, tf.Tensor]:
    types = [tf.float32] * len(stored.shapes)
    outputs = tf.numpy_function(
        lambda *numbers: list(stored.read(*numbers)), [index, which], types, stateful=False
    )
    return {
        name: tf.ensure_shape(values, [*index.shape, *shape])
        for (name, shape), values in zip(stored.shapes.items(), outputs, strict=True)
    }
