"""`load`: a data set by name, as batches of raw images."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_ssd.data.images import Images
from keras_ssd.data.sources import Source, open_source, split_rows

Constants = tuple[tuple[float, ...], tuple[float, ...]]

STATISTICS_IMAGES = 50_000  # at most so many training images give the mean and deviation

# CIFAR-100 as in the code of SSKD and CRD (dataset/cifar100.py); CIFAR-10: population values of its
# 50,000 training images, as in kuangliu/pytorch-cifar but for its deviation, which averages that of
# single images; ImageNet as in torchvision.
_CONSTANTS: dict[str, Constants] = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "imagenet2012": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


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
        fingerprint: SHA-256 of the images and labels as loaded, before anything is held out; of a
            streamed set that of its name, version and sizes.
    """

    name: str
    class_names: tuple[str, ...]
    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    counts: Mapping[str, int]
    fingerprint: str

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)


class Splits(NamedTuple):
    """Data sets of (uint8 images `[B, H, W, C]`, int32 labels `[B]`), and what they hold.

    Attributes:
        train: Shuffled anew each epoch (`callbacks.FollowEpoch`), full batches only; its length
            `len(train)` is the number of steps in an epoch.
        validation: Held out of the training images, in fixed order; None for `validation=0`.
        test: In fixed order.
        info: Names, shape, constants to normalise by, counts and fingerprint.
    """

    train: tf.data.Dataset
    validation: tf.data.Dataset | None
    test: tf.data.Dataset
    info: DatasetInfo


def load(
    name: str,
    batch_size: int,
    validation: float = 0.1,
    seed: int = 0,
    *,
    data_dir: str | os.PathLike | None = None,
    image_size: tuple[int, int] | None = None,
    download: bool = True,
) -> Splits:
    """Loads an image classification set as batches of raw images.

    Sets of up to 4 GiB of decoded images are held in memory once, larger ones are streamed from
    their files. Images stay uint8; networks built with `info` normalise them. Mean and deviation
    are the published ones for CIFAR and ImageNet; otherwise they are computed on the training
    images (the first 50,000 in the order of the files) and printed.

    The validation images are a seeded random choice (not stratified) of the split `train`, also
    where the set has a validation split of its own. The test images are the split `test`, else the
    split `validation`; a set with neither (`digits`) gives a third of its images, the same for
    every `seed`.

    Args:
        name: `digits` (scikit-learn: 1,797 handwritten digits, 3 equal channels, enlarged to
            16x16) or a set of TensorFlow Datasets; `names()` lists some.
        batch_size: Images in a global batch, from 1 to the number of training images.
        validation: Share of the training images held out (a float in [0, 1)) or their number (an
            integer); 0 for none.
        seed: Integer in [0, 2^32): chooses the validation images and, with the epoch, the order of
            training.
        data_dir: The folder where TFDS keeps its data, or one that holds it as `tfds`; None for
            TFDS' own. What is prepared there is used without a network.
        image_size: Height and width that images are resized to (bilinear, antialiased, not keeping
            the aspect); needed where a set has images of several sizes.
        download: Whether a set that is not there is downloaded and prepared.

    Returns:
        `Splits(train, validation, test, info)`.

    Raises:
        ValueError: If an argument is out of range, a split would be empty, there is no such set,
            it is not there and `download` is False, or it has no 8-bit images or no labels.
        OSError: If the download fails.
        ImportError: If scikit-learn, which holds `digits`, is not installed.
    """
    _check(batch_size, validation)
    source = open_source(name, data_dir, image_size, download)
    train, held_out = _hold_out(source.train_rows, validation, seed)
    if batch_size > len(train):
        raise ValueError(
            f"`batch_size` must be at most the {len(train)} training images of {name!r}, got "
            f"{batch_size}: training takes full batches only."
        )
    mean, std = _CONSTANTS.get(name.split(":")[0]) or _computed(source, train)
    info = DatasetInfo(
        name=name,
        class_names=source.class_names,
        input_shape=source.input_shape,
        mean=mean,
        std=std,
        counts={"train": len(train), "validation": len(held_out), "test": len(source.test_rows)},
        fingerprint=source.fingerprint,
    )
    return Splits(
        train=source.train.shuffled(train, batch_size, seed),
        validation=source.train.batches(held_out, batch_size) if len(held_out) else None,
        test=source.test.batches(source.test_rows, batch_size),
        info=info,
    )


def _check(batch_size: int, validation: float) -> None:
    if not isinstance(batch_size, int | np.integer) or batch_size < 1:
        raise ValueError(f"`batch_size` must be an integer >= 1, got {batch_size!r}.")
    is_count = isinstance(validation, int | np.integer)
    is_number = isinstance(validation, int | float | np.number) and not isinstance(validation, bool)
    if not is_number or not (validation >= 0 if is_count else 0 <= validation < 1):
        raise ValueError(
            f"`validation` must be a share in [0, 1) or a number of images, got {validation!r}."
        )


def _hold_out(rows: np.ndarray, validation: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    is_count = isinstance(validation, int | np.integer)
    count = int(validation) if is_count else round(validation * len(rows))
    if count >= len(rows) or (count == 0 and validation > 0):
        raise ValueError(
            f"`validation`={validation} holds out {count} of {len(rows)} training images: neither "
            "split may be empty (0 turns validation off)."
        )
    train, held_out = split_rows(len(rows), count, seed)
    return rows[train], rows[held_out]


def _computed(source: Source, rows: np.ndarray) -> Constants:
    rows = rows[:STATISTICS_IMAGES]
    mean, std = channel_statistics(source.train, rows)
    print(f"{source.name}: mean {mean} and std {std} computed on {len(rows):,} training images.")
    return mean, std


def channel_statistics(images: Images, rows: np.ndarray) -> Constants:
    """Mean and population standard deviation of each channel, of values scaled to 0..1.

    Sums are integers and so exact; the results are rounded to 4 digits.
    """
    pixels, total, squares = 0, np.zeros((), np.int64), np.zeros((), np.int64)
    for batch, _ in images.batches(rows, 512).as_numpy_iterator():
        batch = batch.astype(np.int64)
        pixels += batch[..., 0].size
        total = total + batch.sum(axis=(0, 1, 2))
        squares = squares + np.square(batch).sum(axis=(0, 1, 2))
    mean = total / pixels
    std = np.sqrt(squares / pixels - mean**2)
    if not std.all():
        raise ValueError("A channel has the same value in every image: nothing to normalise by.")
    return tuple((mean / 255).round(4).tolist()), tuple((std / 255).round(4).tolist())
