"""The last classifier: the last stage once more, in one size."""

import re

import keras
import pytest
from keras import layers

from heads.networks import classified, conv, layers_of_head, with_heads


def repeated(stage, size=16):
    """The last classifier on a network whose last stage is `stage`: its map, its layers."""
    images = keras.Input((size, size, 3))
    x = layers.ReLU(name="first")(conv(images, 4))
    model = classified(images, layers.ReLU(name="last")(stage(x)))
    network = with_heads(model, ["first", "last"])
    return network.get_layer("auxiliary_classifier.pool2").input, layers_of_head(network, 2)


def reducing(x):
    x = layers.ZeroPadding2D(1, name="pad_1")(x)
    x = layers.Conv2D(5, 3, 2, name="conv")(x)
    x = layers.ZeroPadding2D(1, name="pad_2")(x)
    x = layers.DepthwiseConv2D(3, name="depthwise")(x)
    x = layers.MaxPooling2D(3, 2, name="maximum")(x)
    x = layers.AveragePooling2D(2, 1, name="average")(x)
    return layers.SeparableConv2D(6, 2, 2, name="separable")(x)


def test_nothing_reduces_the_size(caplog):
    end, fresh = repeated(reducing, size=32)
    assert end.shape == (None, 3, 3, 6)
    assert fresh.keys() == {"conv", "depthwise", "average", "separable", "last", "logits"}
    assert fresh["conv"].kernel.shape == (3, 3, 6, 5)
    assert caplog.text == ""


def beside(x, filters, strides):
    """The other branch of a residual block, which ends in a 1x1 convolution, too."""
    x = layers.ReLU()(conv(x, 8, 3, strides))
    return layers.BatchNormalization(name="out_norm")(conv(x, filters, 1, name="out"))


def summed(x, *, filters=6, strides=2, norm=True):
    """A residual block with a 1x1 convolution in its shortcut."""
    y = conv(x, filters, 1, strides, name="shortcut")
    y = layers.BatchNormalization(name="shortcut_norm")(y) if norm else y
    return layers.Add(name="sum")([beside(x, filters, strides), y])


def pooled_shortcut(x):
    y = layers.BatchNormalization()(conv(layers.AveragePooling2D(2)(x), 6, 1, name="shortcut"))
    return beside(x, 6, 2) + y


def wider_still(x):
    return conv(summed(x), 8)


def transition(x):
    """A 1x1 convolution before a residual block, which is no shortcut."""
    x = conv(x, 6, 1, 2, name="shortcut")
    return layers.Add()([x, beside(x, 6, 1)])


def elsewhere(x):
    """A 1x1 convolution of what the other branch does not read."""
    y = conv(conv(x, 5), 6, 1, 2, name="shortcut")
    return layers.Add()([beside(x, 6, 2), y])


def concatenated(x):
    x = layers.Concatenate()([conv(x, 6, 1, 2, name="shortcut"), beside(x, 3, 2)])
    return conv(x, 6)


def large(x):
    return layers.Add()([beside(x, 6, 2), conv(x, 6, 3, 2, name="shortcut")])


def two_shortcuts(x):
    """One of them is enough."""
    y = conv(x, 6, 1, 2, name="other")
    return layers.Add()([beside(x, 6, 2), y, conv(x, 6, 1, 2, name="shortcut")])


@pytest.mark.parametrize(
    ("stage", "kept"),
    [
        (summed, set()),
        (lambda x: summed(x, norm=False), set()),
        (lambda x: summed(x, strides=1), set()),  # it was there for the width
        (lambda x: summed(x, filters=4), set()),  # and here for the size
        (pooled_shortcut, set()),
        (lambda x: summed(x, filters=4, strides=1), {"shortcut", "shortcut_norm"}),
        (wider_still, {"shortcut", "shortcut_norm"}),
        (transition, {"shortcut"}),
        (elsewhere, {"shortcut"}),
        (concatenated, {"shortcut"}),
        (large, {"shortcut"}),
        (two_shortcuts, {"shortcut"}),
    ],
)
def test_projections_for_a_change_of_shape_alone_are_left_out(stage, kept):
    fresh = repeated(stage)[1]
    assert {name for name in fresh if name.startswith("shortcut")} == kept
    assert {"out", "out_norm"} <= fresh.keys()


@keras.saving.register_keras_serializable(package="tests")
class Downsampling(layers.Layer):
    """A layer of the user's with a stride."""

    def __init__(self, filters, stride, padding=1, **kwargs):
        super().__init__(**kwargs)
        self.filters, self.stride, self.padding = filters, stride, padding
        self.conv = layers.Conv2D(filters, 3, stride, padding="same")

    def call(self, inputs):
        return self.conv(inputs)

    def get_config(self):
        own = {"filters": self.filters, "stride": self.stride, "padding": self.padding}
        return {**super().get_config(), **own}


def test_a_layer_of_the_user_is_asked_for_stride_1(caplog):
    end, fresh = repeated(Downsampling(6, 2, name="mine"))
    assert (fresh["mine"].stride, fresh["mine"].padding) == (1, 1)
    assert fresh["mine"].conv.kernel.shape == (3, 3, 6, 6)
    assert end.shape == (None, 8, 8, 6)
    assert caplog.text == ""


def sliced(x):
    return conv(x[:, ::2, ::2], 6, name="conv")


def narrow_sum(x):
    """A shortcut that pools, and takes no other width."""
    y = conv(conv(x, 4, strides=2), 4)
    return conv(layers.Add(name="sum")([y, layers.MaxPooling2D(1, 2)(x)]), 6)


@pytest.mark.parametrize(
    ("stage", "reason"),
    [
        (sliced, r"layers before 'last' change the size \(8, 8\) to \(4, 4\) without a `strides`"),
        (narrow_sum, "'sum' cannot be made again: .* incompatible shapes"),
    ],
)
def test_what_cannot_be_repeated_in_one_size(stage, reason, caplog):
    end, fresh = repeated(stage)
    assert re.search(reason, caplog.text)
    assert "classifier 2" in caplog.text
    assert "classifier 1" not in caplog.text
    assert "small.0.conv1" in fresh
    assert end.shape == (None, 8, 8, 8)
