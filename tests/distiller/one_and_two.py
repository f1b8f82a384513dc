"""Tiny networks and images, and one Distiller on one device beside the same on two replicas."""

import keras
import numpy as np
import tensorflow as tf
from weights import numbered

import keras_ssd as ssd
from keras_ssd.layers import BatchNormalization


def network(width, batch_norm=None, *, seed=1, regularizer=None, on_embedding=None):
    """8x8 images to 3 logits and a projection, with weights that tell images apart.

    `batch_norm` is None, "own" (each replica by itself) or "synchronized".
    """
    images = keras.Input((8, 8, 3))
    rows = keras.layers.Rescaling(1 / 127.5, -1)(images)
    for strides in (1, 2):
        rows = keras.layers.Conv2D(
            width, 3, strides, "same", use_bias=False, kernel_regularizer=regularizer
        )(rows)
        if batch_norm is not None:
            rows = BatchNormalization(momentum=0.9, synchronized=batch_norm == "synchronized")(rows)
        rows = keras.layers.ReLU()(rows)
    rows = keras.layers.GlobalAveragePooling2D(name="embedding")(rows)
    rows = rows if on_embedding is None else on_embedding(rows)
    model = ssd.with_projection(keras.Model(images, keras.layers.Dense(3, name="logits")(rows)))
    return numbered(model, seed)


def examples(count, *, seed=0):
    """Images of a colour each, with noise (uint8 `[count, 8, 8, 3]`), and labels in 0..2."""
    random = np.random.RandomState(seed)
    colours = random.uniform(40, 215, (count, 1, 1, 3))
    images = np.clip(colours + 40 * random.standard_normal((count, 8, 8, 3)), 0, 255)
    return images.astype("uint8"), random.randint(0, 3, count)


def batches(*arrays, size=10):
    """A data set with global batches of `size`, the last one with the rest."""
    return tf.data.Dataset.from_tensor_slices(arrays).batch(size)


def sgd(**options):
    return ssd.optimizers.SGD(0.05, momentum=0.9, weight_decay=5e-4, **options)


def sskd(student, *, optimizer=sgd, preset=None, **compiled):
    """A compiled Distiller, by default of SSKD complete."""
    teacher = network(8, "own", seed=0)
    model = ssd.Distiller(teacher, student, **(preset or ssd.presets.sskd()))
    model.compile(optimizer(), **compiled)
    return model


def on_one_and_two(strategy, make):
    """What `make()` gives on one device, and the same with the same weights on both replicas."""
    one = make()
    with strategy.scope():
        two = make()
    two.student.set_weights(one.student.get_weights())
    return one, two


def local_values(strategy, variables):
    """The values on each replica, of each variable."""
    parts = [strategy.experimental_local_results(variable.value) for variable in variables]
    return [[part.numpy() for part in replicas] for replicas in parts]


def assert_close(actual, expected, tolerance):
    """Compares variables one by one: norm of the difference over norm."""
    for value, reference in zip(actual, expected, strict=True):
        difference = np.linalg.norm(value.numpy() - reference.numpy())
        assert difference <= tolerance * np.linalg.norm(reference.numpy()), reference.path
