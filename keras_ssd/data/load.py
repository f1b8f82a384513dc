"""`load`: a data set by name, a folder of images or a manifest as batches of raw images."""

from __future__ import annotations

import os

import numpy as np

from keras_ssd.arguments import check_count, check_height_and_width, is_integer, is_number
from keras_ssd.data.folder_layout import listed
from keras_ssd.data.folders import folder_of, open_folder
from keras_ssd.data.images import Images, Streamed
from keras_ssd.data.mined import is_manifest, open_manifest
from keras_ssd.data.order import check_seed
from keras_ssd.data.sources import Source, open_source, split_rows
from keras_ssd.data.splits import DatasetInfo, Splits
from keras_ssd.data.training import Training

Constants = tuple[tuple[float, ...], tuple[float, ...]]

_VALIDATION = 0.1  # of the training images, unless they have no labels
STATISTICS_IMAGES = 50_000  # at most so many training images give the mean and deviation
_STATISTICS_BYTES = 2**25  # of pixels counted at once

# CIFAR-100 as in the code of SSKD and CRD (dataset/cifar100.py); CIFAR-10: population values of its
# 50,000 training images, as in kuangliu/pytorch-cifar but for its deviation, which averages that of
# single images; ImageNet as in torchvision.
_CONSTANTS: dict[str, Constants] = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "imagenet2012": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def load(
    name: str | os.PathLike,
    batch_size: int,
    validation: float | None = None,
    seed: int = 0,
    *,
    data_dir: str | os.PathLike | None = None,
    image_size: tuple[int, int] | None = None,
    download: bool = True,
) -> Splits:
    """Loads an image classification set, or mined images, as batches of raw images.

    Sets of up to 4 GiB of decoded images are held in memory once, larger ones are streamed from
    their files. Images stay uint8; networks built with `info` normalise them. Mean and deviation
    are the published ones for CIFAR and ImageNet; otherwise they are computed on the training
    images (the first 50,000 in the order of the files, of a folder a random choice) and printed.

    The validation images are a seeded random choice (not stratified) of the split `train`, also
    where the set has a validation split of its own; it is an error if they are all there is of a
    class (not looked for in a streamed set, whose labels would have to be read from all its files).
    The test images are the split `test`, else the split `validation`; a set with neither (`digits`)
    gives a third of its images, the same for every `seed`.

    A folder of images holds `train/CLASS/...` (or `training`) and `test/CLASS/...` (or `testing`,
    `validation`, `valid`, `val`), or `CLASS/...` alone, of which about a third of each class is the
    test split. What lies beside the splits is not used, which is printed. The names of the folders
    are those of the classes. JPEG, PNG, BMP and GIF files (the first frame) are found at any depth
    and become 3 channels: grey is repeated, alpha dropped; an orientation that a camera noted
    (EXIF) is not applied. Hidden files are passed over. Every image is decoded once here; what
    cannot be read is left out with a warning.

    A manifest (`data.mining.select`) gives the images that it lists, without labels: `train` holds
    images alone, there is neither validation nor test, and `few_shot` and `label_noise` are
    refused. `Splits.with_unlabeled` puts them between labelled ones. Sets of TensorFlow Datasets
    are looked for as ever; a folder of images by its name below `data_dir`, else beside the
    manifest, else below the current folder. Each image that is read here is compared with the
    SHA-256 in the manifest; beyond memory those are 16 of each pool.

    Args:
        name: `digits` (scikit-learn: 1,797 handwritten digits, 3 equal channels, enlarged to
            16x16); a set of TensorFlow Datasets, of which `names()` lists some; a folder of
            images: a `pathlib.Path`, or a string that is none of `names()` and names a folder that
            exists (`data_dir` must be None); or the path of a manifest, which ends in `.jsonl`.
        batch_size: Images in a global batch, from 1 to the number of training images.
        validation: Share of the training images held out (a float in [0, 1)) or their number (an
            integer); 0 for none. None for 0.1, and the only value for a manifest.
        seed: Integer in [0, 2^32): chooses the validation images and, with the epoch, the order of
            training.
        data_dir: The folder where TFDS keeps its data, or one that holds it as `tfds` or `pool`;
            None for TFDS' own. What is prepared there is used without a network.
        image_size: Height and width that images are resized to (bilinear, antialiased, not keeping
            the aspect); needed where a set has images of several sizes. None for a manifest: those
            that its images were scored in.
        download: Whether a set that is not there is downloaded and prepared.

    Returns:
        `Splits` with `train`, `validation`, `test` and `info`.

    Raises:
        ValueError: If an argument is out of range, a split would be empty, a class would have no
            training image, there is no such set, it is not there and `download` is False, it has
            no 8-bit images or no labels, a folder holds no classes of images that can be read
            or leaves it open which folders are the splits, or a manifest is cut off or lists
            images that are not there or not those that were mined.
        TypeError: If `name` is neither a string nor a path.
        OSError: If the download fails.
        ImportError: If scikit-learn, which holds `digits`, is not installed.
    """
    mined = is_manifest(name)
    if mined and validation is not None:
        raise ValueError(
            f"`validation` must be left out for a manifest, got {validation!r}: its images have no "
            "labels to validate by."
        )
    if validation is None:
        validation = 0 if mined else _VALIDATION
    _check(batch_size, validation, image_size)
    check_seed(seed)
    image_size = image_size and (int(image_size[0]), int(image_size[1]))
    source, published = _opened(name, data_dir, image_size, download)
    train, held_out = _hold_out(source, validation, seed)
    if batch_size > len(train):
        raise ValueError(
            f"`batch_size` must be at most the {len(train)} training images of {source.name!r}, "
            f"got {batch_size}: training takes full batches only."
        )
    mean, std = published or _computed(source, train)
    info = DatasetInfo(
        name=source.name,
        class_names=source.class_names,
        input_shape=source.input_shape,
        mean=mean,
        std=std,
        counts={"train": len(train), "validation": len(held_out), "test": len(source.test_rows)},
        fingerprint=source.fingerprint,
    )
    training = Training(source.train, train, batch_size, seed, labeled=not mined)
    return Splits(
        train=training.dataset(),
        validation=source.train.batches(held_out, batch_size) if len(held_out) else None,
        test=None if mined else source.test.batches(source.test_rows, batch_size),
        info=info,
        _training=training,
    )


def _opened(
    name: str | os.PathLike,
    data_dir: str | os.PathLike | None,
    image_size: tuple[int, int] | None,
    download: bool,
) -> tuple[Source, Constants | None]:
    """The source that the arguments of `load` mean, and its published mean and deviation."""
    if is_manifest(name):
        return open_manifest(name, data_dir, image_size, download), None
    folder, name = folder_of(name, data_dir), os.fsdecode(name)
    if folder is not None:
        return open_folder(folder, name, image_size), None
    source = open_source(name, data_dir, image_size, download)
    return source, _CONSTANTS.get(name.split(":")[0])


def _check(batch_size: int, validation: float, image_size: tuple[int, int] | None) -> None:
    check_count("batch_size", batch_size)
    is_count = is_integer(validation)
    if not is_number(validation) or not (validation >= 0 if is_count else 0 <= validation < 1):
        raise ValueError(
            f"`validation` must be a share in [0, 1) or a number of images, got {validation!r}."
        )
    check_height_and_width(image_size)


def _hold_out(source: Source, validation: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows of the source that train and those that validate."""
    rows = source.train_rows
    count = int(validation) if is_integer(validation) else round(validation * len(rows))
    if count >= len(rows) or (count == 0 and validation > 0):
        raise ValueError(
            f"`validation`={validation} holds out {count} of {len(rows)} training images: neither "
            "split may be empty (0 turns validation off)."
        )
    train, held_out = (rows[places] for places in split_rows(len(rows), count, seed))
    missing = _only_held_out(source, train, held_out)
    if missing:
        raise ValueError(
            f"`validation`={validation} with `seed`={seed} holds out every training image of "
            f"{listed(missing)}: give a smaller `validation` or another `seed`, or add images."
        )
    return train, held_out


def _only_held_out(source: Source, train: np.ndarray, held_out: np.ndarray) -> list[str]:
    """The names of the classes without a training image, where that costs no reading of files."""
    if isinstance(source.train, Streamed):
        return []
    missing = np.setdiff1d(source.train.labels[held_out], source.train.labels[train])
    return [name for label, name in enumerate(source.class_names) if label in missing]


def _computed(source: Source, rows: np.ndarray) -> Constants:
    rows = rows[:STATISTICS_IMAGES]
    mean, std = channel_statistics(source.train, rows, source.input_shape)
    print(f"{source.name}: mean {mean} and std {std} computed on {len(rows):,} training images.")
    return mean, std


def channel_statistics(
    images: Images, rows: np.ndarray, input_shape: tuple[int, int, int]
) -> Constants:
    """Mean and population standard deviation of each channel, of values scaled to 0..1.

    Sums are integers and so exact; the results are rounded to 4 digits.
    """
    counts = np.zeros((input_shape[-1], 256), np.int64)  # of each value in each channel
    batch_size = max(1, _STATISTICS_BYTES // int(np.prod(input_shape)))
    for batch, _ in images.batches(rows, batch_size).as_numpy_iterator():
        for channel, count in enumerate(counts):
            count += np.bincount(batch[..., channel].ravel(), minlength=256)
    pixels, values = counts[0].sum(), np.arange(256)
    mean = counts @ values / pixels
    std = np.sqrt(counts @ values**2 / pixels - mean**2)
    if not std.all():
        raise ValueError(
            "Each channel must have several values to be normalised by, got one that is the same "
            "in every training image: look at the images, they may be empty."
        )
    return tuple((mean / 255).round(4).tolist()), tuple((std / 255).round(4).tolist())
