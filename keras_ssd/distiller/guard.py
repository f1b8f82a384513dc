"""What only a running step can tell: labels, weights, class scores, replicas without an image."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from keras_ssd.collectives import all_sum, num_replicas
from keras_ssd.distiller import preflight
from keras_ssd.distiller.inputs import Inputs
from keras_ssd.distribution import lost_workers_told
from keras_ssd.losses.probabilities import are_probabilities


class Guard:
    """What only a running step can tell: labels, weights and class scores that mean nothing.

    Assertions stop the run before any weight moves. XLA drops them; there the loss turns NaN and
    the gradient 0.

    Args:
        inputs: What `fit` gave.
        num_classes: The number of the student's classes.

    Attributes:
        labels: The labels, unlabeled where they mean nothing.
        sample_weight: The weights, 0 where they mean nothing: 0 times NaN would be a gradient.
    """

    def __init__(self, inputs: Inputs, num_classes: int) -> None:
        self._checks: list[tf.Tensor] = []
        self._assertions: list[tf.Operation] = []
        self.labels = inputs.labels
        if self.labels is not None:
            self._check_labels(inputs.labels, num_classes)
        self.sample_weight = weights = inputs.sample_weight
        if weights is not None:
            fits = tf.math.is_finite(weights) & (weights >= 0)
            self._require(fits, "`sample_weight` must be finite and >= 0, got values from", weights)
            self.sample_weight = tf.where(fits, weights, tf.zeros_like(weights))

    def _check_labels(self, labels: tf.Tensor, num_classes: int) -> None:
        if labels.shape.rank == 1:
            words = f"Labels must be -1 (unlabeled) or 0..{num_classes - 1}, got values from"
            fits = (labels >= -1) & (labels < num_classes)
            self._require(fits, words, labels)
            self.labels = tf.where(fits, labels, -1)
        elif labels.shape[1] != num_classes:
            raise ValueError(
                f"One-hot labels have {labels.shape[1]} classes and the student {num_classes}: "
                "they must have the same."
            )
        else:
            fits = tf.math.is_finite(labels) & (labels >= 0)
            words = "One-hot and soft labels must be finite and >= 0, got values from"
            self._require(fits, words, labels)
            self.labels = tf.where(fits, labels, tf.zeros_like(labels))

    def require_logits(self, owner: str, outputs: tf.Tensor) -> None:
        """Refuses class scores `[R, C]` that are probabilities."""
        words = (
            f"The {owner} returns probabilities, and logits are needed: build it without softmax, "
            "or give their logarithms, got values from"
        )
        too_few = tf.shape(outputs)[0] < 2  # one row of logits may sum to 1 by chance
        self._require(~are_probabilities(outputs) | too_few, words, outputs)

    def _require(self, fits: tf.Tensor, words: str, values: tf.Tensor) -> None:
        fits = tf.reduce_all(fits)
        found = [words, tf.reduce_min(values), "to", tf.reduce_max(values)]
        self._checks.append(fits)
        if not tf.executing_eagerly():
            self._assertions.append(tf.debugging.Assert(fits, found))
        elif not fits:
            sentence = " ".join(map(str, (words, found[1].numpy(), "to", found[3].numpy())))
            raise tf.errors.InvalidArgumentError(None, None, f"{sentence}.")

    def nan_if_broken(self, loss: tf.Tensor) -> tf.Tensor:
        """The loss, or NaN without a gradient where a check failed."""
        return tf.where(tf.reduce_all(self._checks), loss, float("nan"))

    def checked(self, tensors: Any) -> Any:
        """The tensors, not before all assertions have held."""
        with tf.control_dependencies(self._assertions):
            return tf.nest.map_structure(tf.identity, tensors)


def fed_everywhere(images: tf.Tensor, student: keras.Model, training: bool) -> tf.Tensor:
    """The images, not before every replica has some, where a replica without any would fail."""
    if num_replicas() == 1:
        return images
    if training and preflight.per_replica_batch_norm(student):
        message = (
            "A replica got no image of this batch, and batch normalisation of nothing is NaN: use "
            "drop_remainder=True, or build the student with synchronized_batch_norm=True."
        )
    elif preflight.convolves(student) and not _convolves_nothing(student.compute_dtype):
        message = (
            "A replica got no image of this batch, and a convolution of nothing fails in "
            "TensorFlow on this device: use drop_remainder=True, or a batch size that leaves an "
            "image for each replica."
        )
    else:
        return images
    fed = all_sum(tf.cast(tf.shape(images)[0] > 0, tf.int32))
    with tf.control_dependencies([tf.debugging.Assert(tf.equal(fed, num_replicas()), [message])]):
        return tf.identity(images)


@functools.cache
def _convolves_nothing(dtype: str) -> bool:
    """Whether a convolution of no image has the right shape; with oneDNN (TensorFlow 2.21) not."""
    with tf.init_scope():
        kernel, images = tf.zeros([1, 1, 1, 2], dtype), tf.zeros([0, 1, 1, 1], dtype)
        return tf.nn.conv2d(images, kernel, 1, "VALID").shape[-1] == 2


@contextlib.contextmanager
def plain_sentences(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """While it lasts, an assertion that fails in a graph says its sentence and no more.

    TensorFlow puts it at the end of a page of places in the code. So does a worker that is lost.
    """
    try:
        with lost_workers_told(strategy):
            yield
    except tf.errors.InvalidArgumentError as error:
        found = re.search(r"assertion failed: \[(.+)\]$", error.message, re.MULTILINE)
        if found is None:
            raise
        sentence = found[1].replace("] [", " ").removesuffix(".")
        raise tf.errors.InvalidArgumentError(None, None, f"{sentence}.") from None
