"""Tiny sets in the format of TensorFlow Datasets."""

import functools

import numpy as np
import pytest


@pytest.fixture
def prepare(tmp_path):
    """A function that writes a TFDS set called `tiny` and returns the folder it lies in.

    Every pixel of image i of a split has the value i, its label is i % 3.
    """
    return functools.partial(_prepare, tmp_path)


def _prepare(folder, splits, *, image_shape=(4, 4, 1), drop=(), shards=1, **replaced):
    import tensorflow_datasets as tfds

    def example(i):
        shape = [5 + i % 2 if side is None else side for side in image_shape]
        pixels = np.full(shape, i, features["image"].np_dtype)
        return {"image": pixels, "label": i % 3}

    features = {
        "image": tfds.features.Image(shape=image_shape),
        "label": tfds.features.ClassLabel(names=["a", "b", "c"]),
        **replaced,
    }
    kept = [key for key in features if key not in drop]
    tfds.dataset_builders.store_as_tfds_dataset(
        name="tiny",
        version="1.0.0",
        features=tfds.features.FeaturesDict({key: features[key] for key in kept}),
        split_datasets={
            split: [(i, {key: example(i)[key] for key in kept}) for i in range(size)]
            for split, size in splits.items()
        },
        data_dir=folder / "tfds",
        disable_shuffling=True,
        download_config=tfds.download.DownloadConfig(num_shards=shards),
    )
    return folder
