"""Frozen networks that run as in training: with the statistics of the batch."""

import copy
import random

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from replicas import on_replicas

import keras_ssd as ssd
from freezing.networks import (
    FLOAT32,
    IMAGES,
    answer,
    chain,
    difference,
    drawn,
    frozen_answer,
    norm,
    pool,
)

MODES = ["batch", "batch_update"]
ROWS = tf.constant(IMAGES)
UNFUSED = (
    1e-5  # Keras' own code against the fused kernel, where a pooled mean is a small difference
)


def plain(**options):
    """Batch normalisation of maps and of vectors, each with a momentum of its own."""
    return chain(
        layers.Conv2D(5, 3),
        norm(momentum=0.8, **options),
        layers.ReLU(),
        layers.Conv2D(4, 3),
        norm(momentum=0.6, scale=False, epsilon=0.1, **options),
        pool(),
        norm(momentum=0.5, center=False, **options),
        layers.Dense(3),
    )


def nested(**options):
    inner = chain(layers.Conv2D(5, 3), norm(momentum=0.8, **options), layers.ReLU())
    middle = keras.Sequential([keras.Input((8, 8, 4)), inner, norm(momentum=0.7, **options)])
    inputs = keras.Input((8, 8, 4))
    x = pool()(middle(inputs))
    return drawn(keras.Model(inputs, {"logits": layers.Dense(3)(x), "embedding": x}))


def shared(**options):
    """A convolution and a batch norm that are called twice, and a residual sum."""
    inputs = keras.Input((8, 8, 4))
    conv, bn = layers.Conv2D(4, 3, padding="same"), norm(momentum=0.8, **options)
    x = bn(conv(layers.ReLU()(bn(conv(inputs)))))
    return drawn(keras.Model(inputs, pool()(x + inputs / 2)))


def channels_first(**options):
    return chain(
        layers.Permute((3, 1, 2)),
        norm(axis=1, momentum=0.8, **options),
        layers.GlobalAveragePooling2D(data_format="channels_first"),
    )


GRAPHS = {
    "plain": plain,
    "nested": nested,
    "shared": shared,
    "channels first": channels_first,
}


def alone(*behind, **options):
    """A batch norm right behind the images."""
    return chain(norm(**options), *behind, pool())


def in_training(model, steps=1):
    """What Keras gives in training, sorted by name, and the moving averages after some steps."""
    for _ in range(steps):
        outputs = model(IMAGES, training=True)
    return [np.asarray(x) for x in keras.tree.flatten(outputs)], averages(model.weights)


def frozen_training(frozen, steps=1, images=IMAGES):
    for _ in range(steps):
        outputs = frozen(tf.constant(images), training=True)
    return [np.asarray(outputs[name]) for name in sorted(outputs)]


def averages(variables):
    """Moving averages by the names of layer and variable."""
    return {tuple(v.path.split("/")[-2:]): np.asarray(v) for v in variables if "/moving_" in v.path}


def copies(variables):
    return [np.asarray(v) for v in variables]


def differs(got, expected):
    return any((one != other).any() for one, other in zip(got, expected, strict=True))


# --- Statistics of the batch --------------------------------------------------------------------


@pytest.mark.parametrize("case", GRAPHS)
def test_batch_update_is_keras_in_training(case):
    """Of Keras' own layers the variance alone differs, which theirs takes up biased."""
    model = GRAPHS[case]()
    fused = ssd.models.fuse_batch_norm(keras.models.clone_model(model))
    fused.set_weights(model.get_weights())
    frozen = ssd.freeze(model, batch_norm="batch_update")
    got, moved = frozen_training(frozen, steps=2), averages(frozen.variables)
    outputs, unbiased = in_training(fused, steps=2)
    assert difference(got, outputs) < FLOAT32
    assert moved.keys() == unbiased.keys()
    for name, value in moved.items():
        np.testing.assert_allclose(value, unbiased[name], atol=1e-6)
    outputs, biased = in_training(model, steps=2)
    assert difference(got, outputs) < UNFUSED
    for name in moved:
        if name[1] == "moving_mean":
            np.testing.assert_allclose(moved[name], biased[name], atol=1e-6)
    assert difference(frozen_answer(frozen), answer(fused)) < FLOAT32


def test_float64(float64):
    """All of it, with nothing rounded on the way."""
    model = drawn(plain())
    frozen = ssd.freeze(model, batch_norm="batch_update")
    outputs, means = in_training(model, steps=2)
    assert difference(frozen_training(frozen, steps=2), outputs) < 1e-12
    for name, value in averages(frozen.variables).items():
        if name[1] == "moving_mean":
            np.testing.assert_allclose(value, means[name], rtol=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_closed_form(mode):
    """Gamma 1, beta 0, averages 0 and 1: one step of momentum 0.9."""
    inputs = keras.Input((8, 8, 4))
    model = keras.Model(inputs, layers.BatchNormalization(momentum=0.9, epsilon=1e-5)(inputs))
    frozen = ssd.freeze(model, batch_norm=mode)
    mean, variance = (f(IMAGES.astype("float64"), (0, 1, 2)) for f in (np.mean, np.var))
    [got] = frozen_training(frozen)
    np.testing.assert_allclose(got, (IMAGES - mean) / np.sqrt(variance + 1e-5), atol=1e-5)
    values = IMAGES.size // 4
    updated = [0.1 * mean, 0.9 + 0.1 * variance * values / (values - 1)]
    expected = updated if mode == "batch_update" else [np.zeros(4), np.ones(4)]
    np.testing.assert_allclose(frozen.variables[2], expected[0], rtol=1e-5, atol=0)
    np.testing.assert_allclose(frozen.variables[3], expected[1], rtol=1e-5, atol=0)
    with_averages = (IMAGES - expected[0]) / np.sqrt(expected[1] + 1e-5)
    np.testing.assert_allclose(frozen_answer(frozen)[0], with_averages, atol=1e-5)


@pytest.mark.parametrize("case", GRAPHS)
@pytest.mark.parametrize("mode", MODES)
def test_frozen_layers_take_them_too(mode, case):
    """`trainable=False` keeps Keras' layer in inference mode, and not the teacher's copy."""
    model, free = GRAPHS[case](trainable=False), GRAPHS[case]()
    free.set_weights(model.get_weights())
    flags = [layer.trainable for layer in model._flatten_layers()]
    frozen = ssd.freeze(model, batch_norm=mode)
    assert difference(frozen_training(frozen, steps=2), in_training(free, steps=2)[0]) < UNFUSED
    assert [layer.trainable for layer in model._flatten_layers()] == flags


@pytest.mark.parametrize("mode", MODES)
def test_frozen_backbone(mode):
    """Its values are taken, and its batch normalisation takes the statistics of the batch."""
    model = chain(layers.Conv2D(5, 3), norm(), layers.ReLU(), pool(), layers.Dense(3, name="old"))
    network = ssd.with_projection(model, backbone="frozen")
    expected = in_training(model)[0]
    drawn(model, seed=1)
    frozen = ssd.freeze(network, batch_norm=mode)
    assert difference([frozen_training(frozen)[0]], expected) < UNFUSED


@pytest.mark.parametrize("mode", MODES)
def test_a_batch_beside_itself(mode):
    frozen = ssd.freeze(plain(), batch_norm=mode)
    once, twice = (
        frozen_training(frozen),
        frozen_training(frozen, images=np.tile(IMAGES, (2, 1, 1, 1))),
    )
    np.testing.assert_allclose(twice[0][:6], once[0], atol=1e-5)
    np.testing.assert_allclose(twice[0][6:], once[0], atol=1e-5)
    others = frozen_training(frozen, images=IMAGES[:3])
    assert np.abs(others[0] - once[0][:3]).max() > 1e-2
    assert np.abs(frozen_answer(frozen)[0] - once[0]).max() > 1e-2


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", GRAPHS)
def test_inference_mode_is_that_of_the_model(case, mode):
    model = GRAPHS[case]()
    frozen = ssd.freeze(model, batch_norm=mode)
    before = copies(frozen.variables)
    assert difference(frozen_answer(frozen), answer(model)) < FLOAT32
    assert not differs(copies(frozen.variables), before)


# --- What changes and what does not -------------------------------------------------------------


class NoisyScale(layers.Layer):
    """A user's layer with a weight and a random state."""

    def __init__(self, noise):
        super().__init__()
        self.noise, self.seed_generator = noise, keras.random.SeedGenerator()

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones", name="gamma")

    def call(self, x, training=None):
        if training:
            x += keras.random.normal(keras.ops.shape(x), 0, self.noise, seed=self.seed_generator)
        return x * self.scale


def with_randomness(rate=0.5, noise=0.1):
    """What is random in training: layers of Keras and of a user, with weights and without."""
    return chain(
        layers.GaussianNoise(noise),
        layers.Conv2D(4, 3, padding="same"),
        ssd.layers.BatchNormalization(momentum=0.8),
        layers.SpatialDropout2D(rate),
        NoisyScale(noise),
        layers.Dropout(rate, noise_shape=(None, 1, 1, 1)),  # stochastic depth
        pool(),
        layers.Dense(3),
    )


def test_batch_update_turns_on_what_is_random():
    """The masks are those that the model would draw next, and the model's own states stay."""
    model = with_randomness()
    before = copies(model.variables)
    frozen = ssd.freeze(model, batch_norm="batch_update")
    steps = [frozen_training(frozen) for _ in range(2)]
    inference = frozen_answer(frozen)
    assert not differs(copies(model.variables), before)
    expected = [in_training(model)[0] for _ in range(2)]
    assert difference(steps[0], expected[0]) < FLOAT32
    assert difference(steps[1], expected[1]) < FLOAT32
    assert difference(*steps) > 1e-2
    assert difference(inference, answer(model)) < FLOAT32


def test_batch_turns_nothing_random_on():
    model, without = with_randomness(), with_randomness(0.0, 0.0)
    without.set_weights(model.get_weights())
    before = copies(model.variables)
    frozen = ssd.freeze(model, batch_norm="batch")
    assert difference(frozen_training(frozen, steps=2), in_training(without)[0]) < FLOAT32
    assert not differs(copies(model.variables), before)


@pytest.mark.parametrize("mode", MODES)
def test_weights_never_change(mode):
    """Not by a layer that moves some in training either, nor by a call that fails."""
    model = chain(
        layers.SpectralNormalization(layers.Conv2D(4, 3)), norm(), layers.Dropout(0.5), pool()
    )
    before, flags = copies(model.variables), [layer.trainable for layer in model.layers]
    frozen = ssd.freeze(model, batch_norm=mode)
    own = copies(frozen.variables)
    with pytest.raises(ValueError, match="takes images"):
        frozen(ROWS[..., :3], training=True)
    assert not differs(copies(frozen.variables), own)
    frozen_training(frozen, steps=2)
    after = zip(frozen.variables, own, strict=True)
    changed = {v.path.split("/")[-1] for v, value in after if differs([v.numpy()], [value])}
    states = {"moving_mean", "moving_variance", "seed_generator_state"}
    assert changed == (states if mode == "batch_update" else set())
    assert not differs(copies(model.variables), before)
    assert [layer.trainable for layer in model.layers] == flags
    assert not any(variable.trainable for variable in frozen.variables)


@pytest.mark.parametrize("mode", MODES)
def test_what_happens_to_the_model_later_has_no_effect(mode):
    model, twin = with_randomness(), with_randomness()
    for one, other in zip(model.variables, twin.variables, strict=True):
        other.assign(one)
    frozen, expected = (ssd.freeze(m, batch_norm=mode) for m in (model, twin))
    in_training(model, steps=2)
    drawn(model, seed=1)
    model.trainable = False
    assert difference(frozen_training(frozen), frozen_training(expected)) == 0


@pytest.mark.parametrize("mode", MODES)
def test_no_gradient(mode):
    frozen = ssd.freeze(plain(), batch_norm=mode)
    with tf.GradientTape() as tape:
        tape.watch([ROWS, *(v.value for v in frozen.variables)])
        total = tf.reduce_sum(frozen(ROWS, training=True)["logits"])
    sources = [ROWS, *(v.value for v in frozen.variables)]
    assert tape.gradient(total, sources) == [None] * len(sources)


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize("mode", MODES)
def test_freezing_draws_no_random_number(mode, dtype):
    model = with_randomness()
    state = random.getstate()
    ssd.freeze(model, batch_norm=mode, dtype=dtype)
    assert random.getstate() == state


@pytest.mark.skipif(
    tuple(map(int, keras.__version__.split(".")[:2])) < (3, 14),
    reason="Keras before 3.14 cannot read back a model that is nothing but its inputs",
)
def test_a_copy_of_a_frozen_network():
    model = chain(layers.Conv2D(4, 3), norm(), layers.ReLU(), norm(), pool(), layers.Dense(3))
    frozen = ssd.freeze(model, batch_norm="batch_update")
    twin = copy.deepcopy(frozen)
    expected = frozen_training(frozen, steps=2)
    assert difference(frozen_training(twin, steps=2), expected) == 0
    assert difference(frozen_answer(twin), frozen_answer(frozen)) == 0


# --- Options of the layers ----------------------------------------------------------------------

OPTIONS = {
    "axis": {"axis": 2},
    "epsilon": {"epsilon": 0.5},
    "momentum": {"momentum": 0.3},
    "centre": {"center": False},
    "scale": {"scale": False},
    "renormalisation": {"renorm": True, "renorm_momentum": 0.5, "renorm_clipping": {"dmax": 0.1}},
}
RENORM = pytest.mark.skipif(
    not hasattr(layers.BatchNormalization(), "renorm"), reason="Keras knows it from 3.15 on"
)
CASES = [pytest.param(c, marks=RENORM) if c == "renormalisation" else c for c in OPTIONS]


@pytest.mark.parametrize("case", CASES)
def test_options_of_the_layer_are_kept(case):
    model = alone(**OPTIONS[case])
    frozen = ssd.freeze(model, batch_norm="batch_update")
    expected, means = in_training(model, steps=2)
    assert difference(frozen_training(frozen, steps=2), expected) < UNFUSED
    moved = averages(frozen.variables)
    for name in moved.keys() - {(model.layers[1].name, "moving_variance")}:
        np.testing.assert_allclose(moved[name], means[name], rtol=1e-6)


@RENORM
def test_batch_moves_no_average_of_renormalisation():
    frozen = ssd.freeze(alone(renorm=True), batch_norm="batch")
    before = copies(frozen.variables)
    frozen_training(frozen)
    assert len(before) == 7
    assert not differs(copies(frozen.variables), before)


def called_with(training, inside):
    """Batch normalisation and dropout that are called with `training` in the model's own graph."""
    inputs = keras.Input((8, 8, 4))
    x = layers.Conv2D(4, 3)(inputs)
    if inside:
        block = [keras.Input((6, 6, 4)), norm(), layers.Dropout(0.5), layers.AlphaDropout(0.5)]
        x = keras.Sequential(block)(x, training=training)
    else:
        x = norm()(x, training=training)
    x = norm(momentum=0.5)(layers.ReLU()(x))
    return drawn(keras.Model(inputs, pool()(x)))


@pytest.mark.parametrize("inside", [False, True])
def test_a_false_in_the_graph_wins(inside):
    """What it is called on is as in inference mode, and what is behind that as in training."""
    model = called_with(False, inside)
    *_, last, _ = model.layers
    relu = model.layers[-3]
    maps = keras.Model(model.input, relu.output)(IMAGES, training=False)
    frozen = ssd.freeze(model, batch_norm="batch_update")
    before = averages(frozen.variables)
    got, after = frozen_training(frozen), averages(frozen.variables)
    assert difference(got, [pool()(last(maps, training=True)).numpy()]) < UNFUSED
    moved = {name[0] for name, value in after.items() if differs([value], [before[name]])}
    assert moved == {last.name}


@pytest.mark.parametrize("inside", [False, True])
def test_a_true_in_the_graph_says_nothing(inside):
    model = called_with(True, inside)
    frozen = ssd.freeze(model, batch_norm="batch")
    assert difference(frozen_training(frozen), frozen_training(frozen)) == 0
    assert difference(frozen_answer(frozen), answer(model)) < FLOAT32
    frozen = ssd.freeze(model, batch_norm="batch_update")
    assert difference(frozen_training(frozen), in_training(model)[0]) < UNFUSED


# --- Precision ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_feature_maps_in_half(mode):
    """Through the fused kernel, the random states those of the model."""
    model = ssd.models.fuse_batch_norm(with_randomness())
    before = copies(model.variables)
    half = ssd.freeze(model, batch_norm=mode, dtype="bfloat16")
    function = tf.function(half).get_concrete_function(ROWS, training=True)
    kinds = {op.type: op.outputs[0].dtype for op in function.graph.get_operations() if op.outputs}
    assert kinds["FusedBatchNormV3"] == kinds["Conv2D"] == tf.bfloat16
    outputs = half(ROWS, training=True)["logits"]
    assert outputs.dtype == tf.float32
    assert not differs(copies(model.variables), before)
    names = [variable.name for variable in half.variables]
    assert names.count("seed_generator_state") == (4 if mode == "batch_update" else 0)


def test_masks_in_half():
    """Halved or not, dropout goes on from the state of the model, and moves on."""
    keras.utils.set_random_seed(3)
    model = chain(layers.Conv2D(1, 1), norm(), layers.Dropout(0.5), layers.Flatten())
    before = copies(model.variables)
    frozen = {d: ssd.freeze(model, batch_norm="batch_update", dtype=d) for d in (None, "bfloat16")}
    states = {
        dtype: next(v for v in one.variables if v.name == "seed_generator_state")
        for dtype, one in frozen.items()
    }
    assert not differs(copies(states.values())[:1], copies(states.values())[1:])
    zeros = [(frozen["bfloat16"](ROWS, training=True)["logits"].numpy() == 0) for _ in range(2)]
    frozen[None](ROWS, training=True)
    assert differs(zeros[:1], zeros[1:])
    assert states["bfloat16"].numpy()[1] == states[None].numpy()[1] + 1 == before[-1][1] + 2


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_a_model_in_mixed_precision_keeps_it(policy):
    keras.config.set_dtype_policy(policy)
    model = ssd.models.fuse_batch_norm(plain())
    keras.config.set_dtype_policy("float32")
    frozen = ssd.freeze(model, batch_norm="batch_update")
    got = frozen_training(frozen)
    assert str(got[0].dtype) == policy.removeprefix("mixed_")
    expected, moved = in_training(model)
    assert not differs(got, expected)
    for name, value in averages(frozen.variables).items():
        np.testing.assert_allclose(value, moved[name], rtol=1e-6)


# --- Devices and compilers ----------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_xla(mode):
    model = plain()
    frozen, compiled = (ssd.freeze(model, batch_norm=mode) for _ in range(2))
    function = tf.function(compiled, jit_compile=True)
    for _ in range(2):
        got = [function(ROWS, training=True)["logits"].numpy()]
        assert difference(got, frozen_training(frozen)) < UNFUSED
    assert function.experimental_get_tracing_count() == 1
    for one, other in zip(compiled.variables, frozen.variables, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_random_states_under_xla():
    frozen = ssd.freeze(chain(norm(), layers.Dropout(0.5), pool()), batch_norm="batch_update")
    function = tf.function(frozen, jit_compile=True)
    states = [v for v in frozen.variables if v.name == "seed_generator_state"]
    before = copies(states)
    first, second = (function(ROWS, training=True)["logits"].numpy() for _ in range(2))
    assert difference([first], [second]) > 1e-2
    np.testing.assert_array_equal(copies(states), np.add(before, [0, 2]))


def mirrored(strategy, model, mode):
    with strategy.scope():
        frozen = ssd.freeze(model, batch_norm=mode)
    assert all(strategy.extended.variable_created_in_scope(v.value) for v in frozen.variables)
    return frozen


def on_both(strategy, frozen, *images):
    """What each replica answers, and the variables of the first; both have the same."""
    rows = [tf.constant(part) for part in images]
    answers = on_replicas(strategy, lambda x: frozen(x, training=True)["logits"], rows)
    held = [strategy.experimental_local_results(v.value) for v in frozen.variables]
    for first, second in held:
        np.testing.assert_array_equal(first, second)
    return [np.asarray(a) for a in answers], [first.numpy() for first, _ in held]


@pytest.mark.parametrize("mode", MODES)
def test_statistics_of_each_replica(two_replicas, mode):
    """The averages are means over the rows of all: 4 and 2 here."""
    model = alone(layers.ReLU(), momentum=0.8)
    frozen = mirrored(two_replicas, model, mode)
    parts = IMAGES[:4], IMAGES[4:]
    alone_on = [ssd.freeze(model, batch_norm=mode) for _ in parts]
    expected = [frozen_training(one, images=p)[0] for one, p in zip(alone_on, parts, strict=True)]
    answers, held = on_both(two_replicas, frozen, *parts)
    assert difference(answers, expected) < FLOAT32
    means = [
        (4 * a + 2 * b) / 6 for a, b in zip(*(copies(o.variables) for o in alone_on), strict=True)
    ]
    for value, mean in zip(held, means, strict=True):
        np.testing.assert_allclose(value, mean, rtol=1e-5)


def test_statistics_of_all_replicas(two_replicas):
    """`synchronized=True` is kept: both replicas as one."""
    model = chain(
        ssd.layers.BatchNormalization(synchronized=True, momentum=0.8), layers.ReLU(), pool()
    )
    one = ssd.freeze(model, batch_norm="batch_update")
    expected = frozen_training(one)[0]
    answers, held = on_both(
        two_replicas, mirrored(two_replicas, model, "batch_update"), IMAGES[:4], IMAGES[4:]
    )
    assert difference([np.concatenate(answers)], [expected]) < UNFUSED
    for value, other in zip(held, one.variables, strict=True):
        np.testing.assert_allclose(value, other, rtol=1e-5)


def test_a_replica_without_rows_says_nothing(two_replicas):
    model = alone(momentum=0.8)
    one = ssd.freeze(model, batch_norm="batch_update")
    frozen_training(one)
    frozen = mirrored(two_replicas, model, "batch_update")
    _, held = on_both(two_replicas, frozen, IMAGES, IMAGES[:0])
    for value, other in zip(held, one.variables, strict=True):
        np.testing.assert_allclose(value, other, rtol=1e-5)


def test_random_states_of_both_replicas(two_replicas):
    frozen = mirrored(two_replicas, with_randomness(), "batch_update")
    first, _ = on_both(two_replicas, frozen, IMAGES[:3], IMAGES[3:])
    second, _ = on_both(two_replicas, frozen, IMAGES[:3], IMAGES[3:])
    assert difference(first, second) > 1e-2


# --- What is refused ----------------------------------------------------------------------------


class Block(layers.Layer):
    """A user's layer with batch normalisation inside."""

    def __init__(self, **options):
        super().__init__(**options)
        self.norm = layers.BatchNormalization()

    def call(self, x, training=None):
        return self.norm(x, training=training)


class OwnNorm(layers.BatchNormalization):
    """A user's kind of batch normalisation."""


class OwnCall(keras.Model):
    """A model that has a graph, and answers otherwise."""

    def call(self, inputs, training=None):
        return 3 + super().call(inputs, training=training)


def own_call():
    inner = chain(layers.Conv2D(4, 3), norm())
    return OwnCall(inner.input, inner.output, name="hidden")


HIDDEN = {
    "layer": lambda: Block(name="hidden"),
    "subclass": lambda: OwnNorm(name="hidden"),
    "wrapper": lambda: layers.TimeDistributed(norm(), name="hidden"),
    "model": own_call,
    "frozen": lambda: ssd.layers.FrozenBackbone(own_call(), name="hidden"),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", HIDDEN)
def test_batch_norm_in_code_of_its_own(case, mode):
    model = chain(norm(), HIDDEN[case](), pool())
    before = copies(model.variables)
    match = f"`batch_norm='{mode}'` needs every batch normalisation .* and hidden run it in code of"
    with pytest.raises(ValueError, match=match):
        ssd.freeze(model, batch_norm=mode)
    assert not differs(copies(model.variables), before)


def test_batch_norm_in_code_of_its_own_that_stays_in_inference_mode():
    inputs = keras.Input((8, 8, 4))
    block = Block()
    model = drawn(keras.Model(inputs, pool()(norm()(block(inputs, training=False)))))
    frozen = ssd.freeze(model, batch_norm="batch")
    expected = pool()(model.layers[2](block(IMAGES, training=False), training=True))
    assert difference(frozen_training(frozen), [expected.numpy()]) < UNFUSED


def pinned():
    inputs = keras.Input((8, 8, 4))
    return keras.Model(inputs, pool()(norm()(inputs, training=False)))


NOTHING = {
    "no batch norm": lambda: chain(layers.Conv2D(4, 3), layers.LayerNormalization(), pool()),
    "all in inference mode": pinned,
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", NOTHING)
def test_nothing_would_change(case, mode):
    with pytest.raises(
        ValueError, match=f"`batch_norm='{mode}'` would change nothing for the teac"
    ):
        ssd.freeze(NOTHING[case](), batch_norm=mode)


def test_dropout_alone():
    """It is something to `batch_update`, and nothing to `batch`."""
    model = chain(layers.Conv2D(4, 3), layers.Dropout(0.5), pool())
    with pytest.raises(ValueError, match=r"would change nothing .* no batch normalisation outs"):
        ssd.freeze(model, batch_norm="batch")
    frozen = ssd.freeze(model, batch_norm="batch_update")
    assert difference(frozen_training(frozen), in_training(model)[0]) < FLOAT32
    assert difference(frozen_training(frozen), answer(model)) > 1e-2
