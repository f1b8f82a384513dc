import keras
import pytest
from keras import layers

from keras_ssd.layers.frozen_backbone import FrozenBackbone
from keras_ssd.layers.structure import normalization_of, takes_raw_images


def network(*first):
    return keras.Sequential([keras.Input((8, 8, 3)), *first, layers.Flatten(), layers.Dense(3)])


def functional(layer):
    images = keras.Input((8, 8, 3))
    return keras.Model(images, layer(images))


class Subclassed(keras.Model):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def call(self, x):
        return self.inner(x)


def scaled_by_operations():
    images = keras.Input((8, 8, 3))
    return keras.Model(images, layers.Conv2D(2, 1)(images / 127.5 - 1))


class Scale(layers.Layer):
    def call(self, x):
        return x / 255


class RescalesItsLogits(keras.Model):
    def __init__(self):
        super().__init__()
        self.scale = layers.Rescaling(0.1)
        self.dense = layers.Dense(3)

    def call(self, x):
        return self.scale(self.dense(x))


CASES = {
    "operations": (scaled_by_operations(), None),
    "a layer of one's own": (network(Scale()), None),
    "batch norm": (network(layers.BatchNormalization()), None),
    "flipped, then rescaled": (network(layers.RandomFlip(), layers.Rescaling(1 / 255)), True),
    "padded, then rescaled": (network(layers.ZeroPadding2D(), layers.Rescaling(1 / 255)), True),
    "subclassed with a Rescaling for other things": (RescalesItsLogits(), None),
    "rescaled": (network(layers.Rescaling(1 / 255)), True),
    "normalised": (network(layers.Normalization(mean=1.0, variance=2.0)), True),
    "resized, then rescaled": (network(layers.Resizing(4, 4), layers.Rescaling(1 / 255)), True),
    "not first": (network(layers.Conv2D(2, 1), layers.Rescaling(1 / 255)), False),
    "nothing": (network(layers.Conv2D(2, 1)), False),
    "nested": (functional(network(layers.Rescaling(1 / 255))), True),
    "frozen": (functional(FrozenBackbone(network(layers.Rescaling(1 / 255)))), True),
    "frozen without": (functional(FrozenBackbone(network(layers.Conv2D(2, 1)))), False),
    "lambda": (network(layers.Lambda(lambda x: x / 255)), None),
    "subclassed": (Subclassed(layers.Dense(3)), None),
    "function": (lambda images: images, None),
}


def test_normalization_is_what_images_meet_first():
    rescaling = layers.Rescaling(1 / 255)
    assert normalization_of(functional(network(rescaling))) is rescaling
    assert normalization_of(network(layers.Resizing(4, 4), rescaling)) is None
    assert normalization_of(network(layers.Conv2D(2, 1))) is None
    assert normalization_of(None) is None


@pytest.mark.parametrize("case", CASES)
def test_takes_raw_images(case):
    model, expected = CASES[case]
    assert takes_raw_images(model) is expected
