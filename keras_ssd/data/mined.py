"""A manifest of mined images as a source of `load`: images without labels."""

from __future__ import annotations

import hashlib
import itertools
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorflow as tf

from keras_ssd.data import sources
from keras_ssd.data.encoded import Encoded, Joined
from keras_ssd.data.folder_layout import listed
from keras_ssd.data.image_files import ending
from keras_ssd.data.images import Images, InMemory, decoded, resize
from keras_ssd.data.mined_parts import Part, Record, find_parts
from keras_ssd.data.mining.hashes import sha256_of
from keras_ssd.data.mining.manifest import Manifest, Row, read_manifest

_AT_ONCE = 64  # images decoded ahead: photographs in full size take 36 MB each
_THREADS = min(8, os.cpu_count() or 1)
_LONG = 2**28  # decoded bytes: some seconds of reading

_Shape = tuple[int, int, int]


def is_manifest(name: object) -> bool:
    """Whether the `name` given to `load` is that of a manifest."""
    return isinstance(name, str | os.PathLike) and ending(os.fsdecode(name)) == ".jsonl"


def open_manifest(
    name: str | os.PathLike,
    data_dir: str | os.PathLike | None,
    image_size: tuple[int, int] | None,
    download: bool,
) -> sources.Source:
    """The source made of a manifest, without test images; the arguments are those of `load`."""
    path = pathlib.Path(os.path.expanduser(os.fsdecode(name)))
    manifest = read_manifest(path)
    _check_rows(manifest.rows, path.name)
    parts = find_parts(manifest.rows, path, data_dir, download)
    scored_in = manifest.header["preprocessing"].get("resize")
    if image_size is None and scored_in is not None:
        image_size = (scored_in[0], scored_in[1])
    samples = itertools.chain.from_iterable(part.sample() for part in parts)
    shape = _one_shape(list(_pictures(samples, path.name, image_size)), path.name)
    images, rows = _images(parts, len(manifest.rows), shape, path.name, image_size)
    return sources.Source(
        name=path.name,
        class_names=_class_names(manifest),
        input_shape=shape,
        train=images,
        train_rows=rows,
        test=images,
        test_rows=rows[:0],
        fingerprint=_digest(path),
    )


def _class_names(manifest: Manifest) -> tuple[str, ...]:
    header = manifest.header
    return tuple(header["class_names"] or map(str, range(header["num_classes"])))


def _digest(path: pathlib.Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(2**20), b""):
            digest.update(block)
    return digest.hexdigest()


def _check_rows(rows: Sequence[Row], name: str) -> None:
    """Refuses a manifest of no image, of images that are nowhere, and of one image twice."""
    if not rows:
        raise ValueError(
            f"{name!r} lists no image, so there is nothing to load: select with a larger `k` or a "
            "smaller `min_score`."
        )
    nowhere = [row.id for row in rows if not row.source]
    if nowhere:
        raise ValueError(
            f"Nothing tells where {len(nowhere):,} of the {len(rows):,} images that {name!r} lists "
            f"are, as they were given as arrays ({listed(nowhere)}): mine a folder or a set of "
            "TensorFlow Datasets, or take them out of the arrays by their ids."
        )
    if len({row.source for row in rows}) < len(rows):
        raise ValueError(
            f"{name!r} must list each image once, got one `source` under several ids: write it "
            "anew with `select`."
        )


def _pictures(
    records: Iterable[Record], name: str, image_size: tuple[int, int] | None
) -> Iterator[np.ndarray]:
    """The images, resized if asked for; raises if one is not that which was mined."""

    def read(record: Record) -> np.ndarray:
        with tf.device("CPU:0"):
            try:
                image = decoded(record.encoded)
            except tf.errors.OpError:
                raise ValueError(_changed(record, "cannot be decoded")) from None
            if sha256_of(image.numpy()) != record.row.sha256:
                raise ValueError(_changed(record, "shows something else"))
            return (image if image_size is None else resize(image, image_size)).numpy()

    def _changed(record: Record, what: str) -> str:
        return (
            f"The images that {name!r} lists must be those that were mined, but "
            f"{record.row.source!r} {what} now: give the `data_dir` that holds them, or mine again."
        )

    records = iter(records)
    with ThreadPoolExecutor(_THREADS) as pool:
        while some := list(itertools.islice(records, _AT_ONCE)):
            yield from pool.map(read, some)


def _one_shape(images: Iterable[np.ndarray], name: str) -> _Shape:
    shapes = list(dict.fromkeys(image.shape for image in images))
    if len(shapes) > 1:
        raise ValueError(
            f"The images that {name!r} lists must have one size, got {_sized(shapes[0])} and "
            f"{_sized(shapes[1])}: give `image_size=(height, width)` to resize them."
        )
    return shapes[0]


def _images(
    parts: Sequence[Part],
    size: int,
    shape: _Shape,
    name: str,
    image_size: tuple[int, int] | None,
) -> tuple[Images, np.ndarray]:
    """The images, in memory where all of them fit, and their rows, of which the first show all."""
    decoded_bytes = size * int(np.prod(shape))
    if decoded_bytes > sources.MEMORY_LIMIT:
        return _joined([part.images(shape, image_size) for part in parts])
    if decoded_bytes > _LONG:
        print(f"{name}: reading all {size:,} images once.")
    pixels = np.empty((size, *shape), np.uint8)
    records = itertools.chain.from_iterable(part.read() for part in parts)
    for place, image in enumerate(_pictures(records, name, image_size)):
        pixels[place] = image if image.shape == shape else _one_shape([pixels[0], image], name)
    return InMemory(pixels, np.full(size, -1)), np.random.RandomState(0).permutation(size)


def _joined(parts: Sequence[tuple[Encoded, np.ndarray]]) -> tuple[Encoded, np.ndarray]:
    """All parts as one, and their rows, those of one part spread evenly between the others."""
    if len(parts) == 1:
        return parts[0]
    first_rows = np.cumsum([0, *(images.size for images, _ in parts)])
    rows = [own + first for (_, own), first in zip(parts, first_rows, strict=False)]
    places = [(np.arange(len(own)) + 0.5) / len(own) for own in rows]
    order = np.argsort(np.concatenate(places), kind="stable")
    return Joined([images for images, _ in parts]), np.concatenate(rows)[order]


def _sized(shape: Sequence[int]) -> str:
    return f"{shape[0]}x{shape[1]}"
