import keras
import pytest
from keras import layers

from keras_ssd.layers.frozen_backbone import FrozenBackbone
from keras_ssd.layers.structure import takes_raw_images


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


CASES = {
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


@pytest.mark.parametrize("case", CASES)
def test_takes_raw_images(case):
    model, expected = CASES[case]
    assert takes_raw_images(model) is expected
