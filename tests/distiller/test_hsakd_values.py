"""The losses of HSAKD at the start, and what its teacher learns by heart."""

import math

import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_ssd as ssd
from keras_ssd.objectives import AuxiliaryLabels, HardLabels

from .hsakd import STILL, distiller, each, preset_of, student_of, teacher_of
from .tiny import fit, sgd, step


@each
def test_equal_logits(method):
    student, teacher = student_of(method), teacher_of(method)
    for one in (student, teacher):
        for layer in [] if one is None else one._flatten_layers():
            if isinstance(layer, layers.Dense) and layer.name != "projection":
                layer.set_weights([np.zeros(weight.shape) for weight in layer.get_weights()])
    shown = step(distiller(method, student=student, teacher=teacher))
    times = 2 if method == "hsakd_online" else 1
    expected = {
        "hard_labels": times * math.log(3),
        "auxiliary_labels": times * 2 * math.log(12),
        "soft_labels": 0,
        "auxiliary_transfer": 0,
    }
    for name in expected.keys() & shown.keys():
        assert shown[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-6), name


LOW, WIDE = (4.4, 4.8), (4.2, 6.0)
RANGES = {  # classes and auxiliary classifiers, of 100 classes: hsakd.md 12.3, with room for seeds
    "resnet20": (LOW, (5.9, 6.8)),
    "resnet8x4": (LOW, (5.9, 6.8)),
    "wrn_16_2": (LOW, (5.9, 6.2)),
    "vgg13": (LOW, (5.9, 6.2)),
    "mobilenet_v2": (LOW, (5.9, 6.2)),
    "shufflenet_v1": (WIDE, (5.9, 7.2)),
    "shufflenet_v2": (LOW, (5.9, 6.2)),
    "resnet50": (WIDE, (5.9, 7.2)),
    "resnet32x4": (WIDE, (5.9, 7.2)),
    "resnet56": (WIDE, (5.9, 7.8)),
}
FAST = ("resnet20", "wrn_16_2")


@pytest.mark.parametrize(
    "name",
    [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in RANGES],
)
def test_losses_of_first_weights(name):
    """32 rows of Gaussian noise in training mode."""
    stem = {"stem_stride": 1} if name == "mobilenet_v2" else {}  # that of HSAKD
    model = ssd.models.build(name, num_classes=100, input_shape=(32, 32, 3), **stem)
    student = ssd.with_auxiliary_classifiers(model)
    images = np.random.default_rng(0).standard_normal((8, 32, 32, 3)).astype("float32")
    views = ssd.views.Rotations(crop=None, flip=False)
    labels = tf.range(8) * 12
    outputs = student(views(images), training=True)
    batch = ssd.Batch(None, labels, None, {}, outputs, num_views=4)

    def value(objective):
        total, count = objective(batch)
        return float(total / count)

    of_classes, of_heads = RANGES[name]
    assert of_classes[0] < value(HardLabels()) < of_classes[1]
    heads = [output for output in outputs if output.startswith("auxiliary_")]
    assert len(heads) == (4 if name in ("vgg13", "mobilenet_v2", "resnet50") else 3)
    for head in heads:
        alone = {"logits": outputs["logits"], "auxiliary_1": outputs[head]}
        batch = ssd.Batch(None, labels, None, {}, alone, num_views=4)
        assert of_heads[0] < value(AuxiliaryLabels()) < of_heads[1], head


@pytest.mark.slow
def test_sixteen_images_are_learnt_by_heart():
    images, labels = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3)), np.arange(16) % 4
    model = ssd.models.build(
        "resnet8", num_classes=4, input_shape=(8, 8, 3), mean=(0.5,) * 3, std=(0.25,) * 3
    )
    model = distiller(
        "hsakd_teacher",
        preset=preset_of("hsakd_teacher", **STILL),
        student=ssd.with_auxiliary_classifiers(model),
        graph=True,
        optimizer=sgd(0.05, momentum=0.9, nesterov=True),
        metrics=["accuracy"],
    )
    images = images.astype("uint8")
    shown = {
        name: values[-1]
        for name, values in fit(model, images, labels, epochs=100, batch_size=16).items()
    }
    assert shown["loss"] < 0.5
    assert shown["accuracy"] == 1
    for head in range(1, 4):
        assert shown[f"auxiliary_{head}_joint_accuracy"] == 1
