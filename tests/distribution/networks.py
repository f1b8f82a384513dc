"""Tiny networks for many cases: dense ones, and convolutions with batch normalisation."""

import keras
from keras import layers
from weights import numbered

import keras_ssd as ssd
from keras_ssd.layers import BatchNormalization

CLASSES, WIDTH, NODES = 3, 6, 5


def network(heads, *, width, seed, batch_norm=None, extra=None):
    """8x8 images to logits and the named outputs `heads`, with weights that tell images apart.

    `batch_norm` is None (dense layers), "own" (each replica by itself) or "synchronized" (both with
    convolutions). `extra` is one more layer, on the embedding.
    """
    images = keras.Input((8, 8, 3))
    x = layers.Rescaling(1 / 127.5, -1)(images)
    x = layers.AveragePooling2D(2)(x) if batch_norm is None else _convolution(x, width, batch_norm)
    feature_map = layers.Dense(width, "relu", use_bias=False)(x)
    x = layers.Flatten()(feature_map)
    if batch_norm is not None:
        x = layers.GlobalAveragePooling2D()(feature_map)
    embedding = layers.Dense(WIDTH, "tanh", use_bias=False, name="embedding")(x)
    embedding = embedding if extra is None else extra(embedding)
    known = {"embedding": embedding, "map": feature_map}
    units = {"projection": 4, "node": NODES, "connector": WIDTH}
    outputs = {"logits": layers.Dense(CLASSES, use_bias=False, name="logits")(embedding)}
    for name in heads:
        source = x if name == "auxiliary_1" else embedding
        head = layers.Dense(units.get(name, 4 * CLASSES), use_bias=False, name=f"head_{name}")
        outputs[name] = known[name] if name in known else head(source)
    model = keras.Model(images, outputs)
    model.dtype_policy = keras.config.dtype_policy()
    return numbered(model, seed)


def teacher_head():
    """The trainable head of EGA, on the teacher's embedding."""
    return numbered(ssd.node_embedding_head(WIDTH, CLASSES, units=NODES), seed=3)


def _convolution(x, width, batch_norm):
    x = layers.Conv2D(width, 3, 2, "same", use_bias=False)(x)
    x = BatchNormalization(momentum=0.9, synchronized=batch_norm == "synchronized")(x)
    return layers.ReLU()(x)
