"""Small scorers and the images that they score."""

import keras
import numpy as np
from keras import layers

import keras_ssd as ssd

SHAPE = (4, 4, 3)


def images(count, seed=0, shape=SHAPE):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape)).astype("uint8")


def network(*, classes=3, width=5, seed=0, shape=SHAPE, name="net", prefix="", **dense):
    """A convolution, batch normalisation that has seen images, and a Dense layer."""
    keras.utils.set_random_seed(seed)
    image = keras.Input(shape, dtype="uint8")
    x = layers.Rescaling([1 / 51, 1 / 64, 1 / 85], [-2.0, -1.0, -1.5], name=f"{prefix}scale")(image)
    x = layers.Conv2D(width, 3, name=f"{prefix}conv", kernel_initializer="he_normal")(x)
    x = layers.BatchNormalization(name=f"{prefix}norm")(x)
    x = layers.GlobalAveragePooling2D(name=f"{prefix}pool")(layers.Activation("relu")(x))
    wide = keras.initializers.RandomNormal(stddev=2.0)
    logits = layers.Dense(classes, **{"kernel_initializer": wide, **dense}, name=f"{prefix}dense")(
        x
    )
    model = keras.Model(image, logits, name=name)
    norm = model.get_layer(f"{prefix}norm")
    norm.moving_mean.assign(np.linspace(-0.5, 0.5, width))
    norm.moving_variance.assign(np.linspace(0.1, 0.5, width))
    return model


def linear(kernel, *, shape=(1, 1, 3), softmax=False, dtype="float32"):
    """Logits that are a matrix product of the flattened pixels."""
    image = keras.Input(shape, dtype="uint8")
    x = layers.Flatten()(layers.Rescaling(1.0)(image))
    dense = layers.Dense(np.shape(kernel)[1], use_bias=False, dtype=dtype)
    model = keras.Model(image, layers.Softmax()(dense(x)) if softmax else dense(x), name="linear")
    dense.set_weights([np.asarray(kernel)])
    return model


class Subclassed(keras.Model):
    """A network whose layers are known only while it runs."""

    def __init__(self, inner, *, embeds=True):
        super().__init__(name="subclassed")
        self.inner, self.embeds = inner, embeds
        self(images(2))

    def call(self, x, training=False):
        logits = self.inner(x, training=training)
        return {"logits": logits, "embedding": logits**2} if self.embeds else logits


def layer_output(model, name, x):
    """What a layer gives in inference mode, from a graph of the layers themselves."""
    return keras.Model(model.input, model.get_layer(name).output)(x, training=False).numpy()


def softmax(logits):
    exp = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exp / exp.sum(axis=1, keepdims=True)


def resized(image, size):
    return ssd.data.images.resize(image, size).numpy()
