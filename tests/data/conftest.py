"""Tiny sets in the format of TensorFlow Datasets, and of every other kind."""

import functools

import numpy as np
import pytest
import sklearn.datasets
import tensorflow as tf

from keras_ssd import data
from keras_ssd.data import sources

SOURCES = ("digits", "tfds", "tfds beyond memory", "folder", "folder beyond memory")


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


@pytest.fixture(params=SOURCES)
def any_source(request, tmp_path, monkeypatch):
    """`load` of 60 images to train and some to test, by default in batches of one image."""
    if "beyond memory" in request.param:
        monkeypatch.setattr(sources, "MEMORY_LIMIT", 0)
    if request.param == "digits":
        _few_digits(monkeypatch)
        return functools.partial(data.load, "digits", batch_size=1)
    if request.param.startswith("tfds"):
        folder = _prepare(tmp_path, {"train": 60, "test": 7}, shards=2)
        return functools.partial(data.load, "tiny", batch_size=1, data_dir=folder)
    for split, size in {"train": 60, "test": 7}.items():
        for i in range(size):
            folder = tmp_path / split / "abc"[i % 3]
            folder.mkdir(parents=True, exist_ok=True)
            encoded = tf.io.encode_png(np.full((4, 4, 1), i, np.uint8)).numpy()
            (folder / f"{i}.png").write_bytes(encoded)
    return functools.partial(data.load, tmp_path, batch_size=1)


def _few_digits(monkeypatch):
    digits = sklearn.datasets.load_digits()
    digits.images, digits.target = digits.images[:90], digits.target[:90]
    monkeypatch.setattr(sklearn.datasets, "load_digits", lambda: digits)
