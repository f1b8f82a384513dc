"""The images that a manifest lists, found again: files of folders, rows of sets of TFDS."""

from __future__ import annotations

import itertools
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import tensorflow as tf

from keras_ssd.data.encoded import Decoder, Encoded
from keras_ssd.data.folder_layout import listed
from keras_ssd.data.images import ImageFiles, Streamed, decoded, resize
from keras_ssd.data.mining.manifest import Row
from keras_ssd.data.sources import prepare, tfds_builder

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

_ROW_OF_A_SET = re.compile(r"((.+)\[([^\[\]]+)\])/(\d{8,})")  # NAME[SPLIT]/ROW
_SAMPLE = 16  # images: enough to see that a folder or set is another one


class Record(NamedTuple):
    """A row of a manifest, and its image as a file holds it."""

    row: Row
    encoded: bytes


class Part(Protocol):
    """Images of one pool that a manifest lists, all of them there."""

    def read(self) -> Iterator[Record]:
        """Each of them once, in an order that never changes."""

    def sample(self) -> Iterator[Record]:
        """Some of them."""

    def images(
        self, shape: tuple[int, int, int], image_size: tuple[int, int] | None
    ) -> tuple[Encoded, np.ndarray]:
        """All of them, decoded whenever they are needed, and which rows of that they are."""


class _Files:
    """Files of a folder."""

    def __init__(self, rows: Sequence[Row], paths: Sequence[pathlib.Path]) -> None:
        self._rows, self._paths = rows, paths

    def read(self) -> Iterator[Record]:
        pairs = zip(self._rows, self._paths, strict=True)
        return (Record(row, path.read_bytes()) for row, path in pairs)

    def sample(self) -> Iterator[Record]:
        places = np.unique(np.linspace(0, len(self._rows) - 1, _SAMPLE).astype(int))
        return _Files([self._rows[i] for i in places], [self._paths[i] for i in places]).read()

    def images(
        self, shape: tuple[int, int, int], image_size: tuple[int, int] | None
    ) -> tuple[Encoded, np.ndarray]:
        unlabeled = np.full(len(self._rows), -1)
        images = ImageFiles([str(path) for path in self._paths], unlabeled, shape, image_size)
        return images, np.random.RandomState(0).permutation(images.size)  # the first show all


class _Prepared:
    """Rows of a split of a prepared set of TFDS, read in the order of its files."""

    def __init__(
        self,
        rows: Sequence[Row],
        numbers: np.ndarray,
        builder: tfds.core.DatasetBuilder,
        split: str,
    ) -> None:
        order = np.argsort(numbers)
        self._rows, self._numbers = [rows[place] for place in order], numbers[order]
        self._builder, self._split = builder, split

    def read(self) -> Iterator[Record]:
        import tensorflow_datasets as tfds

        chosen = np.zeros(self._builder.info.splits[self._split].num_examples, bool)
        chosen[self._numbers] = True
        examples = self._builder.as_dataset(
            split=self._split,
            shuffle_files=False,
            decoders={"image": tfds.decode.SkipDecoding()},
            read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
        )
        numbered = examples.map(lambda example: example["image"]).enumerate()
        kept = numbered.filter(lambda number, _: tf.gather(chosen, number))
        encoded = kept.take(len(self._numbers)).map(lambda _, image: image).as_numpy_iterator()
        return itertools.starmap(Record, zip(self._rows, encoded, strict=True))

    def sample(self) -> Iterator[Record]:
        return itertools.islice(self.read(), _SAMPLE)  # others would cost reading the files

    def images(
        self, shape: tuple[int, int, int], image_size: tuple[int, int] | None
    ) -> tuple[Encoded, np.ndarray]:
        return _StreamedUnlabeled(self._builder, self._split, shape, image_size), self._numbers


class _StreamedUnlabeled(Streamed):
    """Images of a set that may have no labels, in 3 channels as they were mined."""

    def __init__(
        self,
        builder: tfds.core.DatasetBuilder,
        split: str,
        shape: tuple[int, int, int],
        image_size: tuple[int, int] | None,
    ) -> None:
        super().__init__(builder, split, image_size)
        self._shape = shape

    def decoder(self) -> Decoder:
        """From a record to its image, and the label -1."""
        import tensorflow_datasets as tfds

        skip = {"image": tfds.decode.SkipDecoding()}

        def decode(_: tf.Tensor, record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            image = decoded(self._features.deserialize_example(record, decoders=skip)["image"])
            if self._image_size is not None:
                image = resize(image, self._image_size)
            return tf.ensure_shape(image, self._shape), tf.constant(-1)

        return decode

    def _read_labels(self) -> np.ndarray:
        return np.full(self.size, -1, np.int32)


class _Found(NamedTuple):
    """What came of looking for the images of a pool: its part, those not there, and where."""

    part: Part | None
    missing: Sequence[Row]
    places: Sequence[str]


def find_parts(
    rows: Sequence[Row],
    manifest: pathlib.Path,
    data_dir: str | os.PathLike | None,
    download: bool,
) -> list[Part]:
    """The images of each pool, in the order in which a manifest first names the pools.

    Args:
        rows: The rows of the manifest, each with a `source`.
        manifest: Its path; folders are looked for beside it, too.
        data_dir: As in `load`.
        download: As in `load`.

    Raises:
        ValueError: If one of them is not there.
        OSError: If the download of a set fails.
    """
    pools: dict[str, list[Row]] = {}
    for row in rows:
        match = _ROW_OF_A_SET.fullmatch(row.source)
        pools.setdefault(match[1] if match else row.source.split("/")[0], []).append(row)
    outer = None if data_dir is None else pathlib.Path(os.path.expanduser(data_dir))
    found = [
        _find_set(match[2], match[3], of_pool, outer, download)
        if (match := _ROW_OF_A_SET.fullmatch(of_pool[0].source))
        else _find_files(pool, of_pool, outer, manifest)
        for pool, of_pool in pools.items()
    ]
    missing = [row.source for pool in found for row in pool.missing]
    if missing:
        places = dict.fromkeys(place for pool in found if pool.missing for place in pool.places)
        raise ValueError(
            f"All images that {manifest.name!r} lists must be there, but {len(missing):,} of "
            f"{len(rows):,} are not, looked for in {', '.join(places)} ({listed(missing)}): give "
            "the `data_dir` that holds them."
        )
    return [pool.part for pool in found if pool.part is not None]


def _find_files(
    pool: str, rows: Sequence[Row], outer: pathlib.Path | None, manifest: pathlib.Path
) -> _Found:
    folders = [manifest.absolute().parent, pathlib.Path.cwd()]
    folders = folders if outer is None else [outer, *folders]
    there = next((folder for folder in folders if (folder / pool).is_dir()), folders[0])
    paths = [there / row.source for row in rows]
    missing = [row for row, path in zip(rows, paths, strict=True) if not path.is_file()]
    return _Found(_Files(rows, paths), missing, [repr(str(folder)) for folder in folders])


def _find_set(
    name: str, split: str, rows: Sequence[Row], outer: pathlib.Path | None, download: bool
) -> _Found:
    places = ["the folder of TensorFlow Datasets"]
    if outer is not None:
        places = [repr(str(outer / part)) for part in ("", "tfds", "pool")]
    try:
        builder = tfds_builder(name, outer)
    except ValueError:  # nobody knows this name
        return _Found(None, rows, places)
    prepare(builder, name, download)
    info = builder.info.splits.get(split)
    numbers = np.array([int(row.source.rsplit("/", 1)[1]) for row in rows])
    size = 0 if info is None else info.num_examples
    missing = [row for row, number in zip(rows, numbers, strict=True) if number >= size]
    return _Found(_Prepared(rows, numbers, builder, split), missing, places)
