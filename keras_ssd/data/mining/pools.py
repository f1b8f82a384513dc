"""Pools: unlabeled images one after the other, each under an id of its own."""

from __future__ import annotations

import os
import pathlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from keras_ssd.data.folder_layout import listed
from keras_ssd.data.folders import folder_of
from keras_ssd.data.image_files import ENDINGS, OTHER_ENDINGS, ending, files_below, pictures
from keras_ssd.data.mining.numbered_pool import NumberedPool
from keras_ssd.data.mining.prepared_pool import PreparedPool, check_prepared
from keras_ssd.data.mining.records import Record
from keras_ssd.data.sources import prepare, tfds_builder

_FILES_AT_ONCE = 4_096  # whose paths are written in full


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


class _Arrays(NumberedPool):
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


class _Folder(NumberedPool):
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
    if name == "digits":
        raise ValueError(
            "`name` must be a folder or a set of TFDS, and 'digits' comes with scikit-learn: give "
            "its images to `array_pool`."
        )
    builder = tfds_builder(name, data_dir)
    prepare(builder, name, download)
    check_prepared(builder, name, split)
    return PreparedPool(builder, name, split)


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
