"""Where images come from: the digits of scikit-learn and TensorFlow Datasets (TFDS)."""

from __future__ import annotations

import difflib
import hashlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from keras_ssd.data.images import Images, InMemory, Streamed, image_and_label, resize

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

MEMORY_LIMIT = 4 * 2**30  # bytes of decoded images; larger sets are streamed
TEST_SHARE = 1 / 3  # of a set without a test split: 599 digits, a standard error of 0.9 % at 95 %
DIGITS_SIZE = (16, 16)
KNOWN = ("cifar10", "cifar100", "fashion_mnist", "kmnist", "mnist", "stl10", "svhn_cropped")
_TEST_SPLITS = {"imagenet2012": "validation"}  # its own test split has no labels


@dataclass(frozen=True)
class Source:
    """Images of known classes and which of them train and test.

    `train` and `test` are the same object where the set has no test split of its own.
    """

    name: str
    class_names: tuple[str, ...]
    input_shape: tuple[int, int, int]
    train: Images
    train_rows: np.ndarray
    test: Images
    test_rows: np.ndarray
    fingerprint: str


def names() -> list[str]:
    """Data sets that `load` knows to work without further arguments.

    Any other image classification set of TensorFlow Datasets (features `image` and `label`) works
    under its own name too; sets with images of several sizes need `image_size`.

    Returns:
        The names, sorted.
    """
    return sorted(("digits", *KNOWN))


def open_source(
    name: str,
    data_dir: str | os.PathLike | None,
    image_size: tuple[int, int] | None,
    download: bool,
) -> Source:
    """The source called `name`; the arguments are those of `load`."""
    if name == "digits":
        return _digits(image_size or DIGITS_SIZE)
    return _from_tfds(tfds_builder(name, data_dir), name, image_size, download)


def split_rows(size: int, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The numbers 0 to `size - 1` split at random into all but `count` and `count`, both sorted."""
    order = np.random.RandomState(seed).permutation(size)  # the generator that NumPy has frozen
    return np.sort(order[count:]), np.sort(order[:count])


def _digits(image_size: tuple[int, int]) -> Source:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "The data set 'digits' comes with scikit-learn: pip install 'keras-ssd[quickstart]'."
        ) from error
    digits = load_digits()
    grey = np.repeat(digits.images[..., None] * (255 / 16), 3, axis=-1).astype("float32")
    images, labels = resize(grey, image_size).numpy(), digits.target
    arrays = InMemory(images, labels)
    train_rows, test_rows = split_rows(arrays.size, round(arrays.size * TEST_SHARE), seed=0)
    return Source(
        name="digits",
        class_names=tuple(str(name) for name in digits.target_names),
        input_shape=images.shape[1:],
        train=arrays,
        train_rows=train_rows,
        test=arrays,
        test_rows=test_rows,
        fingerprint=hash_arrays(images, labels),
    )


def tfds_builder(name: str, data_dir: str | os.PathLike | None) -> tfds.core.DatasetBuilder:
    """The builder of a set of TFDS: where it is prepared, otherwise where it would be.

    Args:
        name: As TFDS knows it, or that of a set that is prepared and known to nobody.
        data_dir: The folder where TFDS keeps its data, or one that holds it as `tfds` or `pool`;
            None for TFDS' own.

    Raises:
        ValueError: If there is no such set.
    """
    import tensorflow_datasets as tfds  # takes seconds to import

    builders, reason = [], None
    for place in _places(data_dir):
        try:
            builder = tfds.builder(name, data_dir=place)
        except (tfds.core.DatasetNotFoundError, ValueError, AssertionError) as error:
            reason = error
            continue
        if builder.is_prepared():
            return builder
        builders.append(builder)
    if builders:
        return builders[0]
    known = {*names(), *tfds.list_builders(with_community_datasets=False)}
    plain = name.lower().replace("-", "").replace(" ", "")
    near = difflib.get_close_matches(plain, sorted(known), n=3)
    hint = f"close names: {near}" if near else f"`data.names()` begins a list: {names()}"
    what = "data set and no folder" if data_dir is None else "data set"
    raise ValueError(f"There is no {what} {name!r}; {hint}.") from reason


def _places(data_dir: str | os.PathLike | None) -> list[str | None]:
    """Where to look for a set; what is downloaded goes to the first."""
    if data_dir is None:
        return [None]
    outer = os.path.expanduser(data_dir)
    inner = {part: tf.io.gfile.join(outer, part) for part in ("tfds", "pool")}
    tfds_first = [inner["tfds"], outer, inner["pool"]]
    return [place for place in tfds_first if place == outer or tf.io.gfile.isdir(place)]


def _from_tfds(
    builder: tfds.core.DatasetBuilder, name: str, image_size: tuple[int, int] | None, download: bool
) -> Source:
    shape = _image_shape(builder, name, image_size)
    prepare(builder, name, download)
    sizes = _used_splits(builder, name)
    too_large = sum(sizes.values()) * np.prod(shape) > MEMORY_LIMIT
    images, fingerprint = (_stream if too_large else _read)(builder, sizes, shape, image_size)
    train_rows = np.arange(sizes["train"])
    test_split = list(sizes)[-1]
    test_rows = np.arange(sizes[test_split])
    if test_split == "train":
        train_rows, test_rows = split_rows(len(test_rows), round(len(test_rows) * TEST_SHARE), 0)
    return Source(
        name=name,
        class_names=tuple(builder.info.features["label"].names),
        input_shape=shape,
        train=images["train"],
        train_rows=train_rows,
        test=images[test_split],
        test_rows=test_rows,
        fingerprint=fingerprint,
    )


def _image_shape(
    builder: tfds.core.DatasetBuilder, name: str, image_size: tuple[int, int] | None
) -> tuple[int, int, int]:
    import tensorflow_datasets as tfds

    features = dict(builder.info.features or {})
    image, label = features.get("image"), features.get("label")
    if not isinstance(image, tfds.features.Image) or image.np_dtype != np.uint8:
        raise ValueError(
            f"{name!r} needs a feature `image` of 8-bit images, got the features "
            f"{sorted(features)}: choose an image classification set."
        )
    if not isinstance(label, tfds.features.ClassLabel):
        raise ValueError(
            f"{name!r} needs a feature `label` with classes, got the features {sorted(features)}: "
            "choose an image classification set."
        )
    height, width, channels = image.shape
    if image_size is None and None in (height, width):
        raise ValueError(
            f"The images of {name!r} have several sizes: give `image_size=(height, width)`."
        )
    return (*(image_size or (height, width)), channels)


def _used_splits(builder: tfds.core.DatasetBuilder, name: str) -> dict[str, int]:
    """The sizes of `train` and of the split to test on, which is last; `train` alone if none is."""
    sizes = {split: info.num_examples for split, info in builder.info.splits.items()}
    wanted = ("train", _TEST_SPLITS.get(builder.name, "test"), "validation")
    used = {split: sizes[split] for split in wanted if split in sizes}
    used = dict(list(used.items())[:2])
    if not used.get("train") or not all(used.values()):
        raise ValueError(
            f"{name!r} needs images in its splits 'train' and 'test', got {sizes}: prepare the "
            "data set again."
        )
    return used


def prepare(builder: tfds.core.DatasetBuilder, name: str, download: bool) -> None:
    """Downloads what is not there yet, with TFDS' progress bars."""
    if builder.is_prepared():
        return
    if not download:
        raise ValueError(
            f"{name!r} is not prepared in {str(builder.data_dir)!r}: give the `data_dir` that "
            "holds it, or `download=True`."
        )
    print(f"{name!r} is not prepared in {str(builder.data_dir)!r}: downloading it there.")
    try:
        builder.download_and_prepare()
    except OSError as error:
        raise OSError(
            f"{name!r} is not prepared in {str(builder.data_dir)!r} and could not be downloaded "
            f"({type(error).__name__}): give the `data_dir` that holds it, or connect to a network."
        ) from error


def _read(
    builder: tfds.core.DatasetBuilder,
    sizes: dict[str, int],
    shape: tuple[int, int, int],
    image_size: tuple[int, int] | None,
) -> tuple[dict[str, Images], str]:
    def pair(example: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        return image_and_label(example, image_size)

    arrays = {}
    for split, size in sizes.items():
        images, labels = np.empty((size, *shape), np.uint8), np.empty(size, np.int32)
        examples = builder.as_dataset(split=split, shuffle_files=False)
        batches = examples.map(pair, num_parallel_calls=tf.data.AUTOTUNE).batch(512)
        for start, batch in zip(range(0, size, 512), batches.as_numpy_iterator(), strict=True):
            images[start : start + 512], labels[start : start + 512] = batch
        arrays[split] = (images, labels)
    fingerprint = hash_arrays(*(array for pair in arrays.values() for array in pair))
    return {split: InMemory(*pair) for split, pair in arrays.items()}, fingerprint


def _stream(
    builder: tfds.core.DatasetBuilder,
    sizes: dict[str, int],
    shape: tuple[int, int, int],
    image_size: tuple[int, int] | None,
) -> tuple[dict[str, Images], str]:
    identity = f"{builder.info.full_name} {sizes} {shape} {builder.info.dataset_size}"
    fingerprint = hashlib.sha256(identity.encode()).hexdigest()
    return {split: Streamed(builder, split, image_size) for split in sizes}, fingerprint


def hash_arrays(*arrays: np.ndarray) -> str:
    """SHA-256 of the dtypes, shapes and values of some arrays."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()
