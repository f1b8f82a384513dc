import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import golden_cases

from keras_ssd import schedules

STEPS = 782  # an epoch of SSKD: 50,000 images in batches of 64


@pytest.mark.parametrize("case", golden_cases("optimizer", "multistep_lr"))
def test_golden(case):
    params = case["params"]
    schedule = schedules.steps_at(
        params["base_lr"],
        epochs=params["milestones"],
        factor=params["gamma"],
        steps_per_epoch=STEPS,
    )
    for epoch, rate in zip(
        case["inputs"]["epoch_index_from_zero"], case["expected"]["lr"], strict=True
    ):
        first, last = schedule(epoch * STEPS), schedule(epoch * STEPS + STEPS - 1)
        np.testing.assert_allclose([first, last], rate, rtol=1e-15)


def test_the_rate_drops_at_the_first_step_of_the_epoch():
    schedule = schedules.steps_at(0.5, epochs=[150], factor=0.5, steps_per_epoch=STEPS)
    assert [float(schedule(150 * STEPS + offset)) for offset in (-1, 0)] == [0.5, 0.25]


def test_steps_without_epochs_or_from_the_first_epoch():
    assert float(schedules.steps_at(0.05, epochs=[], steps_per_epoch=7)(10_000)) == 0.05
    assert float(schedules.steps_at(0.5, epochs=[0], factor=2, steps_per_epoch=7)(0)) == 1.0


def test_cosine():
    schedule = schedules.cosine(0.4, epochs=2, steps_per_epoch=3, final=0.1)
    expected = [0.1 + 0.3 * (1 + math.cos(math.pi * min(s, 6) / 6)) / 2 for s in range(9)]
    np.testing.assert_allclose([schedule(step) for step in range(9)], expected, rtol=1e-15)
    assert float(schedule(0)) == 0.4
    assert float(schedule(6)) == float(schedule(10**9)) == 0.1


def test_warm_up_rises_in_a_line_and_shifts_what_follows():
    after = schedules.steps_at(0.5, epochs=[3], factor=0.5, steps_per_epoch=2)
    schedule = schedules.warm_up(after, epochs=2, steps_per_epoch=2, start=0.1)
    rates = [float(schedule(step)) for step in range(14)]
    np.testing.assert_allclose(rates[:4], [0.1, 0.2, 0.3, 0.4], rtol=1e-15)
    assert rates[4:] == [0.5] * 6 + [0.25] * 4  # epoch 3 of the schedule is epoch 5 of all


def test_warm_up_of_a_schedule_of_keras():
    after = keras.optimizers.schedules.ExponentialDecay(0.5, decay_steps=1, decay_rate=0.5)
    schedule = schedules.warm_up(after, epochs=1, steps_per_epoch=2)
    assert [float(schedule(step)) for step in range(5)] == [0.0, 0.25, 0.5, 0.25, 0.125]


@pytest.mark.parametrize("base", [0.4, 3.65625])
def test_the_schedule_of_ssld(base):
    """Linear from 0 over five epochs, then half a cosine to 0, both by the step."""
    warm, steps = 5 * 7, 360 * 7
    falling = schedules.cosine(base, epochs=355, steps_per_epoch=7)
    schedule = schedules.warm_up(falling, epochs=5, steps_per_epoch=7)
    assert float(schedule(0)) == 0
    assert float(schedule(warm)) == base
    middle = [float(schedule(step)) for step in ((warm + steps) // 2, (warm + steps + 1) // 2)]
    np.testing.assert_allclose(np.mean(middle), base / 2, rtol=1e-12)
    assert float(schedule(steps)) == 0
    for step in (1, 17, 34):
        np.testing.assert_allclose(schedule(step), base * step / warm, rtol=1e-14)
    for step in (36, 1000, 2519):
        progress = (step - warm) / (steps - warm)
        expected = base * 0.5 * (1 + math.cos(math.pi * progress))
        np.testing.assert_allclose(schedule(step), expected, rtol=1e-10)


def all_schedules():
    falling = schedules.steps_at(0.05, epochs=[1, 3], steps_per_epoch=2)
    smooth = schedules.cosine(0.05, epochs=5, steps_per_epoch=2, final=1e-3)
    rising = schedules.warm_up(smooth, epochs=2, steps_per_epoch=2, start=1e-4)
    return {"steps_at": falling, "cosine": smooth, "warm_up": rising}


@pytest.mark.parametrize("name", all_schedules())
def test_saved_and_read_back(name):
    schedule = all_schedules()[name]
    copies = [
        keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(schedule)),
        type(schedule).from_config(schedule.get_config()),
        type(schedule).from_config(schedule.get_config()),  # from_config takes nothing away
    ]
    for copy in copies:
        assert [float(copy(s)) for s in range(12)] == [float(schedule(s)) for s in range(12)]


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("name", all_schedules())
def test_in_a_graph_it_is_float64_for_any_type_of_step(name, jit_compile):
    schedule = all_schedules()[name]
    compiled = tf.function(schedule, jit_compile=jit_compile)
    for dtype in (tf.int64, tf.int32):
        rates = [compiled(tf.constant(step, dtype)) for step in (0, 3, 9)]
        assert rates[0].dtype == tf.float64
        np.testing.assert_allclose(rates, [schedule(step) for step in (0, 3, 9)], rtol=1e-14)


@pytest.mark.parametrize("name", all_schedules())
def test_on_a_tpu_it_is_float32(name, monkeypatch):
    monkeypatch.setattr(tf.distribute, "TPUStrategy", type(tf.distribute.get_strategy()))
    assert all_schedules()[name](3).dtype == tf.float32


def test_an_optimizer_of_keras_takes_it():
    schedule = schedules.steps_at(0.5, epochs=[1], factor=0.5, steps_per_epoch=1)
    weight = keras.Variable([0.0])
    optimizer = keras.optimizers.SGD(schedule)
    for expected in (-0.5, -0.75):
        optimizer.apply([tf.constant([1.0])], [weight])
        assert float(weight[0]) == expected


@pytest.mark.parametrize("epochs", [[180, 150], [150, 150], [-1], [1.5], [math.nan]])
def test_epochs_rise(epochs):
    with pytest.raises(ValueError, match="`epochs` must be strictly increasing whole numbers"):
        schedules.steps_at(0.05, epochs=epochs, steps_per_epoch=10)


@pytest.mark.parametrize("steps", [0, -3, 2.5, None])
def test_an_epoch_has_steps(steps):
    after = schedules.steps_at(0.05, epochs=[], steps_per_epoch=1)
    for make in (
        lambda: schedules.steps_at(0.05, epochs=[1], steps_per_epoch=steps),
        lambda: schedules.cosine(0.05, epochs=1, steps_per_epoch=steps),
        lambda: schedules.warm_up(after, epochs=1, steps_per_epoch=steps),
    ):
        with pytest.raises(ValueError, match="`steps_per_epoch` must be an integer >= 1"):
            make()


@pytest.mark.parametrize("rate", [-0.1, math.nan, math.inf, "0.1", None])
def test_rates_are_numbers(rate):
    after = schedules.steps_at(0.05, epochs=[], steps_per_epoch=1)
    for name, make in {
        "learning_rate": lambda: schedules.steps_at(rate, epochs=[1], steps_per_epoch=1),
        "`learning_rate`": lambda: schedules.cosine(rate, epochs=1, steps_per_epoch=1),
        "final": lambda: schedules.cosine(0.1, epochs=1, steps_per_epoch=1, final=rate),
        "start": lambda: schedules.warm_up(after, epochs=1, steps_per_epoch=1, start=rate),
    }.items():
        with pytest.raises(ValueError, match=name):
            make()


@pytest.mark.parametrize("factor", [0, -1.0, math.nan, math.inf])
def test_the_factor_is_positive(factor):
    with pytest.raises(ValueError, match="`factor` must be a finite number > 0, got"):
        schedules.steps_at(0.05, epochs=[1], factor=factor, steps_per_epoch=1)


def test_warm_up_leads_to_a_schedule_and_takes_an_epoch():
    with pytest.raises(TypeError, match="`schedule` must be a LearningRateSchedule, got"):
        schedules.warm_up(0.05, epochs=1, steps_per_epoch=1)
    after = schedules.steps_at(0.05, epochs=[], steps_per_epoch=1)
    with pytest.raises(ValueError, match="`epochs` must be an integer >= 1, got 0"):
        schedules.warm_up(after, epochs=0, steps_per_epoch=1)
