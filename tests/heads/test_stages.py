"""Taps that are found: one for each stage, where the spatial sizes tell the stages apart."""

import keras
import pytest
from keras import layers, ops

from heads.networks import CLASSES, STAGES, classified, conv, plain, residual
from keras_ssd.heads import named_outputs, with_projection
from keras_ssd.heads.stages import find_taps


def stacked(*make, size=16):
    """A network of units, and of layers in between."""
    images = keras.Input((size, size, 3))
    x = images
    for layer in make:
        x = layer(x)
    return classified(images, x)


def named(filters, name, strides=1, **options):
    return lambda x: conv(x, filters, strides=strides, name=name, **options)


def nested_of_any_size():
    """The commonest network of users: a base that leaves the size open, and a pooling."""
    images = keras.Input((16, 16, 3))
    base = residual(None)
    base = keras.Model(base.input, base.get_layer("stage_3").output, name="base")
    return classified(images, base(layers.Rescaling(1 / 255)(images)))


def padded():
    """Padding before a convolution belongs to it; one that only shrinks is no stage."""
    return stacked(
        layers.ZeroPadding2D(3),
        named(4, "stem", 2, padding="valid"),
        named(4, "wide"),
        layers.ZeroPadding2D(1),
        named(5, "valid_1", padding="valid"),
        named(5, "valid_2", padding="valid"),
        layers.ZeroPadding2D(1),
        named(6, "reduced", 2, padding="valid"),
    )


def pooled_at_the_end():
    """Pooling without convolution behind the last stage, as in VGG, ends every classifier."""
    return stacked(
        named(4, "a"), named(4, "b"), named(4, "c", 2), layers.MaxPooling2D(2), layers.ReLU()
    )


def pooled_twice():
    """A stage without convolution belongs to the next."""
    return stacked(
        named(4, "a"), named(4, "b"), layers.MaxPooling2D(2), layers.MaxPooling2D(2), named(4, "c")
    )


def flattened():
    images = keras.Input((16, 16, 3))
    x = conv(conv(images, 4, name="a"), 4, name="b")
    x = layers.Flatten()(layers.AveragePooling2D(8)(conv(x, 4, strides=2, name="c")))
    return keras.Model(images, layers.Dense(CLASSES, name="logits")(x), name="net")


def merged():
    """Sums and concatenations, with and without what follows them alone."""
    images = keras.Input((32, 32, 3))
    x = conv(images, 4)
    x = layers.Add(name="sum")([x, conv(x, 4)])
    x = layers.BatchNormalization()(x)
    x = conv(x, 4, strides=2)
    x = layers.Concatenate(name="concat")([x, conv(x, 4)])
    x = layers.Reshape((16, 16, 2, 4))(x)
    x = layers.Permute((1, 2, 4, 3))(x)
    x = layers.Reshape((16, 16, 8), name="shuffled")(x)
    x = conv(x, 4, strides=2)
    x = layers.Add(name="activated")([x, conv(x, 4)])
    y = layers.ReLU(name="not_alone")(x)
    x = layers.ReLU(name="left_and_right")(layers.Concatenate()([x, conv(y, 4)]))
    x = conv(x, 4, strides=2)
    return classified(images, conv(layers.ReLU(name="end")(x + conv(x, 4)), 5))


def summed_by_operations():
    """A sum that has no name: the last layer of its stage is tapped."""
    images = keras.Input((16, 16, 3))
    x = conv(conv(images, 4), 4)
    x = layers.LayerNormalization(name="norm")(x + conv(x, 4))
    x = conv(x, 4, strides=2, name="reduced")
    return classified(images, ops.relu(x + conv(x, 4)))


def partly_used():
    """A nested model with an output that nothing reads, as feature pyramids have."""
    model = residual()
    side = layers.Conv2D(2, 1, name="side")(model.get_layer("stage_1").output)
    ends = [side, model.get_layer("stage_3").output]
    base = keras.Model(model.input, ends, name="base")
    images = keras.Input((16, 16, 3))
    return classified(images, base(images)[1])


def images_twice():
    """What does not pass all that later layers read is no tap."""
    images = keras.Input((16, 16, 3))
    x = conv(conv(conv(images, 4, name="a"), 4, name="b"), 4, strides=2, name="c")
    x = layers.Concatenate(name="again")([x, layers.AveragePooling2D(2)(images)])
    return classified(images, conv(x, 4, strides=2, name="d"))


def logits_pooled():
    images = keras.Input((16, 16, 3))
    x = conv(conv(images, 4), 4, name="a")
    x = layers.GlobalAveragePooling2D(name="logits")(conv(x, CLASSES, strides=2, name="b"))
    return keras.Model(images, x, name="net")


def convolutions_behind_the_pooling():
    images = keras.Input((16, 16, 3))
    x = conv(conv(conv(images, 4), 4, name="a"), 4, strides=2, name="b")
    x = conv(layers.GlobalAveragePooling2D(keepdims=True)(x), CLASSES, 1)
    return keras.Model(images, layers.Flatten(name="logits")(x), name="net")


def grouped_at_the_end():
    images = keras.Input((16, 16, 3))
    x = conv(conv(conv(images, 4), 4, name="a"), 4, strides=2, name="b")
    x = layers.Flatten()(layers.Reshape((8, 8, 2, 2))(x))
    return keras.Model(images, layers.Dense(CLASSES, name="logits")(x), name="net")


def gated_sum():
    """What reads the sum and more does not follow it alone."""
    images = keras.Input((16, 16, 3))
    x = conv(images, 4)
    x = layers.Add(name="sum")([x, conv(x, 4)])
    x = layers.Multiply(name="gated")([x, layers.Activation("sigmoid")(x)])
    return classified(images, conv(x, 4, strides=2, name="end"))


def cropped_sum():
    images = keras.Input((16, 16, 3))
    x = conv(images, 4)
    x = layers.Cropping2D(1)(layers.Add(name="sum")([x, conv(x, 4)]))
    return classified(images, conv(x, 4, strides=2, name="end"))


def constant_added():
    """A constant is no second branch."""
    images = keras.Input((16, 16, 3))
    x = layers.ReLU(name="shifted")(conv(images, 4) + 1.0)
    return classified(images, conv(conv(x, 4, name="a"), 4, strides=2, name="end"))


def odd():
    return stacked(named(4, "a"), named(4, "b"), named(4, "c", 2), size=15)


def tiny():
    return stacked(named(4, "a"), named(4, "b"), named(4, "c", 2), named(4, "d"), size=2)


def with_dense_layer():
    """A dense layer is no convolution."""
    return stacked(
        named(4, "stem"), layers.Dense(4, name="dense"), named(4, "a", 2), named(4, "b", 2)
    )


def not_square():
    return stacked(named(4, "a"), named(4, "b"), named(4, "c", (2, 1)), named(4, "d", (1, 2)))


def with_outputs():
    return named_outputs(with_projection(residual()), {"map": "stage_2"})


FOUND = {
    "residual": (residual, STAGES),
    "any size": (lambda: residual(None), STAGES),
    "nested": (nested_of_any_size, [f"base/{stage}" for stage in STAGES]),
    "first stage of one convolution": (plain, ["b", "c2"]),
    "padded": (padded, ["valid_2", "reduced"]),
    "pooled at the end": (pooled_at_the_end, ["b", "c"]),
    "pooled twice": (pooled_twice, ["b", "c"]),
    "flattened": (flattened, ["b", "c"]),
    "merged": (merged, ["sum", "shuffled", "left_and_right", "end"]),
    "operations": (summed_by_operations, ["norm", "reduced"]),
    "partly used": (partly_used, [f"base/{stage}" for stage in STAGES]),
    "images twice": (images_twice, ["again", "d"]),
    "logits pooled": (logits_pooled, ["a", "b"]),
    "convolutions behind the pooling": (convolutions_behind_the_pooling, ["a", "b"]),
    "grouped at the end": (grouped_at_the_end, ["a", "b"]),
    "gated sum": (gated_sum, ["sum", "end"]),
    "cropped sum": (cropped_sum, ["sum", "end"]),
    "constant added": (constant_added, ["a", "end"]),
    "odd": (odd, ["b", "c"]),
    "tiny": (tiny, ["b", "d"]),
    "dense layer": (with_dense_layer, ["a", "b"]),
    "not square": (not_square, ["b", "c", "d"]),
    "several outputs": (with_outputs, STAGES),
}


@pytest.mark.parametrize("case", FOUND)
def test_found(case):
    build, expected = FOUND[case]
    assert find_taps(build()) == expected


def test_a_layer_that_is_called_twice_is_not_tapped():
    images = keras.Input((16, 16, 3))
    relu = layers.ReLU(name="relu")
    x = conv(relu(conv(images, 4, name="a")), 4, name="b")
    x = relu(layers.BatchNormalization(name="norm")(x))
    assert find_taps(classified(images, conv(x, 4, strides=2, name="c"))) == ["norm", "c"]


def dilated():
    return stacked(named(4, "a"), named(4, "b", 2), named(4, "c", dilation_rate=2))


def one_stage():
    return stacked(named(4, "a"), named(4, "b", 2), named(4, "c"))


def no_layer_ends_a_stage():
    images = keras.Input((16, 16, 3))
    twice = layers.Conv2D(3, 1, name="twice")
    x = conv(ops.relu(twice(twice(images))), 4, strides=2, name="b")
    return classified(images, x)


@keras.saving.register_keras_serializable(package="tests")
class OpenSize(layers.Layer):
    def compute_output_shape(self, shape):
        return (shape[0], None, None, shape[-1])

    def call(self, inputs):
        return inputs


def open_size():
    return stacked(named(4, "a"), named(4, "b"), OpenSize(name="open"), named(4, "c", 2))


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (dilated, "it has dilated convolutions"),
        (one_stage, "two stages of different size, at least, are needed"),
        (no_layer_ends_a_stage, "no layer that is called once ends the stage of 'relu"),
        (open_size, "the size of the map of 'open' is open"),
    ],
)
def test_not_found(build, reason):
    with pytest.raises(ValueError, match=f"cannot be found in model 'net': {reason}.*`taps=`"):
        find_taps(build())
