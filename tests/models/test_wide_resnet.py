"""What a wide residual network computes: raw stages, blocks, first weights."""

import keras
import numpy as np
import pytest

from keras_ssd import models
from models.first_weights import check_first_weights
from models.stages import has_negative, stage_outputs


def build(name="wrn_16_2", size=8, num_classes=10):
    return models.build(name, num_classes=num_classes, input_shape=(size, size, 3))


def test_stages_are_raw_and_the_embedding_is_activated():
    assert has_negative(stage_outputs(build())) == [True, True, True, True, False]


@pytest.mark.parametrize("name", ["wrn_16_1", "wrn_16_2"])
def test_a_block_of_one_width_with_a_silenced_branch_does_nothing(name):
    model = build(name)
    kernel = model.get_layer("block2.layer.1.conv2").kernel
    kernel.assign(np.zeros(kernel.shape))
    layers = ("block2.0.output", "stage_2")
    outputs = keras.Model(model.input, [model.get_layer(each).output for each in layers])
    before, after = outputs(np.random.RandomState(0).standard_normal((2, 8, 8, 3)))
    np.testing.assert_array_equal(after, before)


def test_the_projection_reads_the_activated_input():
    model = build()
    for block in (1, 2, 3):
        activated = model.get_layer(f"block{block}.layer.0.relu1").output
        assert model.get_layer(f"block{block}.layer.0.convShortcut").input is activated


@pytest.mark.parametrize(("name", "projected"), [("wrn_16_1", {2, 3}), ("wrn_16_2", {1, 2, 3})])
def test_weighted_layers_have_the_authors_names(name, projected):
    names = {layer.name for layer in build(name).layers if layer.weights}
    blocks = {
        f"block{block}.layer.{index}.{part}"
        for block in (1, 2, 3)
        for index in (0, 1)
        for part in ("bn1", "conv1", "bn2", "conv2")
    }
    projections = {f"block{block}.layer.0.convShortcut" for block in projected}
    assert names == {"conv1", "bn1", "logits"} | blocks | projections


def test_the_last_normalisation_is_called_bn1():
    model = build()
    assert model.get_layer("bn1").input is model.get_layer("stage_3").output
    assert model.get_layer("embedding").input is model.get_layer("bn1.relu").output


def test_first_weights():
    check_first_weights(build(num_classes=100), "fan_out", "pytorch", "zeros")
