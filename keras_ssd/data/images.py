"""Labelled images as `tf.data`: held in memory, decoded while they are read, or streamed (TFDS)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import tensorflow as tf

from keras_ssd.data.encoded import Decoder, Encoded, Labelled, on_cpu
from keras_ssd.data.order import by_epoch, permuted

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

CHUNK = 4_096  # encoded images shuffled among themselves, about 0.5 GB of photographs


class Images(Protocol):
    """Numbered images and labels that make data sets of any choice of rows."""

    size: int

    @property
    def labels(self) -> np.ndarray:
        """The int32 labels `[size]`, by row."""

    def relabeled(self, labels: np.ndarray) -> Images:
        """The same images with other labels `[size]`."""

    def batches(self, rows: np.ndarray, batch_size: int) -> tf.data.Dataset:
        """The rows in their own order; the last batch may be smaller."""

    def shuffled(
        self, rows: np.ndarray, batch_size: int, seed: int, per_epoch: int | None = None
    ) -> tf.data.Dataset:
        """The rows in the order of `(seed, epoch)`; a last batch that is not full is dropped.

        An epoch is a permutation of the rows; where `per_epoch` is given, it is the next so many
        rows of one permutation after another.
        """


class InMemory(Labelled):
    """Images held once as one uint8 tensor, gathered a batch at a time.

    Args:
        images: Array uint8 `[N, H, W, C]`.
        labels: Array of integers `[N]`.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        super().__init__(len(labels), labels)
        with tf.device("CPU:0"):
            self._images = tf.constant(images)

    def batches(self, rows: np.ndarray, batch_size: int) -> tf.data.Dataset:
        """The rows in the order given; the last batch may be smaller."""
        numbers = tf.data.Dataset.from_tensor_slices(rows)
        return self._gathered(numbers.batch(batch_size))

    def shuffled(
        self, rows: np.ndarray, batch_size: int, seed: int, per_epoch: int | None = None
    ) -> tf.data.Dataset:
        """The rows in the order of `(seed, epoch)`; a last batch that is not full is dropped."""

        def order(seeds: tf.Tensor) -> tf.data.Dataset:
            return tf.data.Dataset.from_tensor_slices(permuted(rows, seeds))

        numbers = by_epoch(order, seed, len(rows), per_epoch)
        return self._gathered(numbers.batch(batch_size, drop_remainder=True))

    def _gathered(self, batches: tf.data.Dataset) -> tf.data.Dataset:
        labels = on_cpu(self.labels)

        def gather(rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return tf.gather(self._images, rows), tf.gather(labels, rows)

        return batches.map(gather).prefetch(tf.data.AUTOTUNE)


class ImageFiles(Encoded):
    """Image files that are read and decoded whenever they are needed, for sets beyond memory.

    Args:
        paths: Files that `decoded` can decode.
        labels: Array of integers `[N]`.
        shape: Height, width and 3 channels of every image (once resized).
        image_size: Height and width to resize to; None leaves images as they are.
    """

    def __init__(
        self,
        paths: Sequence[str],
        labels: np.ndarray,
        shape: tuple[int, int, int],
        image_size: tuple[int, int] | None,
    ) -> None:
        super().__init__(len(labels), labels)
        self._paths = on_cpu([os.fsencode(path) for path in paths])
        self._shape, self._image_size = shape, image_size

    def in_order(self, rows: np.ndarray) -> tf.data.Dataset:
        """The rows in the order given, with no bytes: a row tells the file."""
        return tf.data.Dataset.from_tensor_slices(rows).map(_without_bytes)

    def round_of(self, rows: np.ndarray) -> Callable[[tf.Tensor], tf.data.Dataset]:
        """From the seeds of a round to a permutation of the rows, with no bytes."""

        def order(seeds: tf.Tensor) -> tf.data.Dataset:
            return tf.data.Dataset.from_tensor_slices(permuted(rows, seeds)).map(_without_bytes)

        return order

    def decoder(self) -> Decoder:
        """From a row to the image in its file, and its label."""
        labels = on_cpu(self.labels)

        def decode(row: tf.Tensor, _: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            image = decoded(tf.io.read_file(tf.gather(self._paths, row)))
            if self._image_size is not None:
                image = resize(image, self._image_size)
            return tf.ensure_shape(image, self._shape), tf.gather(labels, row)

        return decode


class Streamed(Encoded):
    """Images read from the TFRecord files of a prepared TFDS split, for sets beyond memory.

    The order of an epoch shuffles the files, reads 16 of them in turn and shuffles every 4,096
    images so met; a row is the place of an image in the files.

    Args:
        builder: A prepared builder with the features `image` and `label`.
        split: The name of a split.
        image_size: Height and width to resize to; None leaves images as they are.

    Raises:
        ValueError: If the files are in another format than TFRecord.
    """

    def __init__(
        self, builder: tfds.core.DatasetBuilder, split: str, image_size: tuple[int, int] | None
    ) -> None:
        if builder.info.file_format.value != "tfrecord":
            raise ValueError(
                f"{builder.name!r} does not fit into memory and only TFRecord files are streamed, "
                f"got {builder.info.file_format.value!r}: prepare it with file_format='tfrecord'."
            )
        info = builder.info.splits[split]
        super().__init__(info.num_examples)
        self._features, self._image_size = builder.info.features, image_size
        self._files = np.array([str(path) for path in info.filepaths])
        self._first_rows = np.cumsum([0, *info.shard_lengths[:-1]])

    def in_order(self, rows: np.ndarray) -> tf.data.Dataset:
        """The rows in the order of the files, each with its record."""
        records = self._records().filter(self._is_in(rows)).take(len(rows))
        return records.apply(tf.data.experimental.assert_cardinality(len(rows)))

    def round_of(self, rows: np.ndarray) -> Callable[[tf.Tensor], tf.data.Dataset]:
        """From the seeds of a round to all rows, shuffled as the class says, with their records."""
        is_in, file_numbers = self._is_in(rows), np.arange(len(self._files))

        def shuffle(seeds: tf.Tensor, rows: tf.Tensor, encoded: tf.Tensor) -> tuple[tf.Tensor, ...]:
            places = permuted(tf.range(tf.size(rows)), seeds)
            return tf.gather(rows, places), tf.gather(encoded, places)

        def order(seeds: tf.Tensor) -> tf.data.Dataset:
            files = tf.data.Dataset.from_tensor_slices(permuted(file_numbers, seeds))
            records = files.interleave(self._read, cycle_length=16).filter(is_in)
            # not Dataset.shuffle: its seed would be mixed with the user's global one
            chunks = records.batch(CHUNK).map(lambda *chunk: shuffle(seeds, *chunk))
            return chunks.prefetch(1).unbatch()

        return order

    def _records(self) -> tf.data.Dataset:
        files = np.arange(len(self._files))
        return tf.data.Dataset.from_tensor_slices(files).flat_map(self._read)

    def _read_labels(self) -> np.ndarray:
        import tensorflow_datasets as tfds

        print(f"Reading the labels of {self.size:,} images.")

        def label(_: tf.Tensor, record: tf.Tensor) -> tf.Tensor:
            skip = {"image": tfds.decode.SkipDecoding()}
            return self._features.deserialize_example(record, decoders=skip)["label"]

        labels = self._records().map(label).as_numpy_iterator()
        return np.fromiter(labels, np.int32, self.size)

    def _read(self, file: tf.Tensor) -> tf.data.Dataset:
        records = tf.data.TFRecordDataset(tf.gather(self._files, file))
        return records.enumerate(tf.gather(self._first_rows, file))

    def _is_in(self, rows: np.ndarray) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
        chosen = np.zeros(self.size, bool)
        chosen[rows] = True
        chosen = tf.constant(chosen)
        return lambda row, _: chosen[row]

    def decoder(self) -> Decoder:
        """From a record to its image, and its label."""
        labels = None if self._labels is None else on_cpu(self._labels)

        def decode(row: tf.Tensor, record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            example = self._features.deserialize_example(record)
            image, label = image_and_label(example, self._image_size)
            return image, label if labels is None else tf.gather(labels, row)

        return decode


def image_and_label(
    example: dict[str, tf.Tensor], image_size: tuple[int, int] | None
) -> tuple[tf.Tensor, tf.Tensor]:
    """The image, resized if asked for, and the int32 label of one TFDS example."""
    image = example["image"]
    if image_size is not None:
        image = resize(image, image_size)
    return image, tf.cast(example["label"], tf.int32)


def decoded(encoded: tf.Tensor | bytes) -> tf.Tensor:
    """The uint8 pixels `[H, W, 3]` of a JPEG, PNG, BMP or GIF file (its first frame).

    Grey becomes three equal channels, alpha is dropped, 16 bits are cut to 8. An orientation that a
    camera noted (EXIF) is not applied.
    """
    image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    return tf.ensure_shape(image, (None, None, 3))


def resize(images: tf.Tensor, image_size: tuple[int, int]) -> tf.Tensor:
    """Images `[..., H, W, C]` with values 0 to 255 resized bilinearly (antialiased) to uint8."""
    resized = tf.image.resize(images, image_size, antialias=True)
    return tf.cast(tf.round(resized), tf.uint8)


def _without_bytes(row: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    return row, tf.constant(b"")
