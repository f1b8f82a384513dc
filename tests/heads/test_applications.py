"""Auxiliary classifiers on the networks that come with Keras."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from heads.networks import layers_of_head, with_heads
from keras_ssd.heads.stages import find_taps
from keras_ssd.layers.functional import as_functional

pytestmark = pytest.mark.slow

TAPS = {
    "ResNet50": ["conv2_block3_out", "conv3_block4_out", "conv4_block6_out", "conv5_block3_out"],
    "MobileNetV2": [
        "block_1_expand_relu",
        "block_2_add",
        "block_5_add",
        "block_12_add",
        "block_15_add",
    ],
    "MobileNetV3Small": [
        "re_lu_2",
        "expanded_conv_2_add",
        "expanded_conv_7_add",
        "expanded_conv_10_add",
    ],
    "EfficientNetB0": [
        "block2a_expand_activation",
        "block2b_add",
        "block3b_add",
        "block5c_add",
        "block6d_add",
    ],
    "DenseNet121": [
        "conv2_block6_concat",
        "conv3_block12_concat",
        "conv4_block24_concat",
        "conv5_block16_concat",
    ],
}


@pytest.mark.parametrize("name", TAPS)
def test_one_step_on_a_network_of_keras(name, caplog):
    keras.backend.clear_session()  # some layers are named by their number
    build = getattr(keras.applications, name)
    model = build(weights=None, classifier_activation=None, classes=3, input_shape=(32, 32, 3))
    assert find_taps(as_functional(model)) == TAPS[name]
    network = with_heads(model)
    assert "small" not in caplog.text
    images = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype("float32")
    with tf.GradientTape() as tape:
        outputs = network(images, training=True)
        loss = sum(tf.reduce_mean(logits**2) for logits in outputs.values())
    gradients = tape.gradient(loss, [v.value for v in network.trainable_variables])
    assert all(np.isfinite(gradient).all() for gradient in map(np.asarray, gradients))
    keras.optimizers.SGD(0.01).apply_gradients(
        zip(gradients, network.trainable_variables, strict=True)
    )
    heads = range(1, len(TAPS[name]) + 1)
    assert all(outputs[f"auxiliary_{head}"].shape == (2, 6) for head in heads)
    assert all(len(layers_of_head(network, head)) > 5 for head in heads)
