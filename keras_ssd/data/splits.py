"""What `load` returns: the data sets and what is known of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from keras_ssd.data.few_shot import stratified_subset
from keras_ssd.data.images import Images
from keras_ssd.data.label_noise import symmetric_noise


@dataclass(frozen=True)
class DatasetInfo:
    """What a network and a report need to know of a data set.

    Attributes:
        name: The name given to `load`.
        class_names: One name a class, in the order of the labels.
        input_shape: Height, width and channels of an image.
        mean: Mean of each channel, of values scaled to 0..1.
        std: Standard deviation of each channel, of values scaled to 0..1.
        counts: Images in `train`, `validation` and `test`.
        fingerprint: SHA-256 of the images and labels as loaded, before anything is held out or
            changed; of a streamed set that of its name, version and sizes; of a folder beyond
            memory that of the names and sizes of its files and of their labels.
        changes: What was done to the training images since, in order, such as
            `("few_shot(0.25, seed=0)", "label_noise(0.2, seed=0)")`.
    """

    name: str
    class_names: tuple[str, ...]
    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    counts: Mapping[str, int]
    fingerprint: str
    changes: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)


@dataclass(frozen=True, eq=False)
class Splits:
    """Data sets of (uint8 images `[B, H, W, C]`, int32 labels `[B]`), and what they hold.

    Attributes:
        train: Shuffled anew each epoch (`callbacks.FollowEpoch`), full batches only; its length
            `len(train)` is the number of steps in an epoch.
        validation: Held out of the training images, in fixed order; None for `validation=0`.
        test: In fixed order.
        info: Names, shape, constants to normalise by, counts, fingerprint and changes.
    """

    train: tf.data.Dataset
    validation: tf.data.Dataset | None
    test: tf.data.Dataset
    info: DatasetInfo
    _images: Images = field(repr=False)
    _rows: np.ndarray = field(repr=False)  # which of the images train
    _batch_size: int = field(repr=False)
    _seed: int = field(repr=False)

    def few_shot(self, fraction: float, seed: int = 0) -> Splits:
        """The same data sets with fewer training images, the same share of each class.

        Validation and test stay as they are, and so do `info.mean` and `info.std`. An epoch has
        fewer steps. The choice depends on the labels, `fraction` and `seed` alone, so not on the
        seed of `load` where nothing is held out (`validation=0`); after `label_noise` it goes by
        the noisy labels. Labels of a streamed set are read from all its files first.

        Args:
            fraction: Share in (0, 1] of the images in `train`; 1 keeps all.
            seed: Integer in [0, 2^32).

        Returns:
            New `Splits` on the same images.

        Raises:
            ValueError: If an argument is out of range, a class would be left without an image, or
                less than one batch would be left.

        Source: Yang et al. 2021, arXiv:2107.13715 (fractions 0.25, 0.5 and 0.75 of CIFAR-100, seed
        0). Their subset is this choice in the order of the original file; TFDS stores the images in
        another order, so that other images are chosen.
        """
        fraction, seed = _plain(fraction), _plain(seed)
        kept = stratified_subset(self._images.labels[self._rows], fraction, seed)
        if len(kept) < self._batch_size:
            raise ValueError(
                f"`fraction`={fraction} keeps {len(kept)} training images, less than one batch of "
                f"{self._batch_size}: give a larger fraction, or load with a smaller `batch_size`."
            )
        return self._with(self._images, self._rows[kept], f"few_shot({fraction}, {seed=})")

    def label_noise(self, rate: float, seed: int = 0) -> Splits:
        """The same data sets with some wrong training labels (symmetric noise).

        Exactly `round(rate * n)` of the n training images get another class, drawn uniformly from
        the other C - 1; validation and test keep the labels they have. Where the classes are drawn
        from all C, as other code does, a rate of r leaves r * (C - 1) / C of the labels wrong. A
        second call changes the noisy labels, with one seed those of the same images.
        Labels of a streamed set are read from all its files first.

        Args:
            rate: Share in [0, 1] of the images in `train`.
            seed: Integer in [0, 2^32): chooses the images and what their labels become.

        Returns:
            New `Splits` on the same images.

        Raises:
            ValueError: If an argument is out of range, or a training image has no label.
        """
        rate, seed = _plain(rate), _plain(seed)
        labels = self._images.labels.copy()
        labels[self._rows] = symmetric_noise(labels[self._rows], self.info.num_classes, rate, seed)
        images = self._images.relabeled(labels)
        return self._with(images, self._rows, f"label_noise({rate}, {seed=})")

    def _with(self, images: Images, rows: np.ndarray, change: str) -> Splits:
        info = dataclasses.replace(
            self.info,
            counts={**self.info.counts, "train": len(rows)},
            changes=(*self.info.changes, change),
        )
        train = images.shuffled(rows, self._batch_size, self._seed)
        return dataclasses.replace(self, train=train, info=info, _images=images, _rows=rows)


def _plain(number: Any) -> Any:
    """A NumPy number as one of Python, so that what is noted in `changes` gives the same again."""
    return number.item() if isinstance(number, np.generic) else number
