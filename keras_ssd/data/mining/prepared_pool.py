"""A set of TensorFlow Datasets as a pool."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from keras_ssd.data.images import decoded
from keras_ssd.data.mining.numbered_pool import NumberedPool
from keras_ssd.data.mining.records import Record

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

_DECODED_BYTES = 2**24  # of images that a thread decodes before it hands them on
_MOST_DECODED, _DECODED_OF_ANY_SIZE = 512, 16  # images that it does


class PreparedPool(NumberedPool):
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


def check_prepared(builder: tfds.core.DatasetBuilder, name: str, split: str) -> None:
    """Refuses a set without images of 8 bits, or without any in the split."""
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
