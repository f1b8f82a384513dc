import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import golden_cases

from keras_ssd import schedules
from keras_ssd.optimizers import SGD

TOLERANCES = [("float64", {"rtol": 1e-12}), ("float32", {"rtol": 0, "atol": 1e-6})]


def optimizer_of(params):
    schedule = schedules.steps_at(
        params["lr"],
        epochs=params["milestones_in_steps"],
        factor=params["gamma"],
        steps_per_epoch=1,
    )
    return SGD(schedule, params["momentum"], params["weight_decay"], params["nesterov"])


def gradient_of(inputs, weight):
    matrix, vector = np.array(inputs["A"]), np.array(inputs["b"])
    return matrix @ weight.numpy() - vector


def velocity_of(optimizer):
    return next(v for v in optimizer.variables if v.path.endswith("velocity"))


@pytest.mark.parametrize("case", golden_cases("optimizer", "sgd_trajectory"))
@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
def test_golden_trajectory(case, dtype, tolerance):
    optimizer = optimizer_of(case["params"])
    weight = keras.Variable(case["inputs"]["w0"], dtype=dtype)
    for step in case["expected"]["trajectory"]:
        np.testing.assert_allclose(optimizer.learning_rate, step["lr"], rtol=1e-14)
        optimizer.apply([tf.constant(gradient_of(case["inputs"], weight), dtype)], [weight])
        np.testing.assert_allclose(weight, step["weights"], **tolerance)
        if step["momentum_buffer"] is not None:
            np.testing.assert_allclose(velocity_of(optimizer), step["momentum_buffer"], **tolerance)


@pytest.mark.parametrize("case", golden_cases("optimizer", "sgd_given_gradients"))
@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize("jit_compile", [False, True])
def test_golden_gradients(case, dtype, tolerance, jit_compile):
    optimizer = optimizer_of(case["params"])
    weight = keras.Variable(case["inputs"]["w0"], dtype=dtype)
    optimizer.build([weight])
    update = tf.function(lambda g: optimizer.apply([g], [weight]), jit_compile=jit_compile)
    for step in case["expected"]["trajectory"]:
        update(tf.constant(step["gradient"], dtype))
        np.testing.assert_allclose(weight, step["weights"], **tolerance)
        np.testing.assert_allclose(velocity_of(optimizer), step["momentum_buffer"], **tolerance)


@pytest.mark.parametrize("case", golden_cases("optimizer", "sgd_two_groups"))
def test_golden_groups_are_two_optimizers_and_a_rate_of_zero_freezes(case):
    params, gradient = case["params"], case["inputs"]["gradient_each_step"]
    groups = []
    for index, rate in enumerate(params["lr"]):
        weight = keras.Variable(case["inputs"][f"w0_group{index}"], dtype="float64")
        groups.append((SGD(rate, params["momentum"], params["weight_decay"]), weight))
    for step in case["expected"]["trajectory"]:
        for optimizer, weight in groups:
            optimizer.apply([tf.constant(gradient, tf.float64)], [weight])
        np.testing.assert_array_equal(groups[0][1], step["group0"])
        np.testing.assert_allclose(groups[1][1], step["group1"], rtol=1e-12)


@pytest.mark.parametrize("case", golden_cases("optimizer", "sgd_two_groups"))
@pytest.mark.parametrize("jit_compile", [False, True])
def test_golden_groups_are_one_optimizer_with_multipliers(case, jit_compile):
    params, gradient = case["params"], case["inputs"]["gradient_each_step"]
    frozen, rate = params["lr"]
    weights = [
        keras.Variable(case["inputs"][f"w0_group{index}"], dtype="float64", name=f"group{index}")
        for index in range(2)
    ]
    multipliers = {"group0": frozen / rate, "group1": 0.25}
    optimizer = SGD(
        4 * rate,
        params["momentum"],
        params["weight_decay"],
        learning_rate_multipliers=multipliers,
    )
    optimizer.build(weights)
    gradients = [tf.constant(gradient, tf.float64)] * 2
    update = tf.function(lambda: optimizer.apply(gradients, weights), jit_compile=jit_compile)
    for step in case["expected"]["trajectory"]:
        update()
        np.testing.assert_array_equal(weights[0], step["group0"])
        np.testing.assert_allclose(weights[1], step["group1"], rtol=1e-12)


def test_at_a_factor_of_0_no_gradient_is_too_large_and_the_velocity_rests():
    weight = keras.Variable([1.0], name="frozen")
    optimizer = SGD(0.1, 0.9, 0.5, learning_rate_multipliers={"frozen": 0.0})
    for gradient in (1.0, math.inf):
        optimizer.apply([tf.constant([gradient])], [weight])
    assert float(weight[0]) == 1.0
    assert float(velocity_of(optimizer)[0]) == 0.0


@pytest.mark.parametrize("case", golden_cases("optimizer", "contrast_only"))
def test_what_keras_does_is_something_else(case):
    optimizer = optimizer_of(case["params"])
    weight = keras.Variable(case["inputs"]["w0"], dtype="float64")
    for _ in case["expected"]["weights"]:
        optimizer.apply([tf.constant(gradient_of(case["inputs"], weight))], [weight])
    difference = np.abs(weight.numpy() - case["expected"]["weights"][-1])
    assert (difference > 0.1).all()


def test_without_momentum_and_decay_it_is_gradient_descent():
    weight = keras.Variable([1.0, -2.0], dtype="float64")
    SGD(0.1).apply([tf.constant([0.5, 4.0], tf.float64)], [weight])
    np.testing.assert_array_equal(weight, [1.0 - 0.1 * 0.5, -2.0 - 0.1 * 4.0])


def batch_normalized():
    layers = [keras.Input([3]), keras.layers.Dense(4), keras.layers.BatchNormalization()]
    return keras.Sequential([*layers, keras.layers.Dense(2)])


def test_decay_reaches_biases_and_batch_normalization():
    weights = batch_normalized().trainable_variables
    for weight in weights:
        weight.assign(tf.ones(weight.shape) * 2.0)
    SGD(0.5, weight_decay=0.5).apply([tf.zeros(w.shape) for w in weights], weights)
    assert len(weights) == 6
    for weight in weights:
        np.testing.assert_array_equal(weight, np.full(weight.shape, 1.5))


def test_excluded_from_weight_decay():
    weights = batch_normalized().trainable_variables
    for weight in weights:
        weight.assign(tf.ones(weight.shape))
    optimizer = SGD(0.5, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_list=[weights[0]], var_names=["bias"])
    optimizer.apply([tf.zeros(w.shape) for w in weights], weights)
    kept = [weights[0].path, *[w.path for w in weights if "bias" in w.name]]
    for weight in weights:
        assert float(tf.reduce_max(weight)) == (1.0 if weight.path in kept else 0.75), weight.path


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_without_a_gradient_a_step_is_the_coupled_decay(dtype):
    """Rate times coefficient times weight (SSLD's check of its L2), through the velocity."""
    rate, coefficient, start = 0.5, 0.25, 3.0
    weight = keras.Variable([start], dtype=dtype)
    optimizer = SGD(rate, momentum=0.5, weight_decay=coefficient)
    optimizer.apply([tf.zeros([1], dtype)], [weight])
    moved = start - rate * coefficient * start
    assert float(weight[0]) == moved
    optimizer.apply([tf.zeros([1], dtype)], [weight])
    assert float(weight[0]) == moved - rate * (coefficient * moved + 0.5 * coefficient * start)


def named_like_batch_norm():
    """Two normalisations with scale and shift, and a dense layer called as they call a weight."""
    normal = [keras.layers.BatchNormalization(), keras.layers.LayerNormalization()]
    return keras.Sequential([keras.Input([3]), keras.layers.Dense(4, name="gamma"), *normal])


@pytest.mark.parametrize("jit_compile", [False, True])
def test_batch_normalization_can_be_exempt_from_decay(jit_compile):
    weights = named_like_batch_norm().trainable_variables
    optimizer = SGD(0.5, weight_decay=0.5, decay_batch_norm=False)
    optimizer.exclude_from_weight_decay(var_names=["nothing"])
    optimizer.build(weights)
    for weight in weights:
        weight.assign(tf.ones(weight.shape))
    zeros = [tf.zeros(weight.shape) for weight in weights]
    tf.function(lambda: optimizer.apply(zeros, weights), jit_compile=jit_compile)()
    for weight in weights:
        expected = 1.0 if weight.name in ("gamma", "beta") else 0.75
        np.testing.assert_array_equal(weight, np.full(weight.shape, expected), weight.path)
    assert sorted(w.name for w in weights) == ["beta"] * 2 + ["bias"] + ["gamma"] * 2 + ["kernel"]


def test_clipping_comes_before_decay():
    weight = keras.Variable([10.0, 0.0], dtype="float64")
    SGD(0.1, weight_decay=0.5, clipnorm=1.0).apply([tf.constant([3.0, 4.0], tf.float64)], [weight])
    np.testing.assert_allclose(weight, [10 - 0.1 * (0.6 + 5.0), -0.1 * 0.8], rtol=1e-12)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("options", [(), (0.9, 0.1, True)], ids=["plain", "nesterov"])
def test_a_sparse_gradient_acts_like_the_dense_one(options, jit_compile):
    dense = tf.constant([[0.0, 0.0], [5.0, 7.0], [0.0, 0.0]])
    slices = tf.IndexedSlices(
        tf.constant([[1.0, 2.0], [4.0, 5.0]]), tf.constant([1, 1]), tf.constant([3, 2])
    )

    def trained_with(gradient):
        weight = keras.Variable([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
        optimizer = SGD(0.1, *options)
        optimizer.build([weight])
        update = tf.function(lambda: optimizer.apply([gradient], [weight]), jit_compile=jit_compile)
        for _ in range(3):
            update()
        return weight.numpy()

    np.testing.assert_allclose(trained_with(slices), trained_with(dense), rtol=1e-6)


def test_a_gradient_takes_the_type_of_its_weight():
    weight = keras.Variable([1.0])
    SGD(0.5, momentum=0.9, weight_decay=0.5).apply([tf.constant([1.5], tf.float16)], [weight])
    np.testing.assert_array_equal(weight, [0.0])


def test_an_embedding_is_trained_without_a_warning():
    layers = [keras.layers.Embedding(7, 3), keras.layers.GlobalAveragePooling1D()]
    model = keras.Sequential([keras.Input([3], dtype="int32"), *layers])
    before = model.get_weights()[0]
    model.compile(SGD(0.1, momentum=0.9, weight_decay=0.1), loss="mse")
    model.fit(np.array([[1, 2, 2], [3, 3, 3]]), np.zeros((2, 3)), verbose=0)
    assert (model.get_weights()[0] != before).all()


# ---------------------------------------------------------------------------- the rate


def test_a_constant_rate_is_exact_and_can_be_set():
    optimizer = SGD(0.05)
    weight = keras.Variable([0.0], dtype="float64")
    optimizer.apply([tf.constant([1.0], tf.float64)], [weight])
    assert float(weight[0]) == -0.05
    optimizer.learning_rate = 0.1
    optimizer.apply([tf.constant([1.0], tf.float64)], [weight])
    assert float(weight[0]) == -0.05 - 0.1
    assert SGD.from_config(optimizer.get_config()).get_config()["learning_rate"] == 0.1


def test_a_rate_may_be_a_function_or_a_whole_number():
    weight = keras.Variable([0.0])
    SGD(lambda: 0.5).apply([tf.constant([1.0])], [weight])
    SGD(1).apply([tf.constant([1.0])], [weight])
    assert float(weight[0]) == -1.5


def test_keras_callbacks_set_the_rate():
    model = keras.Sequential([keras.Input([1]), keras.layers.Dense(1)])
    model.compile(SGD(0.05), loss="mse")
    callback = keras.callbacks.LearningRateScheduler(lambda _, rate: rate / 2)
    history = model.fit(np.ones((2, 1)), np.ones((2, 1)), epochs=2, verbose=0, callbacks=[callback])
    assert history.history["learning_rate"] == [0.025, 0.0125]


# ---------------------------------------------------------------------------- saved


GRADIENTS = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")


def decaying():
    schedule = schedules.steps_at(0.1, epochs=[3, 5], steps_per_epoch=1)
    return SGD(schedule, momentum=0.9, weight_decay=0.01, nesterov=True)


def run(optimizer, weight, gradients):
    optimizer.build([weight])
    for gradient in gradients:
        optimizer.apply([tf.constant(gradient)], [weight])
    return weight.numpy()


@pytest.mark.parametrize("interrupted", [2, 3, 4])
@pytest.mark.parametrize("way", ["own variables", "checkpoint"])
def test_interrupted_around_a_milestone_it_goes_on_bit_for_bit(interrupted, way, tmp_path):
    expected = run(decaying(), keras.Variable([1.0, 2.0, 3.0]), GRADIENTS)
    first, weight = decaying(), keras.Variable([1.0, 2.0, 3.0])
    middle = run(first, weight, GRADIENTS[:interrupted])
    second = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(first))
    resumed = keras.Variable(middle)
    second.build([resumed])
    if way == "checkpoint":
        path = tf.train.Checkpoint(optimizer=first).write(str(tmp_path / "optimizer"))
        tf.train.Checkpoint(optimizer=second).read(path).assert_consumed()
    else:
        store = {}
        first.save_own_variables(store)
        second.load_own_variables(store)
    np.testing.assert_array_equal(run(second, resumed, GRADIENTS[interrupted:]), expected)


def test_a_constant_rate_is_checkpointed(tmp_path):
    first, second = SGD(0.05), SGD(0.9)
    path = tf.train.Checkpoint(optimizer=first).write(str(tmp_path / "optimizer"))
    tf.train.Checkpoint(optimizer=second).read(path).assert_consumed()
    assert float(second.learning_rate) == 0.05


def test_a_compiled_model_brings_its_optimizer_back(tmp_path):
    model = keras.Sequential([keras.Input([3]), keras.layers.Dense(2)])
    model.compile(decaying(), loss="mse")
    data = tf.constant(GRADIENTS), tf.ones([8, 2])
    model.fit(*data, batch_size=2, verbose=0)
    model.save(tmp_path / "model.keras")
    copy = keras.models.load_model(tmp_path / "model.keras")
    assert type(copy.optimizer) is SGD
    assert copy.optimizer.get_config() == model.optimizer.get_config()
    for each in (model, copy):
        each.fit(*data, batch_size=2, shuffle=False, verbose=0)
    for own, other in zip(model.get_weights(), copy.get_weights(), strict=True):
        np.testing.assert_array_equal(own, other)


OPTIONS = {
    "decay_batch_norm": False,
    "learning_rate_multipliers": {"dense/kernel": 0.5},
    "momentum": 0.9,
    "weight_decay": 1e-3,
    "nesterov": True,
    "global_clipnorm": 2.0,
    "use_ema": True,
    "ema_momentum": 0.5,
    "gradient_accumulation_steps": 2,
    "name": "slow",
}


def test_config_holds_every_option():
    optimizer = SGD(0.3, **OPTIONS)
    config = optimizer.get_config()
    assert {name: config[name] for name in OPTIONS} == OPTIONS
    for copy in (
        SGD.from_config(dict(config)),
        keras.optimizers.get(keras.optimizers.serialize(optimizer)),
    ):
        assert type(copy) is SGD
        assert copy.get_config() == config


# ---------------------------------------------------------------------------- inside Keras


def test_gradient_accumulation_decays_once():
    weight = keras.Variable([1.0], dtype="float64")
    optimizer = SGD(0.1, momentum=0.9, weight_decay=0.5, gradient_accumulation_steps=2)
    optimizer.build([weight])
    for gradient in (1.0, 3.0):
        optimizer.apply([tf.constant([gradient], tf.float64)], [weight])
    np.testing.assert_allclose(weight, [1.0 - 0.1 * (2.0 + 0.5)], rtol=1e-12)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_mixed_float16_scales_the_loss_and_skips_an_overflow(jit_compile):
    weight = keras.Variable([1.0])
    optimizer = keras.optimizers.LossScaleOptimizer(SGD(0.1, 0.9, 0.5), initial_scale=8.0)
    optimizer.build([weight])
    update = tf.function(lambda g: optimizer.apply([g], [weight]), jit_compile=jit_compile)
    update(tf.constant([16.0]))
    np.testing.assert_allclose(weight, [1.0 - 0.1 * 2.5], rtol=1e-6)
    update(tf.constant([math.inf]))
    np.testing.assert_allclose(weight, [1.0 - 0.1 * 2.5], rtol=1e-6)
    assert float(optimizer.learning_rate) == 0.1


def test_a_mixed_float16_model_trains():
    keras.config.set_dtype_policy("mixed_float16")
    model = batch_normalized()
    model.compile(decaying(), loss="mse", jit_compile=False)
    history = model.fit(GRADIENTS, np.ones((8, 2)), epochs=8, verbose=0)
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert history.history["loss"][-1] < history.history["loss"][0]


@pytest.mark.parametrize("rate", [0.1, "schedule"])
def test_two_replicas_decay_once_and_sum_their_gradients(two_replicas, rate):
    def create():
        chosen = schedules.steps_at(0.1, epochs=[2], steps_per_epoch=1)
        weight = keras.Variable([1.0, 2.0, 3.0], dtype="float64")
        return SGD(chosen if rate == "schedule" else rate, 0.9, 0.5, True), weight

    single, expected = create()
    with two_replicas.scope():
        optimizer, weight = create()
        optimizer.exclude_from_weight_decay(var_names=["nothing"])
        optimizer.build([weight])

    @tf.function
    def update(gradient):
        two_replicas.run(lambda: optimizer.apply([gradient / 2], [weight]))

    for gradient in GRADIENTS[:4].astype("float64"):
        single.apply([tf.constant(gradient)], [expected])
        update(tf.constant(gradient))
    for local in two_replicas.experimental_local_results(weight.value):
        np.testing.assert_allclose(local, expected, rtol=1e-12)


# ---------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("name", ["learning_rate", "momentum", "weight_decay"])
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, "0.1", None])
def test_numbers_are_finite_and_not_negative(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be a finite number >= 0, got {value!r}"):
        SGD(**{"learning_rate": 0.1, name: value})


def test_momentum_and_nesterov_fit():
    with pytest.raises(ValueError, match=r"`momentum` must lie in 0\.\.1, got 1.5"):
        SGD(0.1, momentum=1.5)
    with pytest.raises(ValueError, match="`nesterov=True` needs a `momentum` > 0"):
        SGD(0.1, nesterov=True)


def test_multipliers_are_a_mapping_of_numbers():
    with pytest.raises(TypeError, match=r"must map paths .* got \[0.1, 0.2\]: `models.stage_mult"):
        SGD(0.1, learning_rate_multipliers=[0.1, 0.2])
    for value in (-0.1, math.nan, math.inf, "0.1", None):
        with pytest.raises(ValueError, match=r"multipliers\['w'\]` must be a finite number >= 0"):
            SGD(0.1, learning_rate_multipliers={"w": value})


def test_multipliers_name_weights_that_are_trained():
    model = batch_normalized()
    paths = [weight.path for weight in model.trainable_variables]
    optimizer = SGD(0.1, learning_rate_multipliers={paths[0]: 0.5, "dense/kernle": 0.5})
    near = next(path for path in paths if path.endswith("kernel"))
    with pytest.raises(ValueError, match=f"'dense/kernle', which is none of the 6 .*{near}"):
        optimizer.build(model.trainable_variables)
    assert not optimizer.built
    twins = [keras.Variable([1.0], name="twin") for _ in range(2)]
    with pytest.raises(ValueError, match="'twin', which is the path of 2 weights"):
        SGD(0.1, learning_rate_multipliers={"twin": 0.5}).build(twins)
    SGD(0.1, learning_rate_multipliers={"one": 0.5}).build(
        [keras.Variable(0.0, name="one"), *twins]
    )


def test_unknown_options_are_refused():
    with pytest.raises(ValueError, match="dampening"):
        SGD(0.1, dampening=0.1)


@pytest.mark.parametrize("value", ["no", 1, None])
def test_decay_of_batch_norm_is_on_or_off(value):
    with pytest.raises(ValueError, match="`decay_batch_norm` must be True or False, got"):
        SGD(0.1, decay_batch_norm=value)
