"""Pools: unlabeled images one after the other, each under an id of its own."""

from __future__ import annotations

import abc
import copy
import functools
import hashlib
import os
import pathlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import tensorflow as tf

from keras_ssd.data.folder_layout import listed
from keras_ssd.data.folders import folder_of
from keras_ssd.data.image_files import ENDINGS, OTHER_ENDINGS, ending, files_below, pictures
from keras_ssd.data.images import decoded
from keras_ssd.data.sources import prepare, tfds_builder

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

_FILES_AT_ONCE = 4_096  # whose paths are written in full
_DECODED_BYTES = 2**24  # of images that a thread decodes before it hands them on
_MOST_DECODED, _DECODED_OF_ANY_SIZE = 512, 16  # images that it does


class Record(NamedTuple):
    """An image of a pool.

    Attributes:
        id: Unique in the pool.
        source: Where `data.load` finds the image again; empty for images given as arrays.
        image: uint8 `[H, W, 3]` as decoded, not resized; None where it cannot be read.
        problem: Why it cannot be read, in a few words, or None.
    """

    id: str
    source: str
    image: np.ndarray | None
    problem: str | None = None


class Pool(Protocol):
    """Images in an order that never changes.

    Attributes:
        name: What score files and manifests call the pool.
        size: Number of images, those that cannot be read among them.
    """

    name: str

    @property
    def size(self) -> int:
        """The number of images."""

    def read(self, start: int = 0) -> Iterator[Record]:
        """The images from number `start` on; those before are not decoded."""


class ShardedPool(Pool, Protocol):
    """A pool that can be divided, for several machines."""

    def shard(self, index: int, count: int) -> ShardedPool:
        """Images `index`, `index + count`, ... of this pool, under its name and their ids."""


class _Rows(abc.ABC):
    """A pool whose images are numbered, or every so many of them.

    Attributes:
        part: Which shard of the pool this is, and of how many.
    """

    def __init__(self, name: str, size: int) -> None:
        self.name = name
        self.part = (0, 1)
        self._rows = range(size)

    @functools.cached_property
    def digest(self) -> str:
        """What tells the whole pool from another one of its name."""
        digest = hashlib.sha256()
        for piece in self._identity():
            digest.update(piece)
        return digest.hexdigest()

    @abc.abstractmethod
    def _identity(self) -> Iterator[bytes]:
        """What makes the pool what it is."""

    @property
    def size(self) -> int:
        """The number of images."""
        return len(self._rows)

    def shard(self, index: int, count: int) -> _Rows:
        """Images `index`, `index + count`, ... of this pool, under its name and their ids.

        Args:
            index: Which shard, in [0, `count`).
            count: How many shards there are, >= 1.

        Raises:
            ValueError: If a number is out of range or no image is in this shard.
        """
        if not _is_integer(count) or not _is_integer(index) or not 0 <= index < count:
            raise ValueError(
                f"A shard is `index` of `count`, 0 <= index < count, got {index!r} of {count!r}."
            )
        if index >= self.size:
            raise ValueError(
                f"Shard {index} of {count} holds none of the {self.size} images of {self.name!r}: "
                "make fewer shards."
            )
        other = copy.copy(self)
        other._rows = self._rows[int(index) :: int(count)]
        first, step = self.part
        other.part = (first + int(index) * step, step * int(count))
        return other

    def read(self, start: int = 0) -> Iterator[Record]:
        """The images from number `start` on; those before are not decoded."""
        if not _is_integer(start) or start < 0:
            raise ValueError(f"`start` must be an integer >= 0, got {start!r}.")
        rows = self._rows[int(start) :]
        return self._read(rows) if rows else iter(())

    @abc.abstractmethod
    def _read(self, rows: range) -> Iterator[Record]:
        """The images of some rows, at least one."""


class _Arrays(_Rows):
    def __init__(
        self, name: str, ids: Sequence[str], images: np.ndarray | Sequence[np.ndarray]
    ) -> None:
        super().__init__(name, len(ids))
        self._ids, self._images = ids, images

    def _identity(self) -> Iterator[bytes]:
        for id, image in zip(self._ids, self._images, strict=True):
            yield f"{id}\0{image.shape}".encode()
            yield image.tobytes()

    def _read(self, rows: range) -> Iterator[Record]:
        return (Record(self._ids[row], "", self._images[row]) for row in rows)


class _Folder(_Rows):
    def __init__(self, folder: pathlib.Path, files: Sequence[str]) -> None:
        super().__init__(_name_of(folder), len(files))
        self._folder, self._files = folder, files  # relative, so that a million fit into memory

    def _identity(self) -> Iterator[bytes]:
        for file in self._files:
            yield f"{file}\0{os.path.getsize(self._folder / file)}\0".encode()

    def _read(self, rows: range) -> Iterator[Record]:
        for first in range(0, len(rows), _FILES_AT_ONCE):
            files = [self._files[row] for row in rows[first : first + _FILES_AT_ONCE]]
            paths = [os.path.join(self._folder, file) for file in files if _is_read(file)]
            found = pictures(paths, None)
            for file in files:
                id = f"{self.name}/{pathlib.Path(file).as_posix()}"
                picture = next(found) if _is_read(file) else "no JPEG, PNG, BMP or GIF file"
                if isinstance(picture, str):
                    yield Record(id, id, None, picture)
                else:
                    yield Record(id, id, picture.pixels)


class _Prepared(_Rows):
    """A split of a set of TFDS, by its rows in the order of the files."""

    def __init__(self, builder: tfds.core.DatasetBuilder, name: str, split: str) -> None:
        super().__init__(name, builder.info.splits[split].num_examples)
        self._builder, self._split = builder, split
        self._shape = builder.info.features["image"].shape

    def _identity(self) -> Iterator[bytes]:
        info = self._builder.info
        lengths = info.splits[self._split].shard_lengths
        yield f"{info.full_name} {self._split} {lengths} {info.dataset_size}".encode()

    def _read(self, rows: range) -> Iterator[Record]:
        waited_for = iter(rows)
        for row, image in self._decoded(rows):
            while (left_out := next(waited_for)) != row:
                yield self._unreadable(left_out)
            yield Record(self._id(row), self._id(row), image)
        yield from map(self._unreadable, waited_for)

    def _id(self, row: int) -> str:
        return f"{self.name}[{self._split}]/{row:08d}"

    def _unreadable(self, row: int) -> Record:
        return Record(self._id(row), self._id(row), None, "cannot be decoded")

    def _decoded(self, rows: range) -> Iterator[tuple[int, np.ndarray]]:
        """Rows in order and their images, those left out that cannot be decoded."""
        with tf.device("CPU:0"):
            batches = iter(self._batches(rows))
        while True:
            try:
                numbers, shapes, images = next(batches)
            except StopIteration:
                return
            except tf.errors.OpError as error:
                raise ValueError(
                    f"The files of {self.name!r} must be whole, and those of its split "
                    f"{self._split!r} cannot be read ({type(error).__name__}): prepare the set "
                    "anew."
                ) from error
            if isinstance(images, tf.RaggedTensor):
                flat = np.split(images.values.numpy(), images.row_splits[1:-1].numpy())
                sized = zip(flat, shapes.numpy(), strict=True)
                pixels = [image.reshape(shape) for image, shape in sized]
            else:
                pixels = images.numpy()
            yield from zip(numbers.numpy().tolist(), pixels, strict=True)

    def _batches(self, rows: range) -> tf.data.Dataset:
        """Row numbers, shapes and pixels; pixels are flat and ragged where sizes differ."""
        import tensorflow_datasets as tfds

        records = self._builder.as_dataset(
            split=f"{self._split}[{rows[0]}:]",
            shuffle_files=False,
            decoders={"image": tfds.decode.SkipDecoding()},
            read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
        )
        numbers = tf.data.Dataset.from_tensor_slices(np.array(rows))
        encoded = records.shard(rows.step, 0).map(lambda example: example["image"])
        size = _DECODED_OF_ANY_SIZE
        if None not in self._shape:
            size = min(max(1, _DECODED_BYTES // int(np.prod(self._shape))), _MOST_DECODED)

        def decode(number: tf.Tensor, encoded: tf.Tensor) -> tuple[tf.Tensor, ...]:
            image = decoded(encoded)
            pixels = tf.reshape(image, [-1]) if None in self._shape else image
            return number, tf.shape(image), pixels

        def decode_some(numbers: tf.Tensor, encoded: tf.Tensor) -> tf.data.Dataset:
            some = tf.data.Dataset.from_tensor_slices((numbers, encoded)).map(decode)
            some = some.ignore_errors()  # of these images alone, not of what reads the files
            return some.ragged_batch(size) if None in self._shape else some.batch(size)

        threads = os.cpu_count() or 1
        some = tf.data.Dataset.zip((numbers, encoded)).batch(size)
        batches = some.interleave(decode_some, threads, num_parallel_calls=threads)
        return batches.prefetch(1)


def open_pool(
    name: str | os.PathLike,
    *,
    split: str = "train",
    data_dir: str | os.PathLike | None = None,
    download: bool = True,
) -> ShardedPool:
    """A folder of images or a set of TensorFlow Datasets as a pool to mine.

    Labels are not looked at, and need not be there. Images are decoded as by `load` (grey becomes 3
    equal channels, alpha is dropped, no EXIF orientation) and keep their size.

    Args:
        name: A folder of JPEG, PNG, BMP and GIF files at any depth (a `pathlib.Path`, or a string
            as in `load`), hidden ones passed over; images of other kinds count as unreadable. Or
            the name of a set of TFDS with a feature `image` of 8 bits, in TFRecord or any other
            format.
        split: The split of the set; of a folder give the folder of the split itself.
        data_dir: The folder where TFDS keeps its data, or one that holds it as `tfds` or `pool`;
            None for TFDS' own, and for a folder of images.
        download: Whether a set that is not there is downloaded and prepared.

    Returns:
        A pool with `name`, `size`, `read` and `shard(index, count)`. The id of an image is
        `FOLDER/path/in/it.jpg` or `NAME[SPLIT]/00000042` (its row in the order of the files): no
        path of this machine, so that scores of one pool are the same everywhere.

    Raises:
        ValueError: If there is no such folder, set or split, no image in it, or no feature `image`;
            or the set is not there and `download` is False.
        TypeError: If `name` is neither a string nor a path.
        OSError: If the download fails.
    """
    folder = folder_of(name, data_dir)
    if folder is not None:
        if split != "train":
            raise ValueError(
                f"A folder of images has no splits, so `split` must be left out, got {split!r}: "
                "give the folder of the split itself."
            )
        return _Folder(folder, _files_in(folder))
    name = os.fsdecode(name)
    builder = tfds_builder(name, data_dir)
    prepare(builder, name, download)
    _check_prepared(builder, name, split)
    return _Prepared(builder, name, split)


def array_pool(
    name: str, ids: Sequence[str], images: np.ndarray | Sequence[np.ndarray]
) -> ShardedPool:
    """Images in memory as a pool to mine.

    Args:
        name: What score files and manifests call the pool.
        ids: Unique strings, one an image.
        images: Array uint8 `[N, H, W, 3]`, or a sequence of arrays uint8 `[H, W, 3]`.

    Returns:
        A pool with `name`, `size`, `read` and `shard(index, count)`; the sources of its images are
        empty, so that `load` can find them by nothing.

    Raises:
        ValueError: If there is no image, not one id for each, an id is there twice, or images have
            another shape.
        TypeError: If ids are no strings, or images no uint8 arrays.
    """
    if not isinstance(name, str) or isinstance(ids, str):
        raise TypeError(f"`name` must be a string and `ids` several, got {name!r} and {ids!r:.50}.")
    others = [id for id in ids if not isinstance(id, str)]
    if others:
        raise TypeError(f"`ids` must be strings, got {others[0]!r}.")
    if len(ids) != len(images):
        raise ValueError(f"Each image needs an id, got {len(ids)} ids and {len(images)} images.")
    if not len(ids):
        raise ValueError(f"The pool {name!r} must hold images, got none.")
    twice = [id for id, count in Counter(ids).items() if count > 1]
    if twice:
        raise ValueError(
            f"The ids of {name!r} must be unique, got more than once: {listed(twice)}."
        )
    _check_text(ids, name)
    for id, image in zip(
        ids, images[:1] if isinstance(images, np.ndarray) else images, strict=False
    ):
        check_image(image, id)
    return _Arrays(name, [str(id) for id in ids], images)


def check_image(image: Any, id: str) -> None:
    """Refuses what is no uint8 array `[H, W, 3]`."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        kind = image.dtype if isinstance(image, np.ndarray) else type(image).__name__
        raise TypeError(f"Images must be uint8 arrays [H, W, 3], got {kind} for {id!r}.")
    if image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(
            f"Images must be uint8 arrays [H, W, 3], got the shape {image.shape} for {id!r}."
        )


def _is_integer(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _is_read(file: str) -> bool:
    return ending(file) in ENDINGS


def _name_of(folder: pathlib.Path) -> str:
    return pathlib.Path(os.path.abspath(folder)).name  # of `.`, too


def _files_in(folder: pathlib.Path) -> list[str]:
    """The images in a folder, of all kinds, as paths relative to it."""
    if not folder.is_dir():
        what = "no folder" if folder.exists() else "nothing"
        raise ValueError(f"A pool must be a folder, got {what} at {str(folder)!r}: check the path.")
    every = (os.path.relpath(path, folder) for path in files_below(folder))
    files = [file for file in every if ending(file) in ENDINGS | OTHER_ENDINGS]
    if not any(map(_is_read, files)):
        raise ValueError(
            f"The pool {str(folder)!r} must hold JPEG, PNG, BMP or GIF images, got none and "
            f"{len(files):,} images of other kinds: check the path, or convert them."
        )
    _check_text(files, str(folder))
    return files


def _check_text(ids: Sequence[str], pool: str) -> None:
    """Refuses names that no score file can hold."""
    for id in ids:
        try:
            id.encode()
        except UnicodeEncodeError:
            raise ValueError(
                f"The ids of the pool {pool!r} must be text that UTF-8 can write, got {id!r}: "
                "rename the image."
            ) from None


def _check_prepared(builder: tfds.core.DatasetBuilder, name: str, split: str) -> None:
    import tensorflow_datasets as tfds

    features = dict(builder.info.features or {})
    image = features.get("image")
    if not isinstance(image, tfds.features.Image) or image.np_dtype != np.uint8:
        raise ValueError(
            f"{name!r} needs a feature `image` of 8-bit images, got the features "
            f"{sorted(features)}: choose a set of images."
        )
    sizes = {known: info.num_examples for known, info in builder.info.splits.items()}
    if not sizes.get(split):
        raise ValueError(f"{name!r} must hold images in its split {split!r}, got {sizes}.")
