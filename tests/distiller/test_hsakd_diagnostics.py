"""HSAKD, the combination and two peers inside the Distiller: what they show."""

import keras
import numpy as np
import pytest

import keras_ssd as ssd
from keras_ssd.objectives import AuxiliaryTransfer

from .hsakd import (
    STILL,
    TAUGHT,
    diagnostics_of,
    distiller,
    heads_of,
    preset_of,
    some,
    uneven_examples,
)
from .tiny import IMAGES, LABELS, evaluate, fit, sgd, step


@some("hsakd_teacher", "combined", "hsakd_online")
def test_diagnostics_are_shown_where_the_terms_are(method):
    model = distiller(method, evaluate_views=False)
    expected = diagnostics_of(method)
    training = fit(model, validation_data=(IMAGES[:5], LABELS[:5]), batch_size=12)
    assert {name for name in training if "accuracy" in name} == expected
    assert "val_loss" in training
    model.compile(model.optimizer, run_eagerly=True, evaluate_views=True)
    evaluated = evaluate(model, IMAGES[:5], LABELS[:5])
    assert {name for name in evaluated if "accuracy" in name} == expected


@some("hsakd_teacher", "combined", "hsakd_online")
def test_diagnostics_switched_off(method):
    preset = preset_of(method, diagnostics=False)
    model = distiller(method, preset=preset, evaluate_views=True)
    terms = {objective.name for objective in model.objectives} | {"loss"}
    agreement = {"teacher_agreement"} if method in TAUGHT else set()
    shown = step(model).keys(), evaluate(model, IMAGES[:5], LABELS[:5]).keys()
    assert shown == (terms | agreement, terms | agreement)


def test_no_diagnostics_without_labels():
    preset = {"objectives": [AuxiliaryTransfer()], "views": ssd.views.Rotations(padding=1)}
    model = distiller("hsakd", preset=preset, evaluate_views=True)
    shown = {"loss", "auxiliary_transfer", "teacher_agreement"}
    assert step(model, labels=None).keys() == shown
    assert evaluate(model, IMAGES[:5], None).keys() == shown


def numpy_accuracies(rows, labels):
    """Right rows by diagnostic, of joint logits `[B, 4, 3, 4]` (image, view, class, view)."""
    rows = rows.astype("float64")
    probabilities = np.exp(rows) / np.exp(rows).sum(axis=(2, 3), keepdims=True)
    image, view = np.meshgrid(np.arange(len(rows)), np.arange(4), indexing="ij")
    own_view = rows[image, view, :, view]  # [B, 4, 3]
    classes = labels[:, None]
    return {
        "joint_accuracy": rows.reshape(-1, 4, 12).argmax(-1) == 4 * classes + view,
        "class_accuracy": rows.sum(-1).argmax(-1) == classes,
        "class_accuracy_marginal": probabilities.sum(-1).argmax(-1) == classes,
        "class_accuracy_known_rotation": own_view.argmax(-1) == classes,
        "rotation_accuracy": probabilities.sum(-2).argmax(-1) == view,
    }


@pytest.mark.parametrize("method", ["hsakd", "hsakd_online"])
def test_diagnostics_of_an_epoch_of_uneven_batches(method):
    """Labeled images of a weight above 0 count alike, in whichever batch they are."""
    images, labels, weights = uneven_examples()
    preset = preset_of(method, **STILL)
    model = distiller(method, preset=preset, optimizer=sgd(0.0), evaluate_views=True)
    shown = fit(model, images, labels, sample_weight=weights, batch_size=9)
    evaluated = model.evaluate(
        images, labels, sample_weight=weights, batch_size=10, verbose=0, return_dict=True
    )
    outputs = model.student(ssd.views.Rotations(crop=None, flip=False)(images, None))
    counted = (labels >= 0) & (weights > 0)
    assert 8 < counted.sum() < 20
    checked = set()
    for head in heads_of(method):
        right = numpy_accuracies(outputs[head].numpy().reshape(-1, 4, 3, 4), labels)
        for name, hits in right.items():
            expected = hits[counted].mean()
            checked.add(expected)
            assert shown[f"{head}_{name}"] == [pytest.approx(expected)], name
            assert evaluated[f"{head}_{name}"] == pytest.approx(expected), name
    assert len(checked) > 6  # most of them differ


@pytest.mark.parametrize(
    "monitor",
    ["auxiliary_2_joint_accuracy", "val_auxiliary_1_rotation_accuracy", "val_auxiliary_transfer"],
)
def test_callbacks_know_which_way_is_better(monitor):
    callback = keras.callbacks.EarlyStopping(monitor)
    model = distiller("hsakd", evaluate_views=True)
    fit(model, callbacks=[callback], validation_data=(IMAGES[:5], LABELS[:5]), batch_size=12)
    worse, better = (1.0, 0.5) if monitor == "val_auxiliary_transfer" else (0.5, 1.0)
    assert callback.monitor_op(better, worse)
    assert callback.best == model.history.history[monitor][0]
