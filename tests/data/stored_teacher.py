"""What the tests of stored teachers share: some images, a tiny teacher, and what a folder holds."""

import keras
import numpy as np

import keras_ssd as ssd
from keras_ssd.data.images import InMemory
from keras_ssd.data.splits import DatasetInfo, Splits
from keras_ssd.data.training import Training

COUNT, BATCH = 23, 5


def splits(seed=0, *, labeled=True, fingerprint="digest", count=COUNT, batch_size=BATCH):
    """23 of 31 images in three classes, in an order of rows that is not that of the files."""
    random, size = np.random.RandomState(0), count + 8
    arrays = InMemory(random.randint(0, 256, (size, 8, 8, 3)).astype("uint8"), np.arange(size) % 3)
    rows = np.random.RandomState(7).permutation(size)
    training = Training(arrays, rows[:count], batch_size, seed, labeled=labeled)
    test = arrays.batches(rows[count:], BATCH)
    grey, counts = (0.5, 0.5, 0.5), {"train": count, "validation": 4, "test": 4}
    info = DatasetInfo("tiny", ("a", "b", "c"), (8, 8, 3), grey, grey, counts, fingerprint)
    return Splits(training.dataset(), test.skip(1), test.take(1), info, training)


def teacher(seed=1, classes=3, scale=1.0, first=None):
    """Raw 8x8 images to logits, a projection and a map."""
    keras.utils.set_random_seed(seed)
    images = keras.Input((8, 8, 3))
    x = keras.layers.Rescaling(1 / 128, -1)(images)
    x = x if first is None else first(x)
    maps = keras.layers.Conv2D(4, 3, strides=2, activation="relu")(x)
    x = keras.layers.GlobalAveragePooling2D()(maps)
    wide = keras.initializers.RandomNormal(stddev=2.0 * scale)
    logits = keras.layers.Dense(classes, kernel_initializer=wide)(x)
    projection = keras.layers.Dense(4)(x)
    return keras.Model(images, {"logits": logits, "projection": projection, "maps": maps})


def cached(folder, network=None, data=None, **options):
    """`cached_teacher` of those above."""
    options = {"outputs": ("logits", "projection"), "dtype": "float32", "verbose": 0, **options}
    return ssd.data.cached_teacher(network or teacher(), data or splits(), folder, **options)


def files(folder):
    """The bytes of each file, without what claims leave behind."""
    found = (path for path in folder.iterdir() if not path.name.startswith(".claim"))
    return {path.name: path.read_bytes() for path in found}


def epoch(dataset, number=0):
    """The batches of an epoch, in NumPy."""
    ssd.callbacks.FollowEpoch(dataset).on_epoch_begin(number)
    return list(dataset.as_numpy_iterator())
