"""Folders of images, one folder a class, as a source of `load`."""

from __future__ import annotations

import hashlib
import os
import pathlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from keras_ssd.data import sources
from keras_ssd.data.few_shot import stratified_rows
from keras_ssd.data.folder_layout import (
    ImageFile,
    find_classes,
    find_images,
    find_splits,
    listed,
    relative,
    warn_of,
)
from keras_ssd.data.image_files import pictures
from keras_ssd.data.images import ImageFiles, Images, InMemory

_LONG = 2**28  # bytes of files: some seconds of decoding


class _Readable(NamedTuple):
    """What came of decoding files once.

    Attributes:
        files: Those that could be read.
        pixels: Theirs, array `[N, H, W, 3]`; None where all would go beyond memory.
        shape: Of every image, once resized.
        sizes: How many files have which height and width.
        unreadable: The other files, with the reason.
    """

    files: list[ImageFile]
    pixels: np.ndarray | None
    shape: tuple[int, int, int]
    sizes: Counter[tuple[int, int]]
    unreadable: list[str]


def folder_of(name: str | os.PathLike, data_dir: str | os.PathLike | None) -> pathlib.Path | None:
    """The folder that the arguments of `load` mean; None where `name` is that of a data set."""
    if isinstance(name, os.PathLike):
        if data_dir is not None:
            raise ValueError(
                "`data_dir` holds the sets of TensorFlow Datasets, so it must be None with the "
                f"path of a folder, got {os.fspath(data_dir)!r}: leave it out."
            )
    elif not isinstance(name, str):
        raise TypeError(
            f"`name` must be the name of a data set or the path of a folder, got {name!r}."
        )
    elif data_dir is not None or name in sources.names() or not _is_path(name):
        return None
    return pathlib.Path(os.path.expanduser(os.fsdecode(name)))


def _is_path(name: str) -> bool:
    return name.startswith((".", "~", os.sep)) or os.path.exists(name)


def open_folder(
    folder: pathlib.Path, name: str, image_size: tuple[int, int] | None
) -> sources.Source:
    """The source made of a folder; the arguments are those of `load`."""
    splits = find_splits(folder, name)
    class_names = find_classes(splits, folder)
    files = find_images(splits, class_names, folder)
    if sum(os.path.getsize(path) for path, *_ in files if os.path.exists(path)) > _LONG:
        print(f"{name}: reading all {len(files):,} images once.")
    readable = _read(files, folder, image_size)
    _report(readable, splits, folder, name)
    labels = np.array([file.label for file in readable.files], np.int32)
    border = sum(file.split == "train" for file in readable.files)  # they come first
    if len(splits) == 1:
        train = test = _images(readable, slice(None), labels, image_size)
        train_rows, test_rows = _thirds(labels)
        print(
            f"{name}: no folder of test images, so about a third of each of the "
            f"{len(class_names)} classes is kept for the test ({len(test_rows):,} of "
            f"{len(labels):,} images)."
        )
    else:
        train = _images(readable, slice(border), labels, image_size)
        test = _images(readable, slice(border, None), labels, image_size)
        train_rows = np.random.RandomState(0).permutation(train.size)  # the first show all classes
        test_rows = np.arange(test.size)
    missing = set(range(len(class_names))) - set(train.labels[train_rows])
    if missing:
        raise ValueError(
            f"Every class in {str(folder)!r} needs a training image that can be read, got none "
            f"for {listed(class_names[label] for label in missing)}: add images, or remove the "
            "folder."
        )
    if not len(test_rows):
        raise ValueError(
            f"{str(folder)!r} must hold enough images to keep a third for the test and one of each "
            f"class for training, got {len(labels)} that can be read: add images."
        )
    return sources.Source(
        name=name,
        class_names=class_names,
        input_shape=readable.shape,
        train=train,
        train_rows=train_rows,
        test=test,
        test_rows=test_rows,
        fingerprint=_fingerprint(readable, labels, border, folder),
    )


def _thirds(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows of about two thirds of each class, one image at least, and of the rest, sorted."""
    count = len(labels) - round(len(labels) * sources.TEST_SHARE)
    train, test = stratified_rows(labels, count, seed=0)
    classes, first = np.unique(labels[test], return_index=True)
    only_tested = test[first[~np.isin(classes, labels[train])]]
    return np.append(train, only_tested), np.setdiff1d(test, only_tested)


def _read(
    files: Sequence[ImageFile], folder: pathlib.Path, image_size: tuple[int, int] | None
) -> _Readable:
    """Decodes every file once; keeps the pixels where all of them fit into memory."""
    read = _Readable([], None, (0, 0, 0), Counter(), [])
    for file, picture in zip(files, pictures([f.path for f in files], image_size), strict=True):
        if isinstance(picture, str):
            read.unreadable.append(f"{relative(file.path, folder)} ({picture})")
            continue
        if not read.files:
            shape, fits = picture.pixels.shape, _fits(len(files), picture.pixels.size)
            pixels = np.empty((len(files), *shape), np.uint8) if fits else None
            read = read._replace(shape=shape, pixels=pixels)
        if picture.pixels.shape != read.shape:
            raise ValueError(
                f"The images in {str(folder)!r} must have one size, got {_sized(read.shape)} and "
                f"{_sized(picture.size)}: give `image_size=(height, width)` to resize them."
            )
        if read.pixels is not None:
            read.pixels[len(read.files)] = picture.pixels
        read.files.append(file)
        read.sizes[picture.size] += 1
    return read


def _fits(images: int, size: int) -> bool:
    return images * size <= sources.MEMORY_LIMIT


def _report(
    read: _Readable, splits: Mapping[str, pathlib.Path], folder: pathlib.Path, name: str
) -> None:
    """Tells what was left out or resized; raises where nothing is left of a split."""
    total = len(read.files) + len(read.unreadable)
    for split, at in splits.items():
        if not any(file.split == split for file in read.files):
            raise ValueError(
                f"{str(at)!r} must hold images that can be read, got only others, such as "
                f"{listed(read.unreadable)}: replace them."
            )
    if read.unreadable:
        count = f"{len(read.unreadable):,} of {total:,}"
        warn_of(folder, "cannot be read", count, read.unreadable)
    resized = {size: count for size, count in read.sizes.items() if size != read.shape[:2]}
    if resized:
        first, last = min(resized, key=np.prod), max(resized, key=np.prod)
        sizes = f"{len(resized):,} sizes, from {_sized(first)} to {_sized(last)},"
        print(
            f"{name}: {sum(resized.values()):,} of {len(read.files):,} images resized from "
            f"{_sized(first) if len(resized) == 1 else sizes} to {_sized(read.shape)}."
        )


def _images(
    read: _Readable, rows: slice, labels: np.ndarray, image_size: tuple[int, int] | None
) -> Images:
    if read.pixels is not None:
        return InMemory(read.pixels[: len(labels)][rows], labels[rows])
    paths = [file.path for file in read.files[rows]]
    return ImageFiles(paths, labels[rows], read.shape, image_size)


def _fingerprint(read: _Readable, labels: np.ndarray, border: int, folder: pathlib.Path) -> str:
    if read.pixels is not None:
        return sources.hash_arrays(read.pixels[: len(labels)], labels, np.array(border))
    digest = hashlib.sha256(str(read.shape).encode())
    for path, split, label in read.files:
        identity = (relative(path, folder), os.path.getsize(path), split, label)
        digest.update(repr(identity).encode())
    return digest.hexdigest()


def _sized(shape: Sequence[int]) -> str:
    return f"{shape[0]}x{shape[1]}"
