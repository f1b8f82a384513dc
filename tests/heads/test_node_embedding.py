import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_ssd as ssd
from keras_ssd.heads.node_embedding import with_folded_classifier

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3)).astype("uint8")


def model(dtype=None):
    images = keras.Input((8, 8, 3), dtype="uint8")
    x = keras.layers.Rescaling(1 / 128, -1, dtype="float32")(images)
    x = keras.layers.Conv2D(6, 3, strides=2, dtype=dtype)(x)
    x = keras.layers.GlobalAveragePooling2D(name="embedding", dtype=dtype)(x)
    return keras.Model(images, keras.layers.Dense(4, name="logits", dtype=dtype)(x))


def test_two_linear_layers_take_the_place_of_the_classifier():
    plain = model()
    network = ssd.with_node_embedding(plain, units=3)
    outputs = network(IMAGES)
    assert list(outputs) == ["node", "logits"]
    embedding = keras.Model(plain.input, plain.get_layer("embedding").output)(IMAGES).numpy()
    node, logits = network.get_layer("node"), network.get_layer("logits")
    expected = embedding @ node.kernel.numpy() + node.bias.numpy()
    np.testing.assert_allclose(outputs["node"], expected, rtol=1e-5, atol=1e-6)
    expected = expected @ logits.kernel.numpy() + logits.bias.numpy()
    np.testing.assert_allclose(outputs["logits"], expected, rtol=1e-5, atol=1e-6)
    assert logits is not plain.get_layer("logits")


def test_first_weights_are_uniform_within_the_root_of_the_width():
    network = ssd.with_node_embedding(model(), units=400, num_classes=300)
    for name, width in (("node", 6), ("logits", 400)):
        for weight in network.get_layer(name).weights:
            largest = np.abs(weight.numpy()).max()
            assert 0.9 / np.sqrt(width) < largest <= 1 / np.sqrt(width)


def test_layers_are_shared():
    plain = model()
    assert ssd.with_node_embedding(plain, units=3).layers[2] is plain.layers[2]


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_heads_compute_in_float32_under_a_global_policy(policy):
    keras.config.set_dtype_policy(policy)
    vectors = np.ones([2, 6], "float32")
    for head in (ssd.node_embedding_head(6, 4, units=3), ssd.fixed_node_embedding(6, units=3)):
        assert {output.dtype for output in head(vectors).values()} == {tf.float32}


def test_further_outputs_are_kept():
    network = ssd.with_node_embedding(ssd.with_projection(model()), units=3)
    assert set(network.output) == {"projection", "node", "logits"}


def test_classes_can_be_others_and_an_encoder_may_have_none():
    assert ssd.with_node_embedding(model(), num_classes=7).output["logits"].shape == (None, 7)
    plain = model()
    encoder = keras.Model(plain.input, plain.get_layer("embedding").output)
    network = ssd.with_node_embedding(encoder, units=3, num_classes=2, embedding="embedding")
    assert network.output["node"].shape == (None, 3)


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_outputs_are_float32_under_mixed_precision(dtype):
    outputs = ssd.with_node_embedding(model(dtype), units=3)(IMAGES)
    assert {output.dtype for output in outputs.values()} == {tf.float32}


@pytest.mark.parametrize("times", [1, 2])
def test_the_exported_classifier_is_one_layer(times, tmp_path):
    network = ssd.with_node_embedding(model(), units=300)
    for _ in range(times):  # a network may be exported after each epoch
        folded = with_folded_classifier(ssd.strip_heads(network))
    assert [layer.name for layer in folded.layers][-2:] == ["embedding", "logits"]
    assert folded.count_params() == model().count_params()
    logits = network(IMAGES)["logits"]
    np.testing.assert_allclose(folded(IMAGES), logits, rtol=1e-5, atol=1e-5)
    ssd.export_student(network, tmp_path / "student")
    loaded = tf.saved_model.load(str(tmp_path / "student"))
    assert {tuple(w.shape) for w in loaded.weights} == {tuple(w.shape) for w in model().weights}
    exported = loaded.signatures["serving_default"](image=tf.constant(IMAGES))["logits"]
    np.testing.assert_allclose(exported, logits, rtol=1e-5, atol=1e-5)


def inside(network):
    """The network as a layer of another one."""
    images = keras.Input((8, 8, 3), dtype="uint8")
    return keras.Model(images, network(images))


@pytest.mark.parametrize("depth", [1, 2])
def test_nothing_is_left_of_the_classifier_of_a_model_inside(depth, tmp_path):
    nested = model()
    for _ in range(depth):
        nested = inside(nested)
    network, plain = (
        ssd.with_node_embedding(nested, units=3),
        ssd.with_node_embedding(model(), units=3),
    )
    assert [w.shape for w in network.trainable_weights] == [
        w.shape for w in plain.trainable_weights
    ]
    network.save(tmp_path / "network.keras")
    loaded = keras.models.load_model(tmp_path / "network.keras")
    for name, output in network(IMAGES).items():
        np.testing.assert_array_equal(loaded(IMAGES)[name], output)
    assert nested(IMAGES).shape == (5, 4)  # as it was


@pytest.mark.parametrize("depth", [1, 2])
def test_the_classifier_of_a_student_inside_is_folded(depth, tmp_path):
    network = student = ssd.with_node_embedding(ssd.with_projection(model()), units=300)
    for _ in range(depth):
        network = inside(network)
    ssd.export_student(network, tmp_path / "student")
    loaded = tf.saved_model.load(str(tmp_path / "student"))
    assert {tuple(w.shape) for w in loaded.weights} == {tuple(w.shape) for w in model().weights}
    exported = loaded.signatures["serving_default"](image=tf.constant(IMAGES))["logits"]
    np.testing.assert_allclose(exported, student(IMAGES)["logits"], rtol=1e-5, atol=1e-5)


def test_folding_leaves_the_network_and_other_networks_alone():
    network = ssd.strip_heads(ssd.with_node_embedding(model(), units=3))
    before = network(IMAGES)
    with_folded_classifier(network)
    np.testing.assert_array_equal(network(IMAGES), before)
    plain = model()
    assert with_folded_classifier(plain) is plain


def test_a_dense_layer_with_an_activation_is_not_folded():
    images = keras.Input((8, 8, 3))
    x = keras.layers.GlobalAveragePooling2D()(images)
    x = keras.layers.Dense(5, activation="relu", name="node")(x)
    network = keras.Model(images, keras.layers.Dense(4, name="logits")(x))
    np.testing.assert_array_equal(with_folded_classifier(network)(IMAGES), network(IMAGES))
    assert with_folded_classifier(network) is network


def test_saved_and_loaded(tmp_path):
    network = ssd.with_node_embedding(model(), units=3)
    network.save(tmp_path / "network.keras")
    loaded = keras.models.load_model(tmp_path / "network.keras")
    for name, output in network(IMAGES).items():
        np.testing.assert_array_equal(loaded(IMAGES)[name], output)


def test_the_head_of_a_teacher():
    head = ssd.node_embedding_head(6, 4, units=3)
    assert head.inputs[0].name == "embedding"
    vectors = np.random.default_rng(0).normal(size=(5, 6)).astype("float32")
    outputs = head(vectors)
    node, logits = head.get_layer("node"), head.get_layer("logits")
    np.testing.assert_allclose(outputs["node"], node(vectors), rtol=1e-6)
    np.testing.assert_allclose(outputs["logits"], logits(node(vectors)), rtol=1e-6)


@pytest.mark.parametrize(("width", "units"), [(6, 6), (6, 3), (3, 6)])
def test_a_fixed_head_keeps_angles(width, units):
    head = ssd.fixed_node_embedding(width, units=units, seed=1)
    assert not head.trainable_weights
    vectors = np.random.default_rng(0).normal(size=(5, width)).astype("float32")
    nodes = np.asarray(head(vectors)["node"])
    assert nodes.shape == (5, units)
    if width <= units:  # all of the vector is in there
        np.testing.assert_allclose(nodes @ nodes.T, vectors @ vectors.T, rtol=1e-5, atol=1e-5)
    else:
        kernel = head.weights[0].numpy()
        np.testing.assert_allclose(kernel.T @ kernel, np.eye(units), atol=1e-6)
    if width == units:
        np.testing.assert_array_equal(nodes, vectors)
    again = ssd.fixed_node_embedding(width, units=units, seed=1)
    np.testing.assert_array_equal(again(vectors)["node"], nodes)


@pytest.mark.parametrize(
    ("sentence", "wrong"),
    [
        ("`units` must be an integer >= 2", lambda: ssd.with_node_embedding(model(), units=1)),
        ("`num_classes` must be", lambda: ssd.with_node_embedding(model(), num_classes=1)),
        (
            "has a node embedding already",
            lambda: ssd.with_node_embedding(ssd.with_node_embedding(model())),
        ),
        (
            "is made of a vector a row",
            lambda: ssd.with_node_embedding(model(), embedding="conv2d"),
        ),
        (
            "The output 'shares' of .* is made of the logits",
            lambda: ssd.with_node_embedding(
                keras.Model(
                    (m := model()).input,
                    {"logits": m.output, "shares": keras.layers.Softmax()(m.output)},
                )
            ),
        ),
        (
            "has a layer named 'node' before its embedding",
            lambda: ssd.with_node_embedding(
                keras.Sequential(
                    [
                        keras.Input((6,)),
                        keras.layers.Dense(5, name="node"),
                        keras.layers.ReLU(name="embedding"),
                        keras.layers.Dense(4),
                    ]
                )
            ),
        ),
        ("`units` must be", lambda: ssd.node_embedding_head(6, 4, units=True)),
        ("`width` must be", lambda: ssd.node_embedding_head(0, 4)),
        ("`units` must be", lambda: ssd.fixed_node_embedding(6, units=1)),
    ],
)
def test_mistakes(sentence, wrong):
    keras.backend.clear_session()  # so that the layers have their first names
    with pytest.raises(ValueError, match=sentence):
        wrong()
