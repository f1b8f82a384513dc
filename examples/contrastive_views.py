"""Two strongly distorted views of each image: what contrastive pretraining of an encoder takes."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

import keras_ssd as ssd

_LUMA = (0.299, 0.587, 0.114)


@keras.saving.register_keras_serializable(package="keras_ssd_examples")
class Distorted(ssd.views.Views):
    """Two views of each image, each with its own window, mirroring, colours and greyness.

    Drawn from the seed of the step and the place in the global batch, as all views are.

    Args:
        smallest_area: Share of the image, in (0, 1], that a window holds at least.

    Source: Chen et al. 2020 (SimCLR, arXiv:2002.05709), appendix A, without blur and with weaker
    colours, as usual for images of 32x32 pixels.
    """

    num_views = 2
    num_draws = 24

    def __init__(self, smallest_area: float = 0.2) -> None:
        super().__init__(flip=True, padding=0, pad_value=0)
        self.smallest_area = smallest_area

    def apply(self, images: tf.Tensor, draws: tf.Tensor | None = None) -> tf.Tensor:
        """From images `[B, ...]` to rows `[2 * B, ...]`; without draws each image twice."""
        rows = tf.repeat(images, 2, axis=0)
        if draws is None:
            return rows
        draws = tf.reshape(draws, [-1, 12])
        values = _recoloured(self._windows(rows, draws[:, :5]), draws[:, 5:])
        return tf.cast(tf.round(tf.clip_by_value(values, 0, 255)), images.dtype)

    def _windows(self, rows: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
        """A window of each row, between 3:4 and 4:3, resized; half of them mirrored."""
        area = self.smallest_area + (1 - self.smallest_area) * draws[:, 0]
        shape = tf.exp((2 * draws[:, 1] - 1) * tf.math.log(4 / 3))
        height = tf.minimum(tf.sqrt(area / shape), 1.0)
        width = tf.minimum(tf.sqrt(area * shape), 1.0)
        top, left = draws[:, 2] * (1 - height), draws[:, 3] * (1 - width)
        mirrored = draws[:, 4] < 0.5
        sides = tf.where(mirrored, left + width, left), tf.where(mirrored, left, left + width)
        boxes = tf.stack([top, sides[0], top + height, sides[1]], axis=1)
        values = tf.cast(rows, tf.float32)
        return tf.image.crop_and_resize(values, boxes, tf.range(tf.shape(rows)[0]), rows.shape[1:3])

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"smallest_area": self.smallest_area}


def _recoloured(rows: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
    """Brightness, contrast and saturation by up to 40 %, channels by 20 %, every fifth row grey."""
    jitter = 2 * draws[:, None, None, :] - 1
    rows = rows * (1 + 0.4 * jitter[..., 0:1])
    mean = tf.reduce_mean(_grey(rows), [1, 2], keepdims=True)
    rows = mean + (rows - mean) * (1 + 0.4 * jitter[..., 1:2])
    rows = _grey(rows) + (rows - _grey(rows)) * (1 + 0.4 * jitter[..., 2:3])
    rows = rows * (1 + 0.2 * jitter[..., 3:6])
    return tf.where(draws[:, None, None, 6:7] < 0.2, _grey(rows), rows)


def _grey(rows: tf.Tensor) -> tf.Tensor:
    if rows.shape[-1] == 1:
        return rows
    return tf.reduce_sum(rows * tf.constant(_LUMA), axis=-1, keepdims=True)
