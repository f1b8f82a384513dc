import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_ssd.heads import named_outputs, strip_heads, with_projection

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3)).astype("float32")


def convolutions(name="backbone"):
    images = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="conv")(images)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.ReLU(name="block_3")(x)
    return keras.Model(images, layers.GlobalAveragePooling2D(name="pool")(x), name=name)


def functional():
    images = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="conv")(images)
    x = layers.ReLU(name="block_3")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(images, layers.Dense(5, name="logits")(x), name="net")


def sequential():
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(4, 3, name="conv"),
            layers.ReLU(name="block_3"),
            layers.GlobalAveragePooling2D(name="pool"),
            layers.Dense(5),
        ],
        name="net",
    )


def nested():
    head = keras.Sequential([keras.Input((4,)), layers.Dense(5, name="dense")], name="head")
    rescale = layers.Rescaling(1 / 255)
    return keras.Sequential([keras.Input((8, 8, 3)), rescale, convolutions(), head], name="net")


def twice_nested():
    images = keras.Input((8, 8, 3))
    middle = keras.Model(images, convolutions()(images), name="middle")
    outer = keras.Input((8, 8, 3))
    return keras.Model(outer, layers.Dense(5)(middle(outer)), name="net")


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__(name="net")
        self.dense = layers.Dense(5)

    def call(self, images):
        return self.dense(keras.ops.mean(images, axis=(1, 2)))


CASES = {
    "functional": (functional, ""),
    "sequential": (sequential, ""),
    "nested": (nested, "backbone/"),
    "twice nested": (twice_nested, "middle/backbone/"),
}


@pytest.fixture(params=CASES)
def case(request):
    build, prefix = CASES[request.param]
    return build(), prefix


def inner(model, path):
    for name in path.split("/"):
        model = model.get_layer(name)
    return model


def test_taps_give_what_the_layers_give(case):
    model, prefix = case
    network = named_outputs(model, {"stage_1": f"{prefix}conv", "embedding": f"{prefix}pool"})
    outputs = network(IMAGES)
    np.testing.assert_array_equal(outputs["logits"], model(IMAGES))
    images = IMAGES / 255 if "rescaling" in [layer.name for layer in model.layers] else IMAGES
    conv = inner(model, f"{prefix}conv")
    np.testing.assert_allclose(outputs["stage_1"], conv(images), rtol=1e-6, atol=1e-6)
    assert outputs["embedding"].shape == (4, 4)
    assert list(network.output) == ["logits", "stage_1", "embedding"]


def test_layers_are_shared_and_the_model_is_left_alone(case):
    model, prefix = case
    before = model.get_config()
    network = named_outputs(model, {"stage": f"{prefix}block_3"})
    assert {id(v) for v in network.variables} == {id(v) for v in model.variables}
    assert model.get_config() == before
    network.compile("sgd", loss={"logits": "mse"})
    network.train_on_batch(IMAGES, {"logits": np.ones((4, 5), "float32")})
    np.testing.assert_array_equal(network(IMAGES)["logits"], model(IMAGES))


def test_nested_batch_norm_learns_its_statistics():
    model = nested()
    network = named_outputs(model, {"stage": "backbone/block_3"})
    network(IMAGES, training=True)
    assert np.any(model.get_layer("backbone").get_layer("norm").moving_mean.numpy() != 0)


def test_layers_called_by_keyword():
    images = keras.Input((8, 8, 3))
    model = keras.Model(images, layers.Dense(5)(inputs=convolutions()(inputs=images)))
    projected = named_outputs(with_projection(model), {"stage": "backbone/block_3"})
    np.testing.assert_array_equal(projected(IMAGES)["logits"], model(IMAGES))


def test_taps_survive_saving(case, tmp_path):
    model, prefix = case
    network = named_outputs(model, {"stage": f"{prefix}block_3"})
    network.save_weights(tmp_path / "net.weights.h5")
    loaded = type(network).from_config(network.get_config())
    loaded.load_weights(tmp_path / "net.weights.h5")
    for name, value in network(IMAGES).items():
        np.testing.assert_array_equal(loaded(IMAGES)[name], value)


def test_named_outputs_of_a_network_with_heads(case):
    model, prefix = case
    network = named_outputs(with_projection(model), {"stage": f"{prefix}block_3"})
    assert list(network.output) == ["logits", "projection", "stage"]
    with pytest.raises(ValueError, match="has an output named 'projection' already"):
        named_outputs(network, {"projection": f"{prefix}pool"})


def test_several_heads_of_a_nested_model_with_several_outputs():
    images = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="conv")(images)
    pool = layers.GlobalAveragePooling2D(name="pool")
    backbone = keras.Model(images, {"map": x, "vector": pool(x)}, name="backbone")
    outer = keras.Input((8, 8, 3))
    model = keras.Model(outer, layers.Dense(5)(backbone(outer)["vector"]))
    network = named_outputs(model, {"stage": "backbone/conv"})
    np.testing.assert_array_equal(network(IMAGES)["stage"], backbone(IMAGES)["map"])
    np.testing.assert_array_equal(network(IMAGES)["logits"], model(IMAGES))


def test_operations_that_are_no_layers():
    images = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="conv")(images) * 2.0 + 1.0
    model = keras.Model(images, layers.Dense(5)(keras.ops.mean(x, axis=(1, 2))))
    network = named_outputs(model, {"stage": "conv"})
    np.testing.assert_array_equal(network(IMAGES)["logits"], model(IMAGES))


def test_a_custom_loss_does_not_disturb():
    model = nested()
    model.get_layer("backbone").compile("sgd", loss=lambda y, p: keras.ops.mean(p - y))
    model.compile("sgd", loss=lambda y, p: keras.ops.mean(p - y))
    assert not named_outputs(model, {"stage": "backbone/block_3"}).compiled


def test_dtype_policy_and_name_are_kept():
    keras.config.set_dtype_policy("mixed_float16")
    model = functional()
    keras.config.set_dtype_policy("float32")
    network = named_outputs(model, {"stage": "block_3"})
    assert network.dtype_policy.name == "mixed_float16"
    assert network.name == "net"
    assert strip_heads(network).dtype_policy.name == "mixed_float16"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("block_3", r"No layer 'block_3' in model 'net'\. Close names: backbone/block_3\."),
        ("backbone/convv", r"Close names: backbone/conv, .*'backbone/block3'"),
        ("backbone/conv/deeper", "No layer 'backbone/conv/deeper'"),
        ("zzz", "Close names: none"),
    ],
)
def test_unknown_layer(path, message):
    with pytest.raises(ValueError, match=message):
        named_outputs(nested(), {"stage": path})


@pytest.mark.parametrize("names", [["block_3"], {"stage": 3}])
def test_names_of_outputs_are_a_dict_of_paths(names):
    with pytest.raises(TypeError, match="from names to paths of layers, such as"):
        named_outputs(nested(), names)


def test_layers_of_the_same_name_are_near_however_deep():
    with pytest.raises(ValueError, match="Close names: middle/backbone/block_3"):
        named_outputs(twice_nested(), {"stage": "block_3"})


def test_layer_called_twice():
    images = keras.Input((8, 8, 3))
    conv = layers.Conv2D(3, 3, padding="same", name="conv")
    x = layers.GlobalAveragePooling2D()(conv(conv(images)))
    model = keras.Model(images, layers.Dense(5)(x))
    with pytest.raises(ValueError, match="Layer 'conv' is called several times"):
        named_outputs(model, {"stage": "conv"})


def test_nested_model_called_twice():
    images = keras.Input((8, 8, 3))
    backbone = convolutions()
    model = keras.Model(images, layers.Dense(5)(backbone(images) + backbone(images * 2.0)))
    with pytest.raises(ValueError, match="Layer 'backbone/conv' is called several times"):
        named_outputs(model, {"stage": "backbone/conv"})


def test_a_call_outside_the_model_does_not_count():
    """Keras' own `layer.output` would give the tensor of the other graph."""
    model = functional()
    other = keras.Input((6, 6, 3))
    keras.Model(other, model.get_layer("conv")(other))
    network = named_outputs(model, {"stage": "conv"})
    np.testing.assert_array_equal(network(IMAGES)["stage"], model.get_layer("conv")(IMAGES))


def test_layer_with_several_outputs():
    images = keras.Input((8, 8, 3))
    both = keras.Model(images, [images * 1.0, images * 2.0], name="both")
    x = layers.GlobalAveragePooling2D()(both(images)[0])
    model = keras.Model(images, layers.Dense(5)(x))
    with pytest.raises(ValueError, match="Layer 'both' gives several tensors"):
        named_outputs(model, {"stage": "both"})


@pytest.mark.parametrize("function", [strip_heads, lambda m: named_outputs(m, {}), with_projection])
def test_models_that_cannot_be_taken_apart(function):
    with pytest.raises(ValueError, match=r"subclassed model.*from its `call` instead"):
        function(Subclassed())
    with pytest.raises(ValueError, match="not built: begin it with keras"):
        function(keras.Sequential([layers.Dense(5)]))
    with pytest.raises(TypeError, match="Expected a Keras model, got function"):
        function(lambda images: images)
    images = keras.Input((8,))
    with pytest.raises(ValueError, match=r"a dict with 'logits', got \['label'\]"):
        function(keras.Model(images, {"label": layers.Dense(5)(images)}))
    with pytest.raises(ValueError, match="a dict with 'logits', got list"):
        function(keras.Model(images, [layers.Dense(5)(images), layers.Dense(5)(images)]))


def test_strip_heads(case):
    model, prefix = case
    network = named_outputs(with_projection(model), {"stage": f"{prefix}block_3"})
    stripped = strip_heads(network)
    assert isinstance(stripped.output, keras.KerasTensor)
    np.testing.assert_array_equal(stripped(IMAGES), model(IMAGES))
    assert {id(v) for v in stripped.variables} == {id(v) for v in model.variables}


@pytest.mark.parametrize("reads_projection", [False, True])
def test_heads_of_a_network_inside_that_is_called_twice(reads_projection):
    """What one of the calls reads stays, and nothing else."""
    model = nested()
    network = with_projection(model)
    images = keras.Input(IMAGES.shape[1:])
    first, second = network(images), network(layers.Rescaling(0.5)(images))
    logits = second["logits"]
    if reads_projection:
        logits = layers.Dense(5, use_bias=False, trainable=False)(second["projection"])
    outer = keras.Model(images, layers.Add()([first["logits"], logits]))
    stripped = strip_heads(outer)
    np.testing.assert_array_equal(stripped(IMAGES), outer(IMAGES))
    left = network if reads_projection else model
    assert {id(v) for v in stripped.trainable_variables} == {
        id(v) for v in left.trainable_variables
    }
    assert (strip_heads(outer) is outer) == reads_projection


def test_strip_heads_of_a_plain_model(case):
    model, _ = case
    assert strip_heads(model) is model


def test_strip_heads_of_a_frozen_backbone():
    model = nested()
    stripped = strip_heads(with_projection(model, backbone="frozen"))
    np.testing.assert_array_equal(stripped(IMAGES), model(IMAGES))
    assert not stripped.trainable_variables


def test_graph_mode_and_gradients():
    model = nested()
    network = named_outputs(model, {"stage": "backbone/block_3"})

    @tf.function(jit_compile=True)
    def gradients(images):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(network(images)["stage"] ** 2)
        return tape.gradient(loss, model.get_layer("backbone").get_layer("conv").kernel.value)

    assert np.any(gradients(IMAGES).numpy())


# --- Taps inside a frozen backbone ------------------------------------------------------------


def frozen(model):
    """`logits` and `projection`, of a frozen copy of `model`."""
    return with_projection(model, backbone="frozen")


def convolutions_to_logits():
    inner = convolutions("convolutions")
    shift = tf.random.stateless_normal([2, 4], [0, 0])
    norm = inner.get_layer("norm")
    norm.moving_mean.assign(shift[0])
    norm.beta.assign(shift[1])
    images = keras.Input((8, 8, 3))
    return keras.Model(images, layers.Dense(5, name="logits")(inner(images)), name="net")


FROZEN = {  # name: (what makes the network out of a model, where its layers are)
    "frozen": (frozen, "backbone/convolutions/"),
    "inside a model": (
        lambda model: keras.Sequential([keras.Input((8, 8, 3)), strip_heads(frozen(model))]),
        "net/backbone/convolutions/",
    ),
    "frozen twice": (
        lambda model: frozen(strip_heads(frozen(model))),
        "backbone/backbone/convolutions/",
    ),
}


@pytest.fixture(params=FROZEN)
def frozen_case(request):
    """The model, the frozen network and what the model gives at `norm`; then the model changes."""
    make, prefix = FROZEN[request.param]
    model = convolutions_to_logits()
    network = make(model)
    stage = named_outputs(model, {"stage": "convolutions/norm"})(IMAGES)["stage"].numpy()
    for weight in model.weights:
        weight.assign(weight * 2 + 1)
    return model, network, prefix, stage


def outputs_of_dict(network):
    outputs = network(IMAGES, training=True)
    return outputs if isinstance(outputs, dict) else {"logits": outputs}


def test_taps_inside_a_frozen_backbone(frozen_case):
    model, network, prefix, stage = frozen_case
    kept = [v.numpy() for v in model.weights]
    tapped = named_outputs(network, {"stage": f"{prefix}norm", "vector": f"{prefix}pool"})
    outputs = tapped(IMAGES, training=True)
    np.testing.assert_array_equal(outputs["stage"], stage)
    np.testing.assert_allclose(outputs["vector"], np.maximum(stage, 0).mean((1, 2)), rtol=1e-5)
    for name, value in outputs_of_dict(network).items():
        np.testing.assert_array_equal(outputs[name], value)
    for weight, value in zip(model.weights, kept, strict=True):
        np.testing.assert_array_equal(weight, value)


def test_a_tapped_frozen_backbone_holds_the_same_copies(frozen_case):
    model, network, prefix, stage = frozen_case
    tapped = named_outputs(network, {"stage": f"{prefix}norm"})
    assert {id(v) for v in tapped.weights} == {id(v) for v in network.weights}
    assert not {id(v) for v in tapped.weights} & {id(v) for v in model.weights}
    assert len(tapped.trainable_weights) == len(network.trainable_weights)
    for value in network.weights:
        value.assign(value * 2)
    outputs = tapped(IMAGES)
    assert np.any(outputs["stage"] != stage)
    for name, value in outputs_of_dict(network).items():
        np.testing.assert_array_equal(outputs[name], value)


def test_taps_inside_a_frozen_backbone_survive_saving(frozen_case, tmp_path):
    _, network, prefix, _ = frozen_case
    tapped = named_outputs(network, {"stage": f"{prefix}norm"})
    expected = tapped(IMAGES)
    tapped.save(tmp_path / "net.keras")
    tapped.save_weights(tmp_path / "net.weights.h5")
    loaded = keras.models.load_model(tmp_path / "net.keras")
    again = type(loaded).from_config(loaded.get_config())
    again.load_weights(tmp_path / "net.weights.h5")
    for read in (loaded, again):
        assert len(read.trainable_weights) == len(tapped.trainable_weights)
        for name, value in read(IMAGES).items():
            np.testing.assert_array_equal(value, expected[name])


def test_unknown_layer_of_a_frozen_backbone():
    with pytest.raises(ValueError, match=r"Close names: backbone/convolutions/norm"):
        named_outputs(frozen(convolutions_to_logits()), {"stage": "norm"})


def test_a_tapped_frozen_backbone_in_a_graph_and_in_half_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = convolutions_to_logits()
    keras.config.set_dtype_policy("float32")
    stage = named_outputs(model, {"stage": "convolutions/norm"})(IMAGES)["stage"]
    tapped = named_outputs(frozen(model), {"stage": "backbone/convolutions/norm"})
    assert tapped.dtype_policy.name == "mixed_bfloat16"
    assert tapped(IMAGES)["stage"].dtype == tf.bfloat16
    compiled = tf.function(tapped)(IMAGES)["stage"]
    np.testing.assert_allclose(
        tf.cast(compiled, tf.float32), tf.cast(stage, tf.float32), rtol=0.02, atol=0.02
    )
