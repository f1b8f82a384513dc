"""Two networks in one, so that they can teach each other."""

from __future__ import annotations

import keras

from keras_ssd.batch import PEER
from keras_ssd.layers.functional import as_functional, network_like, outputs_of

_ADVICE = "build both as functional models"


def with_peer(model: keras.Model, peer: keras.Model) -> keras.Model:
    """`model` and `peer` side by side: the outputs of both, those of `peer` as `peer_logits`, ...

    What `objectives.Mutual` reads. All layers are shared: training the network trains both models.
    `strip_heads` gives the function of `model`; `peer` is the layer `peer` of the network.

    Args:
        model: A functional or Sequential Keras model that returns the logits or named outputs.
        peer: Another one, for the same images.

    Returns:
        A functional model that returns a dict of the outputs of both.

    Raises:
        TypeError: If one is no Keras model.
        ValueError: If one is subclassed, not built or has a peer already, they share weights, take
            images of different shapes or know different numbers of classes.
    """
    own, other = as_functional(model, _ADVICE), as_functional(peer, _ADVICE)
    outputs, others = outputs_of(own), outputs_of(other)
    for network, names in ((model, outputs), (peer, others)):
        if PEER + "logits" in names:
            raise ValueError(f"Model {network.name!r} has a peer already: `strip_heads` first.")
    shared = {id(weight) for weight in own.weights} & {id(weight) for weight in other.weights}
    if shared:
        raise ValueError(
            f"The peers {model.name!r} and {peer.name!r} share weights: build the network twice."
        )
    if own.input.shape != other.input.shape:
        raise ValueError(
            f"The peers take images of different shapes, {own.input.shape} and "
            f"{other.input.shape}: build both for the same images."
        )
    classes = outputs["logits"].shape[-1], others["logits"].shape[-1]
    if classes[0] != classes[1]:
        raise ValueError(
            f"The peers know {classes[0]} and {classes[1]} classes: build both for the same ones."
        )
    renamed = keras.Model(other.input, others, name="peer")
    renamed.dtype_policy = other.dtype_policy
    peers = {PEER + name: output for name, output in renamed(own.input).items()}
    return network_like(model, own.input, {**outputs, **peers})
