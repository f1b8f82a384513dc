"""Clipping, loss scaling and averaging on two replicas are those of one device."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from replicas import on_replicas

import keras_ssd as ssd
from keras_ssd.distiller.gradients import shared_gradients

from .one_and_two import (
    assert_close,
    batches,
    examples,
    local_values,
    network,
    on_one_and_two,
    sgd,
    sskd,
)

IMAGES, LABELS = examples(37)

# Gradients [3, 0] and [2] on one replica, [0, 4] and [10] on the other: the sums are [3, 4], [12].
CLIPPED = {  # name: (options of the optimizer, the sums after clipping)
    "clipnorm": ({"clipnorm": 1.0}, [[0.6, 0.8], [1.0]]),
    "clipnorm above every norm": ({"clipnorm": 100.0}, [[3, 4], [12]]),
    "global_clipnorm": ({"global_clipnorm": 1.3}, [[0.3, 0.4], [1.2]]),
    "clipvalue": ({"clipvalue": 3.5}, [[3, 3.5], [3.5]]),
    "scaled": ({"loss_scale_factor": 8.0}, [[3, 4], [12]]),
    "clipnorm, scaled": ({"clipnorm": 0.5, "loss_scale_factor": 2.0}, [[0.6, 0.8], [1.0]]),
    "clipvalue, scaled": ({"clipvalue": 1.75, "loss_scale_factor": 2.0}, [[3, 3.5], [3.5]]),
}


def shared(strategy, optimizer, second=(0.0, 4.0)):
    """`shared_gradients` on each replica, as lists of arrays."""
    pairs = ([3.0, 0.0], list(second)), ([2.0], [10.0])
    tensors = [[tf.constant(part, tf.float64) for part in pair] for pair in pairs]
    results = on_replicas(strategy, lambda *g: shared_gradients(list(g), optimizer), *tensors)
    return [[gradient.numpy() for gradient in replica] for replica in results]


@pytest.mark.parametrize("case", CLIPPED)
def test_the_sum_over_replicas_is_clipped(two_replicas, case):
    options, sums = CLIPPED[case]
    with two_replicas.scope():
        optimizer = sgd(**options)
    for replica in shared(two_replicas, optimizer):
        for gradient, total in zip(replica, sums, strict=True):
            np.testing.assert_allclose(2 * gradient, total, rtol=1e-14)


@pytest.mark.parametrize("options", [{}, {"clipnorm": 0.0}, {"use_ema": True}], ids=str)
def test_gradients_stay_local_where_keras_needs_no_help(two_replicas, options):
    with two_replicas.scope():
        optimizer = sgd(**options)
    first, second = shared(two_replicas, optimizer)
    assert [gradient.tolist() for gradient in first] == [[3, 0], [2]]
    assert [gradient.tolist() for gradient in second] == [[0, 4], [10]]


def test_one_replica_gets_its_gradients_back():
    gradients = [tf.constant([3.0])]
    assert shared_gradients(gradients, sgd(clipnorm=1.0)) is gradients


@pytest.mark.parametrize("broken", [np.inf, -np.inf, np.nan], ids=str)
@pytest.mark.parametrize(
    "options", [{}, {"clipnorm": 1.0}, {"global_clipnorm": 1.0}, {"clipvalue": 1.0}], ids=str
)
def test_an_overflow_on_one_replica_is_seen_on_both(two_replicas, options, broken):
    with two_replicas.scope():
        optimizer = keras.optimizers.LossScaleOptimizer(sgd(**options))
        optimizer.build([keras.Variable([0.0, 0.0]), keras.Variable([0.0])])
    for first, _ in shared(two_replicas, optimizer, second=(0.0, broken)):
        assert not np.isfinite(first).all()


# A whole training.


OPTIONS = {  # small enough to act
    "clipnorm": {"clipnorm": 0.01},
    "global_clipnorm, scaled": {"global_clipnorm": 0.02, "loss_scale_factor": 1024.0},
    "clipvalue": {"clipvalue": 1e-3},
}


@pytest.mark.parametrize("case", OPTIONS)
def test_clipped_training_is_that_of_one_device(two_replicas, float64, case):
    def make():
        return sskd(network(4), optimizer=lambda: sgd(**OPTIONS[case]))

    one, two = on_one_and_two(two_replicas, make)
    for model in (one, two):
        model.fit(batches(IMAGES, LABELS), verbose=0)
    assert_close(two.student.weights, one.student.weights, 1e-10)
    start = network(4).weights
    with pytest.raises(AssertionError):
        assert_close(one.student.weights, start, 1e-6)
    assert_close(one.student.weights[:2], start[:2], 1e-2)  # unclipped they move by more


def test_averaged_weights_are_those_of_one_device(two_replicas, float64):
    def make():
        optimizer = lambda: keras.optimizers.Adam(1e-2, use_ema=True, ema_momentum=0.9)  # noqa: E731
        return sskd(network(4), optimizer=optimizer, preset=ssd.presets.kd())

    one, two = on_one_and_two(two_replicas, make)
    for model in (one, two):
        model.fit(batches(IMAGES, LABELS), verbose=0)
    assert_close(two.optimizer.variables, one.optimizer.variables, 1e-10)
    assert_close(two.student.weights, one.student.weights, 1e-10)


REFUSED = {  # name: (options of the optimizer, options of `compile`)
    "gradient_accumulation_steps": ({"gradient_accumulation_steps": 2}, {}),
    "ema_overwrite_frequency": ({"use_ema": True, "ema_overwrite_frequency": 2}, {}),
    "jit_compile=True": ({}, {"jit_compile": True}),
    "steps_per_execution=3": ({}, {"steps_per_execution": 3}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_keras_cannot_do_on_several_replicas_is_refused(two_replicas, case):
    options, compiled = REFUSED[case]

    def make():
        preset = ssd.presets.labels_only()
        return sskd(network(4), optimizer=lambda: sgd(**options), preset=preset, **compiled)

    make()
    with two_replicas.scope(), pytest.raises(ValueError, match=f"`{case}` does not work on 2 rep"):
        make()


def test_a_loss_that_is_no_mean_over_images_is_refused(two_replicas):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")
    with two_replicas.scope(), pytest.raises(ValueError, match="`reduction='sum'` cannot be that"):
        sskd(network(4), preset=ssd.presets.labels_only(), loss=loss)


# Loss scaling.


@keras.saving.register_keras_serializable("tests")
class Spike(ssd.objectives.Objective):
    """Logits of the images of class 2 times a number that float16 does not hold."""

    needs_labels = True
    student_outputs = ("logits",)

    def __call__(self, batch):
        logits = tf.cast(batch.select(batch.student["logits"], "plain"), tf.float32)
        factors = tf.where(batch.labels_of("plain") == 2, 1e30, 1.0)
        return tf.reduce_sum(factors * logits[:, 0]), tf.cast(tf.shape(logits)[0], tf.float32)


@pytest.mark.parametrize(
    ("image", "options"), [(3, {}), (16, {"clipvalue": 1e-3})], ids=["first", "second, clipped"]
)
def test_an_overflow_on_one_replica_skips_the_step_on_both(two_replicas, image, options):
    keras.config.set_dtype_policy("mixed_float16")
    labels = np.zeros(20, "int32")
    spiked = np.where(np.arange(20) == image, 2, labels)

    def optimizer():
        inner = sgd(**options)
        return keras.optimizers.LossScaleOptimizer(
            inner, initial_scale=1024.0, dynamic_growth_steps=2
        )

    def make():
        preset = {"objectives": [Spike()], "views": ssd.views.Plain(crop=True, flip=True)}
        return sskd(network(4), optimizer=optimizer, preset=preset)

    models = on_one_and_two(two_replicas, make)
    for model in models:
        before = local_values(two_replicas, model.student.weights)
        model.fit(batches(IMAGES[:20], spiked, size=20), verbose=0)
        np.testing.assert_equal(local_values(two_replicas, model.student.weights), before)
        assert model.optimizer.dynamic_scale.numpy() == 512
        assert model.optimizer.iterations.numpy() == 0

        model.fit(batches(IMAGES[:20], labels, size=20), epochs=2, verbose=0)
        assert model.optimizer.dynamic_scale.numpy() == 1024  # grown after two clean steps
        assert model.optimizer.iterations.numpy() == 2
        assert all(np.isfinite(weight).all() for weight in model.student.get_weights())
    one, two = models
    assert_close(two.student.weights, one.student.weights, 1e-3)
    with pytest.raises(AssertionError):
        np.testing.assert_equal(local_values(two_replicas, two.student.weights), before)
    for first, second in local_values(two_replicas, two.optimizer.variables):
        np.testing.assert_array_equal(first, second)
