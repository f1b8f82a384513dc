"""Small networks with batch normalisation in every place, their statistics drawn at random."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers

IMAGES = np.random.default_rng(0).uniform(0, 1, (6, 8, 8, 4)).astype("float32")
FLOAT32 = 2e-6  # the largest difference over the largest value; a few roundings of 6e-8 a layer
STATISTICS = ("gamma", "beta", "moving_mean", "moving_variance")


def drawn(model, seed=0):
    """The model with gamma, beta, mean and variance drawn from 0.5..1.5, biases from -1..1."""
    generator = np.random.default_rng(seed)
    for weight in model.weights:
        name = weight.path.split("/")[-1]
        if name in STATISTICS:
            weight.assign(generator.uniform(0.5, 1.5, weight.shape))
        elif name == "bias":
            weight.assign(generator.uniform(-1, 1, weight.shape))
    return model


def chain(*stack, shape=(8, 8, 4), **options):
    """A functional model of one layer after the other."""
    inputs = keras.Input(shape, **options)
    x = inputs
    for layer in stack:
        x = layer(x)
    return drawn(keras.Model(inputs, x))


def norm(**options):
    return layers.BatchNormalization(**options)


def pool():
    return layers.GlobalAveragePooling2D()


def answer(model, images=IMAGES):
    """The model's outputs in inference mode."""
    return [np.asarray(x) for x in keras.tree.flatten(model(images, training=False))]


def frozen_answer(frozen, images=IMAGES):
    outputs = frozen(tf.constant(images))
    return [np.asarray(outputs[name]) for name in sorted(outputs)]


def difference(got, expected):
    """The largest difference over the largest value."""
    pairs = list(zip(got, expected, strict=True))
    return max(np.abs(one - other).max() / np.abs(other).max() for one, other in pairs)


def operations(frozen, images=IMAGES):
    """The types of the operations that a frozen teacher runs in a graph."""
    function = tf.function(frozen).get_concrete_function(tf.constant(images))
    return [operation.type for operation in function.graph.get_operations()]


def fused_norms(frozen, images=IMAGES):
    """How many batch normalisations are left."""
    return operations(frozen, images).count("FusedBatchNormV3")


def norms_left(frozen, images=IMAGES):
    """How many batch normalisations are left, fused or as Keras runs them."""
    kinds = operations(frozen, images)
    return kinds.count("FusedBatchNormV3") + kinds.count("Rsqrt")
