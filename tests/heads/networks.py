"""Small networks of every make, and what the tests of auxiliary classifiers ask of them."""

import keras
import numpy as np
from keras import layers

from keras_ssd.heads import with_auxiliary_classifiers

IMAGES = np.random.default_rng(0).uniform(-1, 1, (4, 16, 16, 3)).astype("float32")
CLASSES = 5


def conv(x, filters, size=3, strides=1, name=None, **options):
    options = {"padding": "same", "use_bias": False, **options}
    return layers.Conv2D(filters, size, strides=strides, name=name, **options)(x)


def unit(x, filters, strides=1, name=None):
    """Convolution, batch normalisation and ReLU."""
    x = conv(x, filters, strides=strides, name=name and f"{name}_conv")
    x = layers.BatchNormalization(momentum=0.9, name=name and f"{name}_norm")(x)
    return layers.ReLU(name=name)(x)


def block(x, filters, strides, name):
    """A residual block as in He et al., projected where the shape changes."""
    shortcut = x
    if strides > 1 or x.shape[-1] != filters:
        shortcut = conv(x, filters, 1, strides, name=f"{name}_shortcut")
        shortcut = layers.BatchNormalization(name=f"{name}_shortcut_norm")(shortcut)
    y = unit(x, filters, strides, name=f"{name}_unit")
    y = layers.BatchNormalization(name=f"{name}_norm")(conv(y, filters, name=f"{name}_conv"))
    return layers.ReLU(name=name)(layers.Add(name=f"{name}_add")([y, shortcut]))


def classified(images, x, name="net"):
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(images, layers.Dense(CLASSES, name="logits")(x), name=name)


def residual(size=16, dtype=None):
    """Stem, and a block each of 4, 6 and 8 channels."""
    images = keras.Input((size, size, 3))
    x = unit(layers.Rescaling(2.0)(images), 4, name="stem")
    x = block(x, 4, 1, "stage_1")
    x = block(x, 6, 2, "stage_2")
    return classified(images, block(x, 8, 2, "stage_3"))


def plain(size=16):
    """Convolutions and pooling, as in VGG; the first stage has one convolution."""
    images = keras.Input((size, size, 3))
    x = unit(images, 4, name="a")
    x = unit(layers.MaxPooling2D()(x), 5, name="b")
    x = unit(layers.MaxPooling2D()(x), 6, name="c1")
    return classified(images, unit(x, 7, name="c2"))


STAGES = ["stage_1", "stage_2", "stage_3"]


def with_heads(model, taps=None, num_views=2):
    return with_auxiliary_classifiers(model, num_views=num_views, taps=taps)


def layers_of_head(network, head):
    """The fresh layers of one classifier by the names of the originals, and its dense layer."""
    prefix = f"auxiliary_classifier.{head}."
    found = {x.name.removeprefix(prefix): x for x in network.layers if x.name.startswith(prefix)}
    return {**found, "logits": network.get_layer(f"auxiliary_classifier.fc{head}")}


def parameters_of_head(network, head):
    fresh = layers_of_head(network, head).values()
    return sum(int(np.prod(w.shape)) for layer in fresh for w in layer.trainable_weights)


def flat(model):
    """All layers by name, nested ones too."""
    return {layer.name: layer for layer in model._flatten_layers()}


def pooled(network, head):
    """What the classifier pools, of a network with heads."""
    pool = network.get_layer(f"auxiliary_classifier.pool{head}")
    return keras.Model(network.input, pool.output)
