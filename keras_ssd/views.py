"""Views: from B raw images to V*B rows, on the device, inside the training step."""

from __future__ import annotations

import abc
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_ssd.collectives import replica_rows, row_count


class Views(abc.ABC):
    """What makes views of images: replayed exactly from a seed, on any number of replicas.

    Args:
        flip: Mirror images left-right at random.
        padding: Pixels, at least 0, that are added on each side before a crop.
        pad_value: What black is: a number, or one a channel.

    Attributes:
        num_views: V, the number of rows an image gives.
        num_draws: Random numbers that the views of an image are made of; 0 where none are.
    """

    num_views: int
    num_draws: int

    def __init__(self, *, flip: bool, padding: int, pad_value: float | Sequence[float]) -> None:
        if isinstance(padding, bool) or not isinstance(padding, int) or padding < 0:
            raise ValueError(f"`padding` must be a number of pixels >= 0, got {padding!r}.")
        if np.ndim(pad_value) > 1 or not np.issubdtype(np.asarray(pad_value).dtype, np.number):
            raise ValueError(f"`pad_value` must be a number or one a channel, got {pad_value!r}.")
        self.flip = _check_switch("flip", flip)
        self.padding = padding
        self.pad_value = np.asarray(pad_value).tolist()  # as it is written to a file

    def __call__(self, images: tf.Tensor, seed: tf.Tensor | None = None) -> tf.Tensor:
        """Makes rows of the images of a replica.

        Args:
            images: `[B, height, width, channels]`, any dtype; it is kept.
            seed: Two integers; the same seed gives the same views, an image the same ones wherever
                it is in the global batch. None: no augmentation.

        Returns:
            `[B * V, height, width, channels]`; row `V * i + v` is view v of image i.

        Raises:
            ValueError: If the views do not fit the images.
        """
        if seed is None or not self.num_draws:
            return self.apply(images)
        # Drawn for the global batch, so that an image gets the same ones on any number of replicas.
        start, total = replica_rows(row_count(images))
        return self.apply(images, self.draw(total, seed)[start : start + row_count(images)])

    @abc.abstractmethod
    def apply(self, images: tf.Tensor, draws: tf.Tensor | None = None) -> tf.Tensor:
        """Makes rows of images and of the random numbers of each.

        Args:
            images: `[B, height, width, channels]`, any dtype; it is kept.
            draws: Float32 `[B, num_draws]` in [0, 1), as `draw` gives them. None: no augmentation.

        Returns:
            `[B * V, height, width, channels]`; row `V * i + v` is view v of image i.
        """

    def draw(self, count: tf.Tensor | int, seed: tf.Tensor | tuple[int, int]) -> tf.Tensor:
        """Uniform numbers for images, the same ones on every machine.

        Args:
            count: The number of images.
            seed: Two integers.

        Returns:
            Float32 `[count, num_draws]` in [0, 1).
        """
        # TensorFlow 2.21 draws other floats under XLA (its issue 121243), but the same integers.
        bits = tf.random.stateless_uniform(
            [count, self.num_draws], seed, minval=None, maxval=None, dtype=tf.uint32, alg="philox"
        )
        return tf.cast(tf.bitwise.right_shift(bits, tf.constant(8, tf.uint32)), tf.float32) / 2**24

    @property
    def fingerprint(self) -> str:
        """What tells these views from others: 16 digits of a digest of class and arguments."""
        identity = [keras.saving.get_registered_name(type(self)), self.get_config()]
        text = json.dumps(identity, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"flip": self.flip, "padding": self.padding, "pad_value": self.pad_value}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Views:
        """The views of a `get_config`."""
        return cls(**config)

    def _crop(self, images: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
        """Pads every image and cuts its own window out, as large as the image was."""
        corners = tf.cast(draws * (2 * self.padding + 1), tf.int32)
        return crop_at(images, corners, self.padding, self.pad_value)


@keras.saving.register_keras_serializable(package="keras_ssd")
class Plain(Views):
    """One view of each image: the image, with the ordinary augmentation if asked for.

    Args:
        crop: Pad by `padding` pixels on each side and cut a window of the old size at a random
            place.
        flip: Mirror an image left-right with probability 1/2.
        padding: Pixels, at least 0.
        pad_value: What black is: a number, or one a channel. 0 for raw images.

    Source: the usual CIFAR augmentation; Xu et al. 2020 (arXiv:2006.07114), teacher training.
    """

    num_views = 1

    def __init__(
        self,
        crop: bool = False,
        *,
        flip: bool = False,
        padding: int = 4,
        pad_value: float | Sequence[float] = 0,
    ) -> None:
        super().__init__(flip=flip, padding=padding, pad_value=pad_value)
        self.crop = _check_switch("crop", crop)
        # the coin of the mirror, row and column of the window
        self.num_draws = 3 if self.crop or self.flip else 0

    def apply(self, images: tf.Tensor, draws: tf.Tensor | None = None) -> tf.Tensor:
        """Augments images.

        Args:
            images: `[B, height, width, channels]`, any dtype; it is kept.
            draws: Float32 `[B, num_draws]` in [0, 1). None: no augmentation.

        Returns:
            `[B, height, width, channels]`.

        Raises:
            ValueError: If `pad_value` does not fit the images.
        """
        if draws is None:
            return images
        if self.flip:
            images = _flip(images, draws[:, 0])
        return self._crop(images, draws[:, 1:]) if self.crop else images

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"crop": self.crop, **super().get_config()}


@keras.saving.register_keras_serializable(package="keras_ssd")
class Rotations(Views):
    """Four views of each image: view v is turned by v quarter turns counter-clockwise.

    Args:
        crop: `"each"`: every view is padded and cropped by itself, after the turn (SSKD), so that
            view 2 is in general not the exact half turn of view 0. `"shared"`: one crop an image,
            before the turn (HSAKD). None: no crop.
        flip: Mirror an image left-right with probability 1/2 before it is turned.
        padding: Pixels, at least 0.
        pad_value: What black is: a number, or one a channel. 0 for raw images.

    Source: Xu et al. 2020 (arXiv:2006.07114), section 3, and its code; Yang et al. 2021
    (arXiv:2107.13715) for the shared crop. The flip coin of SSKD's released loader repeats every
    epoch by accident; this one does not.
    """

    num_views = 4

    def __init__(
        self,
        crop: str | None = "each",
        *,
        flip: bool = True,
        padding: int = 4,
        pad_value: float | Sequence[float] = 0,
    ) -> None:
        super().__init__(flip=flip, padding=padding, pad_value=pad_value)
        if crop not in ("each", "shared", None):
            raise ValueError(f'`crop` must be "each", "shared" or None, got {crop!r}.')
        self.crop = crop
        # the coin of the mirror, row and column of each of four windows
        self.num_draws = 9 if self.crop or self.flip else 0

    def apply(self, images: tf.Tensor, draws: tf.Tensor | None = None) -> tf.Tensor:
        """Turns (and augments) images.

        Args:
            images: `[B, side, side, channels]`, any dtype; it is kept.
            draws: Float32 `[B, num_draws]` in [0, 1). None: no augmentation.

        Returns:
            `[4 * B, side, side, channels]`; row `4 * i + v` is view v of image i.

        Raises:
            ValueError: If the images are not square, or `pad_value` does not fit them.
        """
        height, width = images.shape[1:3]
        if height is None or height != width:
            raise ValueError(
                f"Rotations need square images of a known size, got {height} x {width}: crop or "
                "resize them in the input pipeline."
            )
        if draws is None:
            return _quarter_turns(images)
        if self.flip:
            images = _flip(images, draws[:, 0])
        if self.crop == "shared":
            images = self._crop(images, draws[:, 1:3])
        rows = _quarter_turns(images)
        if self.crop == "each":
            rows = self._crop(rows, tf.reshape(draws[:, 1:], [-1, 2]))
        return rows

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"crop": self.crop, **super().get_config()}


def _check_switch(name: str, value: bool) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"`{name}` must be True or False, got {value!r}.")
    return value


# Gathers, because TensorFlow reverses and transposes 8-bit images four times as slowly on a CPU.


def _flip(images: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
    columns = tf.range(tf.shape(images)[2])
    mirrored = tf.where(draws[:, None] < 0.5, columns[::-1], columns)
    return tf.gather(images, mirrored, axis=2, batch_dims=1)


def _quarter_turns(images: tf.Tensor) -> tf.Tensor:
    _, side, _, channels = images.shape
    places = np.arange(side * side).reshape([side, side])
    turned = np.concatenate([np.rot90(places, turns).ravel() for turns in range(4)])
    pixels = tf.reshape(images, [-1, side * side, channels])
    return tf.reshape(tf.gather(pixels, turned, axis=1), [-1, side, side, channels])


def crop_at(
    images: tf.Tensor, corners: tf.Tensor, padding: int, pad_value: float | Sequence[float]
) -> tf.Tensor:
    """Pads images and cuts a window of the old size out of each.

    Args:
        images: `[R, height, width, channels]`.
        corners: Integers `[R, 2]` in 0..2*padding: row and column of the window's upper left corner
            in the padded image.
        padding: Pixels on each side.
        pad_value: A number, or one a channel.

    Returns:
        `[R, height, width, channels]` in the images' dtype.

    Raises:
        ValueError: If the images' size is unknown, or `pad_value` does not fit them.
    """
    _, height, width, channels = images.shape
    if height is None or width is None:
        raise ValueError(
            f"Crops need images of a known size, got {height} x {width}: crop or resize them in "
            "the input pipeline."
        )
    _check_pad_value(pad_value, tf.as_dtype(images.dtype), channels)
    border = [[0, 0], [padding, padding], [padding, padding], [0, 0]]
    if isinstance(pad_value, Sequence):
        inside = tf.pad(tf.ones([1, height, width, 1], tf.bool), border)
        padded = tf.where(inside, tf.pad(images, border), tf.cast(pad_value, images.dtype))
    else:
        padded = tf.pad(images, border, constant_values=tf.cast(pad_value, images.dtype))
    rows = corners[:, :1] + tf.range(height)
    columns = corners[:, 1:] + tf.range(width)
    # Two batched gathers: clean under XLA, where a gather of slices is not.
    padded = tf.gather(padded, rows, axis=1, batch_dims=1)
    return tf.gather(padded, columns, axis=2, batch_dims=1)


def _check_pad_value(
    pad_value: float | Sequence[float], dtype: tf.DType, channels: int | None
) -> None:
    values = np.reshape(pad_value, [-1])
    if np.ndim(pad_value) and channels not in (None, len(values)):
        raise ValueError(f"`pad_value` must be a number or {channels} of them, got {pad_value!r}.")
    exact = dtype.is_floating or (values == np.round(values)).all()
    if not exact or values.min() < dtype.min or values.max() > dtype.max:
        raise ValueError(
            f"`pad_value` {pad_value!r} is no {dtype.name}: give black as it is in the images, "
            "0 in raw ones."
        )
