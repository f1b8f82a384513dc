"""What `fit` hands to a step, brought into one form."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from keras_ssd.losses import at_least_float32
from keras_ssd.teacher import named

_NO_CLASS = tf.int32.min


@dataclasses.dataclass(frozen=True)
class Inputs:
    """One replica's part of a batch.

    Attributes:
        images: `[B, height, width, channels]`.
        labels: int32 `[B]`, or floats `[B, C]`, or None.
        sample_weight: Floats `[B]`, or None.
        index: Integers `[B]`, or None.
        teacher: Outputs of a teacher that ran before, `[B, ...]` each (`[B, V, ...]` with V > 1
            views an image), or None.
    """

    images: tf.Tensor
    labels: tf.Tensor | None
    sample_weight: tf.Tensor | None
    index: tf.Tensor | None
    teacher: Mapping[str, tf.Tensor] | None

    @classmethod
    def of(cls, data: Any) -> Inputs:
        """Reads `x`, `(x, y)` or `(x, y, sample_weight)`; x may be a dict with `image`."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        x = tf.nest.map_structure(tf.convert_to_tensor, x)  # `train_on_batch` hands arrays on
        rest = x if isinstance(x, Mapping) else {}
        images = images_of(x)
        return cls(
            images=images,
            labels=None if y is None else _labels(y),
            sample_weight=None if sample_weight is None else _weights(sample_weight),
            index=rest.get("index"),
            teacher=named(rest["teacher"], "stored teacher") if "teacher" in rest else None,
        )

    def teacher_rows(self, num_views: int) -> dict[str, tf.Tensor]:
        """The stored teacher outputs as rows `[B * V, ...]`."""
        rows = {}
        for name, tensor in (self.teacher or {}).items():
            if num_views > 1 and (tensor.shape.rank < 3 or tensor.shape[1] != num_views):
                raise ValueError(
                    f"The stored teacher output {name!r} must be [images, {num_views}, ...], one "
                    f"row a view, got shape {tuple(tensor.shape)}: store what the teacher says of "
                    "every view, or use `views=Plain()`."
                )
            joined = num_views > 1
            rows[name] = tf.reshape(tensor, [-1, *tensor.shape[2:]]) if joined else tensor
        return rows


def images_of(x: Any) -> tf.Tensor:
    """The images of an `x`, which is a tensor or a dict with `image`."""
    if isinstance(x, Mapping):
        if "image" not in x:
            raise ValueError(f"A dict of inputs must hold `image`, got the keys {sorted(x)}.")
        unknown = sorted(set(x) - {"image", "index", "teacher"})
        if unknown:
            raise ValueError(
                f"A dict of inputs holds `image`, `index` and `teacher`, got {unknown[0]!r}, too: "
                "labels are `y`, the second of a pair (`as_supervised=True` in TFDS)."
            )
        x = x["image"]
    if not hasattr(x, "shape"):
        raise ValueError(f"`x` must be images or a dict with `image`, got a {type(x).__name__}.")
    shape = tf.TensorShape(x.shape)
    if shape.rank != 4:
        raise ValueError(f"Images must be [batch, height, width, channels], got shape {shape}.")
    return x


def _labels(y: Any) -> tf.Tensor:
    labels = tf.convert_to_tensor(y)
    if labels.shape.rank == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.shape.rank == 1:
        whole = tf.cast(labels, tf.int32)
        # A float that is no class goes on as a label that is out of range.
        return tf.where(tf.cast(whole, labels.dtype) == labels, whole, _NO_CLASS)
    if labels.shape.rank == 2:
        return _floats(labels)
    raise ValueError(
        "Labels must be integers [batch] or one-hot rows [batch, classes], got shape "
        f"{labels.shape}."
    )


def _weights(sample_weight: Any) -> tf.Tensor:
    weights = _floats(tf.convert_to_tensor(sample_weight))
    if weights.shape.rank == 2 and weights.shape[1] == 1:
        weights = weights[:, 0]
    if weights.shape.rank != 1:
        raise ValueError(f"`sample_weight` must be one number an image, got shape {weights.shape}.")
    return weights


def _floats(tensor: tf.Tensor) -> tf.Tensor:
    return at_least_float32(tensor if tensor.dtype.is_floating else tf.cast(tensor, tf.float32))


def with_known_size(images: tf.Tensor, student: keras.Model) -> tf.Tensor:
    """The images with the size that the student's input declares, where the data leaves it open."""
    size = getattr(student, "input_shape", None)
    if images.shape[1:].is_fully_defined() or not isinstance(size, tuple):
        return images
    return tf.ensure_shape(images, [None, *size[1:]])
