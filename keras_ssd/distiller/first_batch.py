"""The first batch of what `fit` is given, and how many there are, without using them up."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_ssd.arguments import check_count


def first_batch(x: Any, y: Any = None, sample_weight: Any = None, batch_size: int = 32) -> Any:
    """One batch as a step is given it.

    Args:
        x: A `tf.data.Dataset` (which is begun once more for it), a `keras.utils.PyDataset`, or
            images, or a dict of arrays.
        y: As in `fit`.
        sample_weight: As in `fit`.
        batch_size: How many images are taken out of arrays, evenly spread: `fit` shuffles them.

    Returns:
        The batch, or None where none is seen without using it up (a generator), or there is none.

    Raises:
        ValueError: If arrays are not equally long, or `batch_size` is no number of images.
    """
    if isinstance(x, tf.data.Dataset):
        return next(iter(x.take(1)), None)
    if isinstance(x, keras.utils.PyDataset):
        return None if x.num_batches == 0 else x[0]
    arrays = [a for a in keras.tree.flatten((x, y, sample_weight)) if a is not None]
    check_count("batch_size", batch_size)
    are_arrays = all(hasattr(array, "shape") and len(array.shape) for array in arrays)
    if not arrays or not are_arrays or not len(arrays[0]):
        return None
    lengths = {len(array) for array in arrays}
    if len(lengths) > 1:
        raise ValueError(f"Images, labels and weights must be as many, got {sorted(lengths)}.")
    rows = np.unique(np.linspace(0, len(arrays[0]) - 1, batch_size).round().astype(int))
    x, y, sample_weight = keras.tree.map_structure(
        lambda a: None if a is None else _taken(a, rows), (x, y, sample_weight)
    )
    return keras.utils.pack_x_y_sample_weight(x, y, sample_weight)


def num_batches(x: Any, batch_size: int = 32) -> int | None:
    """The number of batches of an epoch, None where it is not known."""
    if isinstance(x, tf.data.Dataset):
        count = int(x.cardinality())
        return count if count >= 0 else None
    if isinstance(x, keras.utils.PyDataset):
        return x.num_batches
    return -(-len(keras.tree.flatten(x)[0]) // batch_size)


def _taken(array: Any, rows: np.ndarray) -> Any:
    return tf.gather(array, rows) if tf.is_tensor(array) else np.asarray(array)[rows]
