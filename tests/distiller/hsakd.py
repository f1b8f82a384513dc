"""What the tests of HSAKD share: a network with auxiliary classifiers, and each preset on it."""

import keras
import numpy as np
import pytest
from keras import layers
from weights import numbered

import keras_ssd as ssd
from keras_ssd.layers import BatchNormalization

from . import one_and_two
from .tiny import sgd

METHODS = ["hsakd_teacher", "hsakd", "combined_teacher", "combined", "hsakd_online"]
TAUGHT = {"hsakd", "combined"}
DIAGNOSTICS = [
    "joint_accuracy",
    "class_accuracy",
    "class_accuracy_marginal",
    "class_accuracy_known_rotation",
    "rotation_accuracy",
]
each = pytest.mark.parametrize("method", METHODS)
SLOW = pytest.mark.slow


def some(*fast):
    """Parametrizes by method; all but `fast` are slow, as those cover their objectives."""
    methods = [m if m in fast else pytest.param(m, marks=SLOW) for m in METHODS]
    return pytest.mark.parametrize("method", methods)


def network(
    width=4,
    *,
    seed=1,
    heads=2,
    classes=3,
    views=4,
    projection=True,
    batch_norm=None,
    dropout=0.0,
    first=None,
):
    """8x8 images to logits, auxiliary classifiers and a projection; weights that tell images apart.

    `batch_norm` is None, "own" (each replica by itself) or "synchronized".
    """

    def convolution(x, strides=1):
        x = layers.Conv2D(width, 3, strides, "same", use_bias=batch_norm is None)(x)
        if batch_norm is not None:
            x = BatchNormalization(momentum=0.9, synchronized=batch_norm == "synchronized")(x)
        return layers.ReLU()(x)

    images = keras.Input((8, 8, 3))
    x = layers.Rescaling(1 / 127.5, -1)(images)
    x = x if first is None else first(x)
    taps = []
    for _ in range(heads):
        taps.append(x := convolution(x, strides=2))
    pool = layers.GlobalAveragePooling2D()
    vector = layers.Dropout(dropout)(pool(x)) if dropout else pool(x)
    outputs = {"logits": layers.Dense(classes, name="logits")(vector)}
    for head, tap in enumerate(taps, start=1):
        rows = layers.Dense(classes * views, name=f"head_{head}")(layers.Flatten()(tap))
        outputs[f"auxiliary_{head}"] = rows
    if projection:
        outputs["projection"] = layers.Dense(4, name="projection")(vector)
    model = keras.Model(images, outputs, name="net")
    model.dtype_policy = keras.config.dtype_policy()
    return numbered(model, seed, 1.5)


def student_of(method, **options):
    options = {"projection": "combined" in method, **options}
    student = network(**options)
    if method != "hsakd_online":
        return student
    return ssd.with_peer(student, network(**{**options, "width": 5, "seed": 2}))


def teacher_of(method):
    return network(8, seed=0) if method in TAUGHT else None


def preset_of(method, **options):
    return getattr(ssd.presets, method)(**{"padding": 1, **options})


STILL = {"crop": None, "flip": False}  # views without chance


def distiller(method, *, preset=None, student=None, teacher=None, graph=False, **compiled):
    """A compiled Distiller of the networks above; eager, which is faster for a few steps."""
    model = ssd.Distiller(
        teacher or teacher_of(method),
        student or student_of(method),
        **(preset or preset_of(method)),
    )
    model.compile(**{"optimizer": sgd(0.02), "run_eagerly": not graph, **compiled})
    return model


def heads_of(method):
    names = ["auxiliary_1", "auxiliary_2"]
    return names + [f"peer_{name}" for name in names] * (method == "hsakd_online")


def diagnostics_of(method):
    return {f"{head}_{name}" for head in heads_of(method) for name in DIAGNOSTICS}


def uneven_examples():
    """23 images; some have no label, some no weight."""
    images, labels = one_and_two.examples(23)
    random = np.random.RandomState(5)
    labels = np.where(random.rand(23) < 0.2, -1, labels)
    weights = random.uniform(0.5, 2, 23) * (random.rand(23) > 0.2)
    return images, labels, weights
