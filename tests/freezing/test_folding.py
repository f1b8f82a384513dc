"""Batch normalisation folded wherever that is exact, and nowhere else."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_ssd as ssd
from freezing.networks import (
    FLOAT32,
    IMAGES,
    answer,
    chain,
    difference,
    drawn,
    frozen_answer,
    fused_norms,
    norm,
    norms_left,
    operations,
    pool,
)

# --- Folded backwards: into the layer before ----------------------------------------------------

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
    "separable, one dimension": lambda: chain(
        layers.Reshape((64, 4)), layers.SeparableConv1D(5, 3, depth_multiplier=2), norm()
    ),
    "transposed, one dimension": lambda: chain(
        layers.Reshape((64, 4)), layers.Conv1DTranspose(5, 3), norm()
    ),
    "transposed, three dimensions": lambda: chain(
        layers.Reshape((4, 4, 4, 4)), layers.Conv3DTranspose(5, 2), norm(), layers.Flatten()
    ),
    "channels first": lambda: chain(
        layers.Permute((3, 1, 2)), layers.Conv2D(5, 3, data_format="channels_first"), norm(axis=1)
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
    "ours, grouped": lambda: chain(ssd.layers.GroupedConv2D(6, 3, groups=2), norm()),
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


@pytest.mark.parametrize("case", BEHIND)
def test_folded_into_the_layer_before(case):
    model = BEHIND[case]()
    frozen = ssd.freeze(model)
    assert difference(frozen_answer(frozen), answer(model)) < FLOAT32
    assert norms_left(frozen) == 0
    kernels_and_bias = 3 if "separable" in case else 2
    assert len(frozen.variables) == kernels_and_bias


# --- Folded forwards: into the layer behind -----------------------------------------------------

BEFORE = {
    "convolution": lambda: chain(norm(), layers.Conv2D(5, 3)),
    "no bias, an activation": lambda: chain(
        norm(), layers.Conv2D(5, 3, use_bias=False, activation="relu")
    ),
    "one pixel": lambda: chain(norm(), layers.Conv2D(5, 1, padding="same", strides=2)),
    "grouped": lambda: chain(norm(), layers.Conv2D(6, 3, groups=2)),
    "ours, grouped": lambda: chain(norm(), ssd.layers.GroupedConv2D(6, 3, groups=2)),
    "depthwise": lambda: chain(norm(), layers.DepthwiseConv2D(3, depth_multiplier=3)),
    "separable": lambda: chain(norm(), layers.SeparableConv2D(5, 3, depth_multiplier=2)),
    "channels first": lambda: chain(
        layers.Permute((3, 1, 2)), norm(axis=1), layers.Conv2D(5, 3, data_format="channels_first")
    ),
    "dense": lambda: chain(pool(), norm(), layers.Dropout(0.5), layers.Dense(5)),
    "between two": lambda: chain(layers.Conv2D(5, 3, activation="relu"), norm(), layers.Dense(3)),
}


@pytest.mark.parametrize("case", BEFORE)
def test_folded_into_the_layer_behind(case):
    model = BEFORE[case]()
    frozen = ssd.freeze(model)
    assert difference(frozen_answer(frozen), answer(model)) < FLOAT32
    assert norms_left(frozen) == 0


# --- Not folded ---------------------------------------------------------------------------------


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


TRAINING_ONLY = [
    (layers.ActivityRegularization(l2=0.1), (8, 8, 4)),
    (layers.AlphaDropout(0.5), (8, 8, 4)),
    (layers.GaussianDropout(0.5), (8, 8, 4)),
    (layers.GaussianNoise(0.5), (8, 8, 4)),
    (layers.SpatialDropout1D(0.5), (64, 4)),
    (layers.SpatialDropout3D(0.5), (4, 4, 4, 4)),
]


@pytest.mark.parametrize(("layer", "shape"), TRAINING_ONLY)
def test_layers_for_training_are_no_obstacle(layer, shape):
    model = chain(layers.Reshape(shape), layers.Dense(5), layer, norm())
    frozen = ssd.freeze(model)
    assert difference(frozen_answer(frozen), answer(model)) < FLOAT32
    assert norms_left(frozen) == 0


def tripled(kind, *args):
    """A layer of the user's that inherits from one that folding knows."""

    class Tripled(kind):
        def call(self, inputs, **options):
            return 3 * super().call(inputs, **options)

    return Tripled(*args)


@pytest.mark.parametrize(
    ("kind", "args"),
    [
        (layers.BatchNormalization, ()),
        (layers.Dropout, (0.5,)),
        (layers.Activation, ("linear",)),
        (layers.Activation, ("relu",)),
    ],
)
def test_classes_of_the_users_decide(kind, args):
    model = chain(layers.Conv2D(5, 3), tripled(kind, *args), norm())
    assert difference(frozen_answer(ssd.freeze(model)), answer(model)) < FLOAT32


def test_nothing_is_logged_where_all_is_folded(caplog):
    ssd.freeze(BEHIND["convolution"]())
    assert caplog.text == ""


def test_layers_of_different_precision_are_not_folded():
    model = chain(layers.Conv2D(5, 3, dtype="mixed_bfloat16"), norm(dtype="float32"), pool())
    frozen = ssd.freeze(model)
    assert norms_left(frozen) == 1
    assert difference(frozen_answer(frozen), answer(model)) < FLOAT32


def test_integers_in_front_of_a_batch_norm():
    model = chain(norm(), layers.Conv2D(5, 3), dtype="uint8")
    images = (255 * IMAGES).astype("uint8")
    assert difference(frozen_answer(ssd.freeze(model), images), answer(model, images)) < FLOAT32


# --- What else stands in the way ----------------------------------------------------------------


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
        assert norms_left(frozen, tokens) == 0


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


def test_numbers_are_folded_in_float64():
    """A mean near a bias: what is left of the two has all its digits."""
    model = chain(pool(), layers.Dense(3), norm(), shape=(8, 8, 4))
    dense, bn = model.layers[-2:]
    dense.bias.assign([1000.25, -2000.5, 3000.125])
    bn.moving_mean.assign([1000.0, -2000.0, 3000.0])
    gamma, beta, _, variance = (np.float64(w) for w in bn.get_weights())
    expected = np.array([0.25, -0.5, 0.125]) * gamma / np.sqrt(variance + bn.epsilon) + beta
    bias = ssd.freeze(model).variables[-1]
    np.testing.assert_allclose(bias, expected, rtol=1e-6)


def test_layers_with_more_than_kernel_and_bias_are_left_alone():
    model = chain(layers.Conv2D(5, 3), norm(), layers.Dense(4, use_bias=False), norm())
    for layer in (model.layers[1], model.layers[3]):
        layer.enable_lora(2)
        layer.lora_kernel_b.assign(np.ones(layer.lora_kernel_b.shape))
    frozen = ssd.freeze(model)
    assert difference(frozen_answer(frozen), answer(model)) < FLOAT32
    assert norms_left(frozen) == 2


def test_no_first_value_is_drawn_and_no_loss_computed():
    drawn_values = []

    def initializer(shape, **options):
        drawn_values.append(shape)
        return keras.ops.ones(shape)

    model = chain(
        layers.Conv2D(5, 3, kernel_initializer=initializer, activity_regularizer="l2"), norm()
    )
    drawn_values.clear()
    assert "Square" not in operations(ssd.freeze(model))
    assert drawn_values == []


def test_folding_in_float64(float64):
    model = chain(layers.Conv2D(5, 3), norm(), layers.ReLU(), norm(), pool(), layers.Dense(3))
    got = frozen_answer(ssd.freeze(model), IMAGES.astype("float64"))
    assert got[0].dtype == np.float64
    assert difference(got, answer(model, IMAGES.astype("float64"))) < 1e-14
