import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_ssd.layers import FrozenBackbone
from keras_ssd.layers.frozen_backbone import FrozenCopy

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3)).astype("uint8")


def branches():
    """Parallel paths of equal depth, a shared layer, dropout and batch normalisation."""
    images = keras.Input((8, 8, 3))
    x = layers.Rescaling(1 / 255, dtype="float32")(images)
    paths = [layers.Conv2D(4, size, padding="same", name=f"c{size}")(x) for size in (5, 1, 3)]
    shared = layers.Conv2D(4, 3, padding="same", name="a_shared")
    x = layers.Add()([shared(path) for path in paths])
    x = layers.Dropout(0.5)(layers.BatchNormalization()(x))
    x = layers.GlobalAveragePooling2D()(x)
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(6), layers.Dense(4)])
    x = inner(x)
    return keras.Model(images, {"logits": layers.Dense(5, dtype="float32")(x), "embedding": x})


class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.norm = layers.BatchNormalization()
        self.drop = layers.Dropout(0.5)
        self.dense = layers.Dense(5)

    def build(self, shape):
        self.norm.build(shape)
        self.dense.build((None, shape[-1]))

    def call(self, images, training=None):
        x = self.norm(keras.ops.cast(images, "float32") / 255, training=training)
        return self.dense(keras.ops.mean(self.drop(x, training=training), axis=(1, 2)))


def trained(model):
    """`model` with statistics and offsets that are not the initial ones."""
    for weight in model.weights:
        shift = keras.random.uniform(weight.shape, dtype="float32")
        weight.assign(weight + keras.ops.cast(shift, weight.dtype))
    return model


def as_dict(outputs):
    return outputs if isinstance(outputs, dict) else {"logits": outputs}


def assert_equal(got, expected):
    got, expected = as_dict(got), as_dict(expected)
    assert got.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(got[name], expected[name])


def unregistered_loss(labels, predictions):
    return keras.ops.mean(predictions - labels)


def subclassed():
    model = Subclassed()
    model(IMAGES)
    return model


@pytest.mark.parametrize("build", [branches, subclassed])
@pytest.mark.parametrize("training", [None, False, True])
def test_bit_equal_to_the_model(build, training):
    model = trained(build())
    assert_equal(FrozenBackbone(model)(IMAGES, training=training), model(IMAGES, training=False))


def test_holds_copies_and_nothing_else():
    model = trained(branches())
    layer = FrozenBackbone(model)
    assert not layer.trainable_variables
    assert len(layer.variables) == len(model.weights)
    assert not {id(v) for v in layer.variables} & {id(v) for v in model.variables}
    layer.trainable = True
    assert not layer.trainable_variables
    assert not list(layer._flatten_layers(include_self=False))


def test_the_model_is_left_alone_and_may_change():
    model = trained(branches())
    before = [w.numpy() for w in model.weights]
    layer = FrozenBackbone(model)
    expected = layer(IMAGES, training=True)
    for old, weight in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(weight, old)
    trained(model)
    model.trainable = False
    assert_equal(layer(IMAGES), expected)


def test_changes_of_the_copies_count():
    layer = FrozenBackbone(trained(branches()))
    before = layer(IMAGES)["logits"].numpy()
    for variable in layer.variables:
        variable.assign(variable * 2)
    assert np.all(layer(IMAGES)["logits"].numpy() != before)


def inside_a_network(layer):
    images = keras.Input((8, 8, 3))
    return keras.Model(images, layer(images)["logits"])


@pytest.mark.parametrize("jit_compile", [False, True])
def test_in_a_graph(jit_compile):
    model = trained(branches())
    network = inside_a_network(FrozenBackbone(model))
    compiled = tf.function(network, jit_compile=jit_compile)
    np.testing.assert_allclose(
        compiled(IMAGES, training=True), model(IMAGES)["logits"], rtol=2e-6, atol=2e-6
    )


def test_stateless_call_sees_the_values_given_to_it():
    network = inside_a_network(FrozenBackbone(trained(branches())))
    zeros = [np.zeros(v.shape, v.dtype) for v in network.non_trainable_variables]
    outputs, _ = network.stateless_call([], zeros, IMAGES)
    np.testing.assert_array_equal(outputs, np.zeros((4, 5)))


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_outside_does_not_reach_inside(policy):
    model = trained(branches())
    keras.config.set_dtype_policy(policy)
    network = inside_a_network(FrozenBackbone(model))
    # 255.3 has no half-precision neighbour nearer than 0.05
    images = (IMAGES + 0.3).astype("float32")
    np.testing.assert_array_equal(network(images), model(images)["logits"])


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_inside(policy):
    keras.config.set_dtype_policy(policy)
    model = trained(branches())
    layer = FrozenBackbone(model)
    assert {v.dtype for v in layer.variables} == {"float32"}
    assert layer(IMAGES)["embedding"].dtype == model.compute_dtype
    assert_equal(layer(IMAGES), model(IMAGES))


@pytest.mark.parametrize("file", ["net.keras", "net.weights.h5"])
def test_saving(file, tmp_path):
    model = trained(branches())
    model.compile("sgd", loss=unregistered_loss)
    network = inside_a_network(FrozenBackbone(model))
    if file.endswith(".keras"):
        network.save(tmp_path / file)
        loaded = keras.models.load_model(tmp_path / file)
    else:
        network.save_weights(tmp_path / file)
        loaded = inside_a_network(FrozenBackbone(branches()))
        loaded.load_weights(tmp_path / file)
    np.testing.assert_array_equal(loaded(IMAGES), network(IMAGES))
    assert not loaded.trainable_variables
    model.get_layer("a_shared").kernel.assign(model.get_layer("a_shared").kernel * 2)
    np.testing.assert_array_equal(loaded(IMAGES), network(IMAGES))


def test_a_file_holds_every_weight_once(tmp_path):
    model = branches()
    inside_a_network(FrozenBackbone(model)).save_weights(tmp_path / "frozen.weights.h5")
    keras.Model(model.input, model.output["logits"]).save_weights(tmp_path / "plain.weights.h5")
    sizes = [(tmp_path / f"{name}.weights.h5").stat().st_size for name in ("frozen", "plain")]
    assert sizes[0] <= sizes[1] + 4096


def test_two_replicas(two_replicas, tmp_path):
    with two_replicas.scope():
        model = trained(branches())
        network = inside_a_network(FrozenBackbone(model))
    expected = model(IMAGES)["logits"]
    per_replica = two_replicas.run(tf.function(network), args=(tf.constant(IMAGES),))
    for value in two_replicas.experimental_local_results(per_replica):
        np.testing.assert_allclose(value, expected, rtol=2e-6, atol=2e-6)
    network.save(tmp_path / "net.keras")
    with two_replicas.scope():
        loaded = keras.models.load_model(tmp_path / "net.keras")
    np.testing.assert_array_equal(loaded(IMAGES), network(IMAGES))


def test_gradient_reaches_the_images():
    layer = FrozenBackbone(trained(branches()))
    images = tf.constant(IMAGES, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(images)
        total = tf.reduce_sum(layer(images)["logits"])
    assert np.any(tape.gradient(total, images).numpy())


def test_regularisers_of_a_frozen_model_are_no_loss():
    images = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, kernel_regularizer="l2", activity_regularizer="l2")(images)
    model = keras.Model(images, {"logits": layers.GlobalAveragePooling2D()(x)})
    network = inside_a_network(FrozenBackbone(model))
    network(IMAGES, training=True)
    assert network.losses == []


def test_unbuilt_model():
    with pytest.raises(ValueError, match="has no weights yet: call it once"):
        FrozenBackbone(Subclassed())


# --- Other outputs of the same frozen model ---------------------------------------------------


def only_embedding(model):
    """A model on some of the layers of `model`."""
    return keras.Model(model.input, {"half": model.output["embedding"] * 0.5})


def test_other_outputs_come_from_the_same_copies():
    model = trained(branches())
    layer = FrozenBackbone(model, name="frozen", dtype="mixed_bfloat16")
    expected = model(IMAGES)["embedding"] * 0.5
    trained(model)
    twin = layer.with_outputs_of(only_embedding(model))
    assert twin.name == "frozen"
    assert twin.dtype_policy.name == "mixed_bfloat16"
    assert_equal(twin(IMAGES, training=True), {"half": expected})
    assert len(twin.variables) == len(layer.variables) - 2  # without the last Dense layer
    assert {id(v) for v in twin.variables} < {id(v) for v in layer.variables}
    assert not twin.trainable_variables
    for variable in layer.variables:
        variable.assign(variable * 2)
    assert np.all(twin(IMAGES)["half"].numpy() != expected.numpy())
    assert_equal(layer(IMAGES), layer.with_outputs_of(model)(IMAGES))


def test_other_outputs_of_a_frozen_layer_inside():
    """The outer layer's copies count, not those of the inner one that they were made of."""
    model = trained(branches())
    inner = FrozenBackbone(model)
    images = keras.Input((8, 8, 3))
    around = keras.Model(images, inner(images))
    outer = FrozenBackbone(around)
    expected = model(IMAGES)["embedding"] * 0.5
    for variable in inner.variables:
        variable.assign(variable * 2)
    inner_twin = inner.with_outputs_of(only_embedding(model))
    twin = outer.with_outputs_of(keras.Model(images, inner_twin(images)))
    assert_equal(twin(IMAGES), {"half": expected})


def test_a_frozen_copy_may_be_handed_in():
    model = trained(branches())
    frozen = FrozenCopy(model)
    layer = FrozenBackbone(frozen)
    assert_equal(layer(IMAGES), model(IMAGES))
    assert [id(v) for v in layer.variables] == [id(v) for v in frozen.variables]
