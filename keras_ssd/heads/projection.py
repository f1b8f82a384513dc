"""The projection head of SSKD."""

from __future__ import annotations

from typing import Literal

import keras

from keras_ssd.heads.linear import linear
from keras_ssd.heads.taps import with_embedding
from keras_ssd.layers.frozen_backbone import FrozenBackbone
from keras_ssd.layers.functional import as_functional, network_like, outputs_of
from keras_ssd.layers.structure import policy_of


def with_projection(
    model: keras.Model,
    *,
    embedding: str | None = None,
    backbone: Literal["trainable", "frozen"] = "trainable",
) -> keras.Model:
    """A network with a projection head on the embedding of `model`: `logits` and `projection`.

    The head is Dense, ReLU, Dense, all as wide as the embedding (D), with `2 * (D * D + D)`
    parameters. Its kernels and biases start uniform on `(-1/sqrt(D), 1/sqrt(D))`; its layers are
    named `proj_head.0` to `proj_head.2`. Under mixed precision its output is float32 all the same.

    Args:
        model: A functional, Sequential or nested Keras model that returns the logits, or a dict of
            named outputs (these are kept).
        embedding: The layer whose output `(rows, D)` the head takes, nested ones as
            `backbone/pool`. By default the output named `embedding`, else the layer of that name,
            else what goes into the last Dense layer.
        backbone: `"trainable"` shares the layers of `model`, which is trained with the head.
            `"frozen"` puts copies of its variables, never trained and always in inference mode,
            into a `layers.FrozenBackbone`, heads that it has already with it; `model` is left
            alone.

    Returns:
        A functional model that returns a dict with `logits`, `projection` `(rows, D)` and the
        further outputs of `model`.

    Raises:
        TypeError: If `model` is no Keras model.
        ValueError: If `model` is subclassed, not built or has a projection already, `backbone` is
            unknown, or the embedding cannot be found or is no vector per row.

    Source: Xu et al. 2020, arXiv:2006.07114, section 3.2; the authors' code for widths and
    initial values. There the backbone of the frozen phase is an optimizer group of rate 0.
    """
    if backbone not in ("trainable", "frozen"):
        raise ValueError(f"`backbone` must be 'trainable' or 'frozen', got {backbone!r}.")
    network = as_functional(model)
    names = outputs_of(network)
    if "projection" in names:
        raise ValueError(
            f"Model {model.name!r} has a projection head already: use it, or `strip_heads` first."
        )
    network = with_embedding(network, embedding)
    outputs = network.output
    shape = outputs["embedding"].shape
    if len(shape) != 2 or shape[-1] is None:
        raise ValueError(
            "A projection head takes an embedding of shape (rows, width) with a known width, got "
            f"{shape}: pass `embedding=` the name of a pooling or flattening layer."
        )
    if backbone == "frozen":
        outputs = FrozenBackbone(network, name="backbone")(network.input)
    kept = {name: outputs[name] for name in names}
    projection = _projection_head(outputs["embedding"], policy_of(network))
    return network_like(model, network.input, {**kept, "projection": projection})


def _projection_head(embedding: keras.KerasTensor, policy: keras.DTypePolicy) -> keras.KerasTensor:
    hidden = linear(embedding, embedding.shape[-1], "proj_head.0", policy)
    hidden = keras.layers.ReLU(name="proj_head.1", dtype=policy)(hidden)
    wide = "float64" if policy.name == "float64" else "float32"
    return linear(hidden, hidden.shape[-1], "proj_head.2", wide)
