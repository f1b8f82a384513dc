"""Averages of the weights, by Keras' `use_ema`, after `Distiller.fit`."""

import keras
import numpy as np
import pytest

from .one_and_two import batches, examples, local_values
from .one_and_two import network as for_replicas
from .tiny import (
    IMAGES,
    LABELS,
    LABELS_ONLY,
    assert_close,
    assert_equal,
    distiller,
    evaluate,
    everything,
    fit,
    network,
    sgd,
    trained,
)

MOMENTUM = 0.6


def averaging(student=None, **options):
    optimizer = sgd(momentum=0.9, use_ema=True, ema_momentum=MOMENTUM)
    return distiller(LABELS_ONLY, student=student or network(), optimizer=optimizer, **options)


class Recorded(keras.callbacks.Callback):
    """The weights after each step, as they are trained."""

    def __init__(self):
        super().__init__()
        self.weights = []

    def on_train_batch_end(self, batch, logs=None):  # noqa: ARG002
        self.weights.append(trained(self.model))


def averaged(steps):
    """The recurrence, in float64, begun with the weights after the first step."""
    averages = [weight.astype("float64") for weight in steps[0]]
    for weights in steps[1:]:
        averages = [
            MOMENTUM * average + (1 - MOMENTUM) * weight
            for average, weight in zip(averages, weights, strict=True)
        ]
    return averages


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_the_student_ends_as_the_average(policy):
    keras.config.set_dtype_policy(policy)
    model, recorded = averaging(), Recorded()
    fit(model, epochs=2, callbacks=[recorded])
    assert len(recorded.weights) == 6
    assert_close(trained(model), averaged(recorded.weights), 1e-6)
    assert not np.allclose(trained(model)[0], recorded.weights[-1][0], rtol=1e-3)


def test_validation_inside_sees_the_weights_that_are_trained():
    """Keras puts the averages into their place only when `fit` ends, or by `SwapEMAWeights`."""
    raw, swapped = averaging(), averaging()
    recorded = Recorded()
    data = {"validation_data": (IMAGES, LABELS), "epochs": 2}
    history = fit(raw, callbacks=[recorded], **data)
    shown = fit(swapped, callbacks=[keras.callbacks.SwapEMAWeights()], **data)
    for model in (raw, swapped):
        assert_close(trained(model), averaged(recorded.weights), 1e-5)
    end = evaluate(raw)["loss"]
    np.testing.assert_allclose(shown["val_loss"][-1], end, rtol=1e-5)
    for variable, value in zip(raw.student.trainable_variables, recorded.weights[-1], strict=True):
        variable.assign(value)
    np.testing.assert_allclose(history["val_loss"][-1], evaluate(raw)["loss"], rtol=1e-5)
    assert abs(history["val_loss"][-1] - end) > 1e-3


def test_the_averages_are_saved(tmp_path):
    model = averaging()
    fit(model)
    model.save(tmp_path / "run.keras")
    loaded = keras.models.load_model(tmp_path / "run.keras")
    assert_equal(everything(loaded), everything(model))
    for each in (model, loaded):
        fit(each)
    assert_equal(everything(loaded), everything(model))


def test_on_two_replicas(two_replicas):
    images, labels = examples(18)
    with two_replicas.scope():
        model = averaging(for_replicas(4), graph=True)
    recorded = Recorded()
    model.fit(batches(images, labels, size=9), epochs=2, callbacks=[recorded], verbose=0)
    assert len(recorded.weights) == 4
    assert_close(trained(model), averaged(recorded.weights), 1e-6)
    for first, second in local_values(two_replicas, model.student.trainable_variables):
        np.testing.assert_array_equal(first, second)
