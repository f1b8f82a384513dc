"""Networks of some hundred weights, and a dozen images in three classes.

With KERAS_SSD_FUSED=1 in the environment all networks run the fused kernel of batch normalisation.
"""

import os

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import keras_ssd as ssd
from keras_ssd.objectives import HardLabels, SoftLabels

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3)).astype("uint8")
LABELS = np.arange(12) % 3
ONE_HOT = np.eye(3, dtype="float32")[LABELS]
LABELS_ONLY = {"objectives": [HardLabels()]}
KD = {"objectives": [HardLabels(0.5), SoftLabels(2.0)]}
SSKD = ssd.presets.sskd(padding=1)


class Counter(layers.Layer):
    """Hands its input on and counts, inside the graph, how often it does."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.calls = tf.Variable(0)

    def call(self, x):
        self.calls.assign_add(1)
        return x


def network(width=4, *, seed=0, first=None, batch_norm=True, dropout=0.0, **dense):
    """Raw images in; logits, from a layer with the options `dense`, and a projection out."""
    keras.utils.set_random_seed(seed)
    images = keras.Input((8, 8, 3), dtype="uint8")
    x = layers.Rescaling(1 / 128, -1, dtype="float32")(images)
    x = x if first is None else first(x)
    x = layers.Conv2D(width, 3, strides=2, use_bias=False)(x)
    x = layers.BatchNormalization(momentum=0.9)(x) if batch_norm else x
    x = layers.Dropout(dropout)(layers.GlobalAveragePooling2D()(layers.ReLU()(x)))
    wide = keras.initializers.RandomNormal(stddev=2.0)
    logits = layers.Dense(**{"units": 3, "kernel_initializer": wide, **dense})(x)
    model = keras.Model(images, {"logits": logits, "projection": layers.Dense(4, name="head")(x)})
    return ssd.models.fuse_batch_norm(model) if os.environ.get("KERAS_SSD_FUSED") == "1" else model


def teacher_network(**options):
    return network(6, seed=1, **options)


def sgd(rate=0.1, **options):
    return ssd.optimizers.SGD(rate, **options)


def distiller(preset=SSKD, *, student=None, teacher=None, graph=False, **compiled):
    """A compiled Distiller of the networks above; eager, which is faster for a few steps."""
    reads_teacher = any(objective.teacher_outputs for objective in preset["objectives"])
    teacher = teacher or (teacher_network() if reads_teacher else None)
    model = ssd.Distiller(teacher=teacher, student=student or network(), **preset)
    model.compile(**{"optimizer": sgd(), "run_eagerly": not graph, **compiled})
    return model


def step(model, images=IMAGES, labels=LABELS, weights=None):
    """One training step on one batch; what it shows."""
    model.reset_metrics()  # which newer versions of Keras do themselves
    shown = model.train_on_batch(images, labels, sample_weight=weights, return_dict=True)
    return {name: float(value) for name, value in shown.items()}


def fit(model, images=IMAGES, labels=LABELS, **options):
    """Training in an order that does not change; the history."""
    options = {"batch_size": 5, "shuffle": False, "verbose": 0, **options}
    return model.fit(images, labels, **options).history


def evaluate(model, images=IMAGES, labels=LABELS, **options):
    return model.evaluate(images, labels, batch_size=5, verbose=0, return_dict=True, **options)


def trained(model):
    """Copies of what training moves."""
    return [v.numpy() for v in model.student.trainable_variables]


def everything(model):
    """Copies of all variables, random states and optimizer included."""
    return [v.numpy() for v in [*model.variables, *model.optimizer.variables]]


def assert_equal(got, expected):
    """Bit for bit."""
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def assert_close(got, expected, tolerance):
    """Norm of the difference over norm, all arrays as one."""
    got, expected = (np.concatenate([np.ravel(x) for x in arrays]) for arrays in (got, expected))
    assert np.linalg.norm(got - expected) <= tolerance * np.linalg.norm(expected)


def differs(got, expected):
    return any((one != other).any() for one, other in zip(got, expected, strict=True))
