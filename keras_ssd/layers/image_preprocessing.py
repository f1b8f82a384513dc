"""Images as a foundation model saw them: bicubic resize of 8-bit images, mean and std."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_ssd.arguments import is_integer, is_number

_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_FIXED_POINT = 2.0**22  # Pillow's weights are multiples of its inverse
_BFLOAT16_INTEGERS = 8  # bits: integers up to 2^8 are exact


@keras.saving.register_keras_serializable(package="keras_ssd")
class ImagePreprocessing(keras.layers.Layer):
    """Resizes raw images as Pillow does and normalises them, for a frozen encoder.

    Takes images `[rows, height, width, channels]`, 0..255, of integers or floats, and gives float32
    `[rows, *image_size, channels]`, whatever the dtype policy: `(resized / 255 - mean) / std`.

    The resize is the bicubic one (a = -0.5) that published weights were trained with: of 8-bit
    images, first the width, then the height, the result of each rounded and clipped to 0..255, and
    antialiased where it shrinks. It gives the pixels of Pillow 12 and older bit for bit where
    float32 is multiplied in float32; in TensorFloat-32 and in a TPU's bfloat16 passes, too, but for
    the rare pixel that lies within about 1e-3 of a half and may round the other way. (Pillow 13
    begins with the height where that is less work, and differs by up to about ten grey levels
    then.) It is two products with constant matrices, so that it runs under XLA and on a TPU. A side
    that has its size already is left alone, and images of the right size are not rounded; others,
    if floats, are rounded to whole grey levels first, as an 8-bit image holds them.

    Args:
        image_size: Height and width of the outputs, or one number for both.
        mean: A number a channel in the scale 0..1. Default: that of CLIP.
        std: The same, > 0. Default: that of CLIP. Both None: the outputs stay in 0..255.
        **kwargs: What every Keras layer takes.

    Raises:
        TypeError: If `image_size`, `mean` or `std` is of the wrong kind.
        ValueError: If one is out of its range, `mean` and `std` differ in length, or, when images
            come, they are none, their channels are not those of `mean`, or their size is not known.

    Source: Pillow, `Image.resize(size, Image.BICUBIC)` (src/libImaging/Resample.c); constants:
    Radford et al. 2021, arXiv:2103.00020, the authors' code.
    """

    def __init__(
        self,
        image_size: int | Sequence[int],
        mean: Sequence[float] | None = _CLIP_MEAN,
        std: Sequence[float] | None = _CLIP_STD,
        **kwargs: Any,
    ) -> None:
        super().__init__(autocast=False, **kwargs)  # pixels are not halved
        self.image_size = _checked_size(image_size)
        self.mean, self.std = _checked_statistics(mean, std)

    def __call__(self, images: Any, *args: Any, **kwargs: Any) -> Any:
        """As every Keras layer."""
        self._check_shape(np.shape(images))  # not in `call`, whose errors Keras makes a page of
        return super().__call__(images, *args, **kwargs)

    def call(self, images: tf.Tensor) -> tf.Tensor:
        """Resized and normalised images `[rows, *image_size, channels]`, float32."""
        size = tuple(images.shape)[1:3]
        if None in size:
            raise ValueError(
                f"The size of images must be known to resize them, got {tuple(images.shape)}: "
                "batch images of one size, or give it with `tf.ensure_shape`."
            )
        integers = images.dtype.is_integer
        images = tf.cast(images, tf.float32)
        if size != self.image_size:
            images = images if integers else _clipped(tf.round(images))
            images = _resized_height(_resized_width(images, self.image_size[1]), self.image_size[0])
        if self.mean is None:
            return images
        mean, std = np.array(self.mean), np.array(self.std)
        return images * (1 / (255 * std)).astype("float32") - (mean / std).astype("float32")

    def compute_output_spec(self, images: keras.KerasTensor) -> keras.KerasTensor:
        """Shape and precision of the outputs."""
        return keras.KerasTensor(self.compute_output_shape(images.shape), "float32")

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        """The shape of the outputs."""
        self._check_shape(input_shape)
        channels = input_shape[-1] if self.mean is None else len(self.mean)
        return (input_shape[0], *self.image_size, channels)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        own = {"image_size": self.image_size, "mean": self.mean, "std": self.std}
        return {**super().get_config(), **own}

    def _check_shape(self, shape: Sequence[int | None]) -> None:
        if len(shape) != 4:
            raise ValueError(
                f"Images must be [rows, height, width, channels], got the shape {tuple(shape)}."
            )
        if self.mean is not None and shape[-1] not in (None, len(self.mean)):
            raise ValueError(
                f"`mean` and `std` are those of {len(self.mean)} channels, and the images have "
                f"{shape[-1]}: give one number a channel, or make the images of "
                f"{len(self.mean)} channels."
            )


def _checked_size(image_size: Any) -> tuple[int, int]:
    sides = [image_size] * 2 if is_integer(image_size) else image_size
    if not isinstance(sides, (list, tuple)) or not all(map(is_integer, sides)):
        raise TypeError(f"`image_size` must be an integer or a pair of them, got {image_size!r}.")
    if len(sides) != 2 or min(sides) < 1:
        raise ValueError(
            f"`image_size` must be one integer > 0 or a pair (height, width), got {image_size!r}."
        )
    return int(sides[0]), int(sides[1])


def _checked_statistics(mean: Any, std: Any) -> tuple[list[float] | None, list[float] | None]:
    if mean is None and std is None:
        return None, None
    for name, values in (("mean", mean), ("std", std)):
        if np.ndim(values) != 1 or not all(map(is_number, values)):
            raise TypeError(
                f"`{name}` must be a number for each channel (or `mean` and `std` both None: the "
                f"images stay in 0..255), got {values!r}."
            )
        if not np.all(np.isfinite(values)):
            raise ValueError(f"`{name}` must be finite, got {values!r}.")
    if len(mean) != len(std) or len(mean) == 0 or min(std) <= 0:
        raise ValueError(
            f"`std` must be a number > 0 for each of the {len(mean)} of `mean`, got {std!r}."
        )
    return [float(value) for value in mean], [float(value) for value in std]


def _resized_width(images: tf.Tensor, width: int) -> tf.Tensor:
    """`[rows, height, width, channels]` of whole grey levels, likewise."""
    _, height, old, channels = images.shape
    if old == width:
        return images
    rows = keras.ops.shape(images)[0]
    lines = tf.reshape(tf.transpose(images, [0, 1, 3, 2]), [rows * height * channels, old])
    coarse, fine = _split_weights(old, width)
    lines = _rounded(tf.matmul(lines, coarse.T), tf.matmul(lines, fine.T))
    return tf.transpose(tf.reshape(lines, [rows, height, channels, width]), [0, 1, 3, 2])


def _resized_height(images: tf.Tensor, height: int) -> tf.Tensor:
    """`[rows, height, width, channels]` of whole grey levels, likewise."""
    _, old, width, channels = images.shape
    if old == height:
        return images
    rows = keras.ops.shape(images)[0]
    columns = tf.reshape(images, [rows, old, width * channels])
    coarse, fine = _split_weights(old, height)
    columns = _rounded(tf.matmul(coarse, columns), tf.matmul(fine, columns))
    return tf.reshape(columns, [rows, height, width, channels])


def _rounded(coarse: tf.Tensor, fine: tf.Tensor) -> tf.Tensor:
    """The whole grey level next to `coarse + fine`, a half rounded up.

    Their sum has more digits than float32 holds, but neither has: the whole part of the first is
    taken off before they are added.
    """
    whole = tf.floor(coarse)
    return _clipped(whole + tf.floor((coarse - whole) + (fine + 0.5)))


def _clipped(levels: tf.Tensor) -> tf.Tensor:
    return tf.clip_by_value(levels, 0.0, 255.0)


@functools.lru_cache
def _split_weights(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """The weights of a resize as the sum of two float32 matrices `[new, old]`.

    The first is exact in bfloat16, and what is left is at most 1/256 of the largest weight: so the
    products with 8-bit pixels and their sums are exact in float32, and as good as exact where a
    device multiplies float32 with fewer bits.
    """
    weights = np.floor(_weights(old, new) * _FIXED_POINT + 0.5) / _FIXED_POINT
    unit = 2.0 ** (math.ceil(math.log2(np.abs(weights).max())) - _BFLOAT16_INTEGERS)
    coarse = np.round(weights / unit) * unit
    return coarse.astype("float32"), (weights - coarse).astype("float32")


def _weights(old: int, new: int) -> np.ndarray:
    """What each of `new` pixels takes of each of `old` ones: float64 `[new, old]`, rows sum to 1.

    Pixel i lies at (i + 0.5) * old / new. Where the image shrinks the kernel is as much wider.
    """
    scale = old / new
    stretch = max(scale, 1.0)
    centers = (np.arange(new)[:, None] + 0.5) * scale
    pixels = np.arange(old)
    weights = _cubic((pixels + 0.5 - centers) / stretch)
    return weights / weights.sum(axis=1, keepdims=True)


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic kernel with a = -0.5."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
