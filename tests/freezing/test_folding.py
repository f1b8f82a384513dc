import random

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_ssd as ssd
from freezing.networks import (
    IMAGES,
    answer,
    chain,
    difference,
    drawn,
    frozen_answer,
    fused_norms,
    operations,
    pool,
)

FLOAT32 = 2e-6  # the largest difference over the largest value; a few roundings of 6e-8 a layer


def norm(**options):
    return layers.BatchNormalization(**options)


# --- Folded backwards: into the layer before ---------------------------------------------------

BEHIND = {
    "convolution": lambda: chain(layers.Conv2D(5, 3, use_bias=False), norm()),
    "with bias": lambda: chain(layers.Conv2D(5, 3), norm()),
    "padding": lambda: chain(layers.Conv2D(5, 3, strides=2, padding="same"), norm()),
    "dilated": lambda: chain(layers.Conv2D(5, 3, dilation_rate=2), norm()),
    "grouped": lambda: chain(layers.Conv2D(6, 3, groups=2), norm()),
    "depthwise": lambda: chain(layers.DepthwiseConv2D(3, depth_multiplier=3), norm()),
    "separable": lambda: chain(layers.SeparableConv2D(5, 3, depth_multiplier=2), norm()),
    "transposed": lambda: chain(layers.Conv2DTranspose(5, 3, strides=2), norm()),
    "one dimension": lambda: chain(layers.Reshape((64, 4)), layers.Conv1D(5, 3), norm()),
    "depthwise, one dimension": lambda: chain(
        layers.Reshape((64, 4)), layers.DepthwiseConv1D(3, depth_multiplier=2), norm()
    ),
    "three dimensions": lambda: chain(
        layers.Reshape((4, 4, 4, 4)), layers.Conv3D(5, 2), norm(), layers.Flatten()
    ),
    "dense": lambda: chain(pool(), layers.Dense(5), norm()),
    "dense on a map": lambda: chain(layers.Dense(5, use_bias=False), norm()),
    "no scale": lambda: chain(layers.Conv2D(5, 3), norm(scale=False)),
    "no centre": lambda: chain(layers.Conv2D(5, 3), norm(center=False)),
    "epsilon": lambda: chain(layers.Conv2D(5, 3), norm(epsilon=0.5)),
    "dropout between": lambda: chain(
        layers.Conv2D(5, 3), layers.SpatialDropout2D(0.5), layers.Dropout(0.5), norm()
    ),
    "linear activation between": lambda: chain(
        layers.Conv2D(5, 3), layers.Activation("linear"), layers.Identity(), norm()
    ),
    "ours": lambda: chain(layers.Conv2D(5, 3), ssd.layers.BatchNormalization()),
    "ours, synchronized": lambda: chain(
        layers.Conv2D(5, 3), ssd.layers.BatchNormalization(synchronized=True)
    ),
    "called with training=False": lambda: called_with(False),
    "called with training=True": lambda: called_with(True),  # the model's own `training` wins
}


def called_with(training):
    """A network whose batch norm and dropout were called with `training` in its graph."""
    inputs = keras.Input((8, 8, 4))
    x = layers.Conv2D(5, 3)(inputs)
    x = layers.BatchNormalization()(x, training=training)
    return drawn(keras.Model(inputs, layers.Dropout(0.5)(x, training=training)))


def norms_left(frozen):
    """Batch normalisations that a frozen teacher still runs, fused or as Keras does."""
    left = [kind for kind in operations(frozen) if kind in ("FusedBatchNormV3", "Rsqrt")]
    return len(left)


@pytest.mark.parametrize("case", BEHIND)
def test_folded_into_the_layer_before(case):
    model = BEHIND[case]()
    frozen = ssd.freeze(model)
    assert difference(frozen_answer(frozen), answer(model)) < FLOAT32
    assert norms_left(frozen) == 0
    kernels_and_bias = 3 if case == "separable" else 2
    assert len(frozen.variables) == kernels_and_bias


# --- Folded forwards: into the layer behind ----------------------------------------------------

BEFORE = {
    "convolution": lambda: chain(norm(), layers.Conv2D(5, 3)),
    "no bias, an activation": lambda: chain(
        norm(), layers.Conv2D(5, 3, use_bias=False, activation="relu")
    ),
    "one pixel": lambda: chain(norm(), layers.Conv2D(5, 1, padding="same", strides=2)),
    "grouped": lambda: chain(norm(), layers.Conv2D(6, 3, groups=2)),
    "depthwise": lambda: chain(norm(), layers.DepthwiseConv2D(3, depth_multiplier=3)),
    "separable": lambda: chain(norm(), layers.SeparableConv2D(5, 3, depth_multiplier=2)),
    "dense": lambda: chain(pool(), norm(), layers.Dropout(0.5), layers.Dense(5)),
    "between two": lambda: chain(layers.Conv2D(5, 3, activation="relu"), norm(), layers.Dense(3)),
}


@pytest.mark.parametrize("case", BEFORE)
def test_folded_into_the_layer_behind(case):
    model = BEFORE[case]()
    frozen = ssd.freeze(model)
    assert difference(frozen_answer(frozen), answer(model)) < FLOAT32
    assert norms_left(frozen) == 0


# --- Not folded --------------------------------------------------------------------------------


def two_readers():
    inputs = keras.Input((8, 8, 4))
    x = layers.Conv2D(5, 3)(inputs)
    y = layers.BatchNormalization()(x)
    return drawn(keras.Model(inputs, {"logits": pool()(y), "map": x}))


def two_readers_behind():
    inputs = keras.Input((8, 8, 4))
    y = layers.BatchNormalization()(layers.ReLU()(inputs))
    return drawn(keras.Model(inputs, {"logits": pool()(layers.Conv2D(5, 3)(y)), "map": y}))


class Doubled(layers.Conv2D):
    """No convolution that is known."""

    def call(self, inputs):
        return 2 * super().call(inputs)


NOT_FOLDED = {
    "before a ReLU": lambda: chain(norm(), layers.ReLU(), layers.Conv2D(5, 3), pool()),
    "before padding": lambda: chain(norm(), layers.Conv2D(5, 3, padding="same")),
    "before a transposed": lambda: chain(norm(), layers.Conv2DTranspose(5, 3)),
    "behind an activation": lambda: chain(layers.Conv2D(5, 3, activation="relu"), norm()),
    "behind a sum": lambda: chain(layers.Conv2D(5, 3), layers.ReLU(), norm()),
    "an output between": two_readers,
    "an output behind": two_readers_behind,
    "a class of the user's": lambda: chain(Doubled(5, 3), norm()),
    "another axis": lambda: chain(layers.Conv2D(5, 3), norm(axis=1)),
}


@pytest.mark.parametrize("case", NOT_FOLDED)
def test_not_folded_where_that_is_not_exact(case, caplog):
    model = NOT_FOLDED[case]()
    frozen = ssd.freeze(model)
    assert difference(frozen_answer(frozen), answer(model)) < FLOAT32
    assert norms_left(frozen) == 1
    name = next(layer.name for layer in model.layers if "normalization" in layer.name)
    assert f"1 layer(s) of {model.name!r} with batch normalisation that is not" in caplog.text
    assert caplog.text.rstrip().endswith(f" {name}")


def test_what_is_not_folded_runs_through_the_fused_kernel():
    model = chain(norm(), layers.ReLU(), norm(), layers.ReLU(), pool())
    assert fused_norms(ssd.freeze(model)) == 2
    assert fused_norms(ssd.freeze(model, fold_batch_norm=False)) == 0
    options = [{"scale": False}, {"center": False}, {"synchronized": True}]
    model = chain(*[x for option in options for x in (norm(**option), layers.ReLU())], pool())
    frozen = ssd.freeze(model)
    assert fused_norms(frozen) == 3
    assert difference(frozen_answer(frozen), answer(model)) < FLOAT32


def test_nothing_is_logged_where_all_is_folded(caplog):
    ssd.freeze(BEHIND["convolution"]())
    assert caplog.text == ""


# --- Graphs ------------------------------------------------------------------------------------


def residual():
    inputs = keras.Input((8, 8, 4))
    x = layers.ReLU()(norm()(layers.Conv2D(4, 3, padding="same")(inputs)))
    return drawn(keras.Model(inputs, pool()(norm()(layers.Conv2D(4, 1)(x)) + inputs / 2)))


def nested():
    inner = chain(layers.Conv2D(5, 3), layers.Dropout(0.5), name="inside")
    middle = keras.Sequential([keras.Input((8, 8, 4)), inner, norm()])
    inputs = keras.Input((8, 8, 4))
    x = middle(inputs, training=False)
    return drawn(keras.Model(inputs, {"logits": layers.Dense(3)(pool()(x)), "embedding": x}))


def shared():
    """A convolution that is called twice, a batch norm behind each call."""
    inputs = keras.Input((8, 8, 4))
    conv = layers.Conv2D(4, 3, padding="same")
    x = norm()(conv(layers.ReLU()(norm()(conv(inputs)))))
    return drawn(keras.Model(inputs, pool()(x)))


def same_names():
    """Two inner models with layers of the same names."""
    parts = [chain(layers.Conv2D(4, 1, name="conv"), norm(name="bn")) for _ in range(2)]
    inputs = keras.Input((8, 8, 4))
    for seed, part in enumerate(parts):
        drawn(part, seed)
    return keras.Model(inputs, pool()(parts[1](parts[0](inputs))))


def nested_twice():
    """One inner model that is called twice."""
    inner = chain(layers.Conv2D(4, 1), norm())
    inputs = keras.Input((8, 8, 4))
    return keras.Model(inputs, pool()(inner(layers.ReLU()(inner(inputs)))))


def unnamed_list():
    inputs = keras.Input((8, 8, 4))
    return drawn(keras.Model(inputs, [pool()(norm()(layers.Conv2D(5, 3)(inputs)))]))


def by_keyword():
    inputs = keras.Input((8, 8, 4))
    x = layers.Conv2D(5, 3)(inputs=inputs)
    return drawn(keras.Model(inputs, pool()(layers.BatchNormalization()(inputs=x))))


def dropout_alone():
    inputs = keras.Input((4,))
    return keras.Model(inputs, {"logits": layers.Dropout(0.5)(inputs)})


GRAPHS = {
    "residual": residual,
    "nested": nested,
    "shared": shared,
    "same names": same_names,
    "nested twice": nested_twice,
    "list of one": unnamed_list,
    "by keyword": by_keyword,
}


@pytest.mark.parametrize("case", GRAPHS)
def test_graphs(case):
    model = GRAPHS[case]()
    before, count = answer(model), len(model.weights)
    frozen = ssd.freeze(model)
    assert difference(frozen_answer(frozen), before) < FLOAT32
    assert norms_left(frozen) == 0
    assert difference(answer(model), before) == 0
    assert len(model.weights) == count


def test_the_input_is_handed_on():
    rows = IMAGES[:, 0, 0]
    np.testing.assert_array_equal(frozen_answer(ssd.freeze(dropout_alone()), rows)[0], rows)


def test_inputs_are_cast_as_the_models_cast_them():
    """A nested model's input is of another type than what it is given."""
    inner = chain(layers.Rescaling(2.0), layers.Conv2D(5, 3), norm(), dtype="int32")
    inputs = keras.Input((8, 8, 4))
    model = keras.Model(inputs, pool()(inner(inputs)))
    images = 20 * IMAGES
    frozen = ssd.freeze(model)
    assert difference(frozen_answer(frozen, images), answer(model, images)) < FLOAT32
    rounded = frozen_answer(frozen, np.floor(images))
    assert difference(rounded, frozen_answer(frozen, images)) == 0


def test_the_values_of_a_frozen_backbone_are_taken(tmp_path):
    """They are those when it was frozen, also when the file was read back."""
    model = chain(layers.Conv2D(5, 3), norm(), pool(), layers.Dense(3))
    network = ssd.with_projection(model, backbone="frozen")
    drawn(model, seed=1)
    expected = answer(network)
    assert difference(frozen_answer(ssd.freeze(network)), expected) < FLOAT32
    assert norms_left(ssd.freeze(network)) == 0
    network.save(tmp_path / "network.keras")
    loaded = keras.models.load_model(tmp_path / "network.keras")
    assert difference(frozen_answer(ssd.freeze(loaded)), expected) < FLOAT32


# --- Odd layers and inputs ---------------------------------------------------------------------


def masked(*behind):
    """Tokens, 0 of which are padding; the mask has to reach what stands behind the batch norm."""
    tokens = keras.Input((6,), dtype="int32")
    x = norm()(layers.Dense(5)(layers.Embedding(9, 4, mask_zero=True)(tokens)))
    for layer in behind:
        x = layer(x)
    return drawn(keras.Model(tokens, x))


def attending():
    tokens = keras.Input((6,), dtype="int32")
    x = norm()(layers.Dense(5)(layers.Embedding(9, 4, mask_zero=True)(tokens)))
    return drawn(keras.Model(tokens, layers.MultiHeadAttention(1, 2)(x, x)))


def test_masks_pass_a_folded_batch_norm():
    tokens = np.array([[1, 2, 3, 0, 0, 0], [4, 5, 6, 7, 8, 0]])
    for model in (masked(layers.GlobalAveragePooling1D()), attending()):
        frozen = ssd.freeze(model)
        assert difference(frozen_answer(frozen, tokens), answer(model, tokens)) < FLOAT32
        assert norms_left_on(frozen, tokens) == 0


def norms_left_on(frozen, images):
    return sum(kind == "Rsqrt" for kind in operations(frozen, images))


class Plain(keras.regularizers.Regularizer):
    """What no config can hold."""

    def __call__(self, x):
        return 0.0 * keras.ops.sum(x)


def doubled(x):
    return 2 * keras.ops.relu(x)


UNWRITTEN = {
    "activation behind": lambda: chain(norm(), layers.Conv2D(5, 3, activation=doubled)),
    "lambda behind": lambda: chain(norm(), layers.Conv2D(5, 3, activation=lambda x: x * x)),
    "regularizer": lambda: chain(layers.Conv2D(5, 3, kernel_regularizer=Plain()), norm()),
    "of the norm": lambda: chain(layers.Conv2D(5, 3), norm(gamma_regularizer=Plain())),
    "lambda initializer": lambda: chain(
        layers.Conv2D(5, 3, kernel_initializer=lambda *options, **_: keras.ops.ones(options[0])),
        norm(),
    ),
}


@pytest.mark.parametrize("case", UNWRITTEN)
def test_layers_that_no_config_can_hold(case):
    model = UNWRITTEN[case]()
    frozen = ssd.freeze(model)
    assert difference(frozen_answer(frozen), answer(model)) < FLOAT32
    assert norms_left(frozen) == 0


def test_integers_in_front_of_a_batch_norm():
    model = chain(norm(), layers.Conv2D(5, 3), dtype="uint8")
    images = (255 * IMAGES).astype("uint8")
    assert difference(frozen_answer(ssd.freeze(model), images), answer(model, images)) < FLOAT32


def test_identity_of_several_tensors():
    inputs = keras.Input((8, 8, 4))
    pair = layers.Identity()([layers.Conv2D(5, 3)(inputs), layers.Conv2D(5, 3)(inputs)])
    model = keras.Model(inputs, pool()(pair[0] + 2 * pair[1]))
    assert difference(frozen_answer(ssd.freeze(model)), answer(model)) < FLOAT32


def two_inputs(structure):
    first, second = keras.Input((8, 8, 4), name="b"), keras.Input((8, 8, 4), name="a")
    x = norm()(layers.Conv2D(5, 3)(first)) + layers.Conv2D(5, 3)(second)
    return drawn(keras.Model(structure(first, second), pool()(x)))


@pytest.mark.parametrize("structure", [lambda b, a: [b, a], lambda b, a: {"b": b, "a": a}])
def test_several_inputs(structure, caplog):
    """In any order that Keras takes; nested, such a model runs as it is, and the log says so."""
    model = two_inputs(structure)
    given = {"a": tf.constant(IMAGES), "b": tf.constant(IMAGES[::-1])}
    frozen = ssd.freeze(model, preprocessing=lambda _: given)
    expected = [np.asarray(model(given, training=False))]
    assert difference(frozen_answer(frozen), expected) < FLOAT32
    assert norms_left(frozen) == 0
    assert caplog.text == ""
    inputs = keras.Input((8, 8, 4))
    outer = keras.Model(inputs, model(structure(inputs[:, ::-1], inputs)))
    assert difference(frozen_answer(ssd.freeze(outer)), answer(outer)) < FLOAT32
    assert "not folded" in caplog.text
    assert caplog.text.rstrip().endswith(model.name)


def test_rows_without_their_last_dimension():
    model = chain(layers.Conv2D(5, 3), norm(), pool(), shape=(8, 8, 1))
    rows = IMAGES[..., 0]
    assert difference(frozen_answer(ssd.freeze(model), rows), answer(model, rows)) < FLOAT32


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_a_layer_that_is_called_often_is_copied_once(dtype):
    inputs = keras.Input((8, 8, 4))
    conv, bn = layers.Conv2D(4, 3, padding="same"), norm()
    x = inputs
    for _ in range(3):
        x = bn(layers.ReLU()(conv(x)))
    model = drawn(keras.Model(inputs, pool()(x)))
    frozen = ssd.freeze(model, dtype=dtype)
    assert len(frozen.variables) == 6
    assert difference(frozen_answer(frozen), answer(model)) < (2**-6 if dtype else FLOAT32)


def test_nothing_happens_to_the_model():
    """Not to its losses, its random states or its weights."""
    model = chain(
        layers.ReLU(activity_regularizer="l2"),
        layers.RandomFlip(),
        layers.Conv2D(5, 3, activity_regularizer="l2"),
        layers.Dropout(0.5),
        norm(),
        pool(),
    )
    before = [np.asarray(v) for v in model.variables]
    frozen = ssd.freeze(model)
    frozen_answer(frozen)
    assert model.losses == []
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)


def test_layers_inside_layers_are_named(caplog):
    class Block(keras.Model):
        def __init__(self, **options):
            super().__init__(**options)
            self.norm = layers.BatchNormalization()

        def call(self, x, training=None):
            return self.norm(x, training=training)

    model = chain(layers.Reshape((2, 4, 8, 4)), layers.TimeDistributed(norm(), name="times"))
    wrapped = keras.Sequential([model, layers.Reshape((8, 8, 4)), Block(name="block")])
    wrapped.build((None, 8, 8, 4))
    frozen = ssd.freeze(wrapped)
    assert difference(frozen_answer(frozen), answer(wrapped)) < FLOAT32
    assert caplog.text.rstrip().endswith(": times, block")


def test_layers_that_keras_does_not_know_run_as_they_are():
    class Power(layers.Layer):
        def build(self, shape):
            self.exponent = self.add_weight(shape=(shape[-1],), initializer="ones", name="power")

        def call(self, x, training=None):
            return x ** (2 * self.exponent) if not training else x

    model = chain(layers.Conv2D(5, 3), norm(), Power(), pool(), Power())
    frozen = ssd.freeze(model)
    expected = answer(model)
    assert difference(frozen_answer(frozen), expected) < FLOAT32
    for weight in model.weights:
        weight.assign(weight + 1)
    assert difference(frozen_answer(frozen), expected) < FLOAT32


class OwnCall(keras.Model):
    """A model that has a graph, but answers otherwise."""

    def call(self, inputs, training=None):
        return 3 + super().call(inputs, training=training)


def own_call(inside):
    inner = chain(layers.Conv2D(5, 3), norm(), pool())
    model = OwnCall(inner.input, inner.output, name="own")
    if not inside:
        return model
    inputs = keras.Input((8, 8, 4))
    return keras.Model(inputs, layers.ReLU()(model(inputs)))


@pytest.mark.parametrize("inside", [False, True])
def test_a_call_of_the_users_decides(inside, caplog):
    model = own_call(inside)
    frozen = ssd.freeze(model)
    assert difference(frozen_answer(frozen), answer(model)) == 0
    expected = "1 layer(s) of 'functional" if inside else "freeze: 'own' is a subclassed model"
    assert expected in caplog.text


# --- Precision, devices, randomness ------------------------------------------------------------


def test_folding_in_float64(float64):
    model = chain(layers.Conv2D(5, 3), norm(), layers.ReLU(), norm(), pool(), layers.Dense(3))
    got = frozen_answer(ssd.freeze(model), IMAGES.astype("float64"))
    assert got[0].dtype == np.float64
    assert difference(got, answer(model, IMAGES.astype("float64"))) < 1e-14


def test_layers_of_different_precision_are_not_folded():
    model = chain(layers.Conv2D(5, 3, dtype="mixed_bfloat16"), norm(dtype="float32"), pool())
    frozen = ssd.freeze(model)
    assert norms_left(frozen) == 1
    assert difference(frozen_answer(frozen), answer(model)) < FLOAT32


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_a_model_in_mixed_precision_keeps_it(policy):
    keras.config.set_dtype_policy(policy)
    model = chain(layers.Conv2D(5, 3), norm(), layers.ReLU(), pool(), layers.Dense(3))
    frozen = ssd.freeze(model)
    half = policy.removeprefix("mixed_")
    assert frozen(tf.constant(IMAGES))["logits"].dtype == half
    got, expected = frozen_answer(frozen)[0].astype("float32"), answer(model)[0].astype("float32")
    assert difference([got], [expected]) < {"bfloat16": 2**-6, "float16": 2**-9}[half]


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_freezing_draws_no_random_number(dtype):
    model = chain(
        layers.RandomFlip(),
        layers.Conv2D(5, 3),
        layers.Dropout(0.5),
        norm(),
        layers.ReLU(),
        norm(),
        pool(),
    )
    inputs = keras.Input((8, 8, 4))
    maps = layers.Reshape((64, 5))(layers.Conv2D(5, 1)(inputs))
    attended = layers.MultiHeadAttention(1, 2, dropout=0.5)(maps, maps)
    model = keras.Model(inputs, {"logits": model(inputs), "attended": attended})
    keras.utils.set_random_seed(3)
    expected = layers.Dense(4).kernel_initializer((4, 4)).numpy()
    keras.utils.set_random_seed(3)
    state = random.getstate()
    ssd.freeze(model, dtype=dtype)
    assert random.getstate() == state
    np.testing.assert_array_equal(layers.Dense(4).kernel_initializer((4, 4)), expected)


def test_mirrored(two_replicas):
    model = chain(layers.Conv2D(5, 3), norm(), layers.ReLU(), norm(), pool(), layers.Dense(3))
    with two_replicas.scope():
        frozen = ssd.freeze(model)
        assert all(
            two_replicas.extended.variable_created_in_scope(v.value) for v in frozen.variables
        )
    results = tf.function(lambda x: two_replicas.run(frozen, args=(x,)))(tf.constant(IMAGES))
    for part in two_replicas.experimental_local_results(results["logits"]):
        assert difference([part.numpy()], answer(model)) < FLOAT32


def test_xla():
    model = residual()
    compiled = tf.function(ssd.freeze(model), jit_compile=True)
    assert difference([compiled(tf.constant(IMAGES))["logits"].numpy()], answer(model)) < FLOAT32
