"""Networks of a few hundred weights and a dozen 8x8 images in three classes."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import keras_ssd as ssd
from keras_ssd import objectives

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3)).astype("uint8")
LABELS = np.arange(12) % 3
SSKD = ssd.presets.sskd(padding=1)


class Counter(layers.Layer):
    """Hands its input on and counts how often, inside the graph."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.calls = tf.Variable(0)

    def call(self, x):
        self.calls.assign_add(1)
        return x


def network(width=4, *, seed=0, batch_norm=True, dropout=0.0, counter=None, classes=3, **dense):
    """Raw images in, logits and a projection out; `dense` goes to the layer of the logits."""
    keras.utils.set_random_seed(seed)
    images = keras.Input((8, 8, 3), dtype="uint8")
    x = layers.Rescaling(1 / 128, -1, dtype="float32")(images)
    x = x if counter is None else counter(x)
    x = layers.Conv2D(width, 3, strides=2, use_bias=False)(x)
    x = layers.BatchNormalization(momentum=0.9)(x) if batch_norm else x
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(x))
    x = layers.Dropout(dropout)(x)
    logits = layers.Dense(classes, kernel_initializer="random_normal", **dense)(x)
    return keras.Model(images, {"logits": logits, "projection": layers.Dense(4)(x)})


def teacher(**options):
    return network(6, seed=1, **options)


def sgd(rate=0.1, **options):
    return ssd.optimizers.SGD(rate, **options)


def distiller(student=None, *, teacher_is=None, compiled=None, preset=SSKD, **options):
    """A Distiller, compiled with `compiled`; the student and the teacher are those above."""
    options = {**preset, **options}
    reads_teacher = any(objective.teacher_outputs for objective in options["objectives"])
    model = ssd.Distiller(
        teacher=teacher_is or (teacher() if reads_teacher else None),
        student=student or network(),
        **options,
    )
    model.compile(**{"optimizer": sgd(), "run_eagerly": True, **(compiled or {})})
    return model


def numbers(model):
    """Copies of all variables, random states and optimizer included."""
    variables = [*model.variables, *model.optimizer.variables]
    return [keras.ops.convert_to_numpy(variable) for variable in variables]


def weights(network):
    return [weight.copy() for weight in network.get_weights()]


def assert_same(got, expected, **tolerance):
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one, other, **{"rtol": 0, "atol": 0, **tolerance})


LABELS_ONLY = {"objectives": [objectives.HardLabels()], "views": None}
