"""The node embedding of EGA: a linear layer before the classifier, on student and teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_ssd.arguments import check_count
from keras_ssd.heads.linear import linear
from keras_ssd.heads.taps import with_embedding, without_unread
from keras_ssd.layers.functional import (
    as_functional,
    called_anew,
    is_functional,
    network_like,
    outputs_of,
)

NODE, LOGITS = "node", "logits"


def with_node_embedding(
    model: keras.Model,
    *,
    units: int = 256,
    num_classes: int | None = None,
    embedding: str | None = None,
) -> keras.Model:
    """A network whose classifier reads a linear embedding of `units` numbers: `node`, `logits`.

    Two dense layers without activation, `node` and `logits`, take the place of the classifier of
    `model`, whose other layers are shared. Kernels and biases start uniform within 1 / sqrt(width
    in); both compute in float32 under mixed precision. `export_student` writes the two as the one
    dense layer that they are.

    Args:
        model: A functional, Sequential or nested Keras model that returns the logits (or, where
            `embedding=` is given, any one tensor), or a dict of named outputs (the others are
            kept).
        units: Width of the node embedding, at least 2; that of the teacher's head.
        num_classes: Number of classes, at least 2. Default: as many as the logits of `model`.
        embedding: The layer whose output `(rows, width)` is embedded, nested ones as
            `backbone/pool`. By default the output named `embedding`, else the layer of that name,
            else what goes into the last Dense layer.

    Returns:
        A functional model that returns a dict with `node` `(rows, units)`, `logits` `(rows,
        num_classes)` and the further outputs of `model`.

    Raises:
        TypeError: If `model` is no Keras model.
        ValueError: If `model` is subclassed, not built or has such a head already, a number is too
            small, the embedding cannot be found or is no vector a row, a further output is made of
            the old logits, or another layer is named `node` or `logits`.

    Source: Ma et al. 2022, arXiv:2211.13264, and the authors' code (widths and first weights; a
    dropout layer that it declares is never called).
    """
    network = as_functional(model)
    names = outputs_of(network)
    if NODE in names:
        raise ValueError(
            f"Model {model.name!r} has a node embedding already: use it, or give the network "
            "without."
        )
    num_classes = names[LOGITS].shape[-1] if num_classes is None else num_classes
    network = with_embedding(network, embedding)
    outputs = network.output
    shape = outputs["embedding"].shape
    if len(shape) != 2 or shape[-1] is None:
        raise ValueError(
            "A node embedding is made of a vector a row of known width, got "
            f"{shape}: pass `embedding=` the name of a pooling or flattening layer."
        )
    kept = {name: outputs[name] for name in names if name != LOGITS}
    _check_kept(network, kept)
    dtype = "float64" if network.dtype_policy.name == "float64" else "float32"
    head = _linear_layers(outputs["embedding"], units, num_classes, dtype)
    network = network_like(model, network.input, {**kept, **head})
    return without_unread(network) or network


def node_embedding_head(width: int, num_classes: int, *, units: int = 256) -> keras.Model:
    """The same two layers for `Distiller(teacher_head=)`: from `embedding` to `node` and `logits`.

    Args:
        width: Length of the teacher's vector, `teacher.outputs["embedding"].shape[-1]`.
        num_classes: Number of classes, at least 2.
        units: Width of the node embedding, at least 2; that of the student's.

    Returns:
        A functional model with the input `embedding` `(rows, width)`.

    Raises:
        ValueError: If a number is too small.

    Source: as `with_node_embedding`.
    """
    check_count("width", width)
    embedding = keras.Input([width], name="embedding")
    head = _linear_layers(embedding, units, num_classes, keras.config.floatx())
    return keras.Model(embedding, head, name="node_embedding_head")


def fixed_node_embedding(width: int, *, units: int = 256, seed: int = 0) -> keras.Model:
    """A head that is not trained, for where there are no labels: from `embedding` to `node`.

    The embedding itself where it is `units` long, else its product with a random matrix whose rows
    (or columns, the shorter ones) are orthonormal.

    Args:
        width: Length of the teacher's vector.
        units: Width of the node embedding, at least 2; that of the student's.
        seed: Seed of the matrix.

    Returns:
        A functional model without trainable weights, with the input `embedding` `(rows, width)`.

    Raises:
        ValueError: If a number is too small.

    Source: ours. Published is only a head that learns from labels.
    """
    check_count("width", width)
    check_count("units", units, smallest=2)
    embedding = node = keras.Input([width], name="embedding")
    if width != units:
        orthogonal = keras.initializers.Orthogonal(seed=seed)
        layer = keras.layers.Dense(
            units,
            use_bias=False,
            kernel_initializer=orthogonal,
            dtype=keras.config.floatx(),
            name=NODE,
        )
        layer.trainable = False
        node = layer(embedding)
    return keras.Model(embedding, {NODE: node}, name="fixed_node_embedding")


def with_folded_classifier(network: keras.Model) -> keras.Model:
    """The function of `network`, the layers `node` and `logits` in one; else as it is.

    Args:
        network: A functional model that returns the logits alone, as `strip_heads` makes it; it is
            left as it is. The layers may be those of a model inside it.
    """
    embedder = next((layer for layer in network.layers if _is_linear(layer, NODE)), None)
    inside = {}
    for model in filter(is_functional, network.layers):
        given = as_functional(model)
        folded = with_folded_classifier(given)
        if folded is not given:
            inside[id(model)] = folded
    if embedder is None and not inside:
        return network
    nodes: list[tuple[Any, Any]] = []  # what goes into `node`, and what comes out

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        if nodes and args[0] is nodes[-1][1] and _is_linear(layer, LOGITS):
            return _product(embedder, layer)(nodes[-1][0])
        outputs = inside.get(id(layer), layer)(*args, **kwargs)
        if layer is embedder:
            nodes.append((args[0], outputs))
        return outputs

    rebuilt = called_anew(network, call)
    return network_like(network, rebuilt.input, rebuilt.output)


def _check_kept(network: keras.Model, kept: Mapping[str, keras.KerasTensor]) -> None:
    """Refuses what would stay of the old classifier, and names that the new one needs."""
    outputs = outputs_of(network)
    # Keras has no public way from a tensor to the layer that made it.
    classifier = outputs[LOGITS]._keras_history.operation
    for name, output in kept.items():
        if classifier in keras.Model(network.input, output).operations:
            raise ValueError(
                f"The output {name!r} of {network.name!r} is made of the logits, whose classifier "
                "is replaced: give the model without it."
            )
    rest = keras.Model(network.input, [outputs["embedding"], *kept.values()])
    taken = [layer.name for layer in rest.layers if layer.name in (NODE, LOGITS)]
    if taken:
        raise ValueError(
            f"Model {network.name!r} has a layer named {taken[0]!r} before its embedding or on the "
            "way to another output, and the head takes that name: rename the layer."
        )


def _linear_layers(
    embedding: keras.KerasTensor, units: int, num_classes: int, dtype: str
) -> dict[str, keras.KerasTensor]:
    check_count("units", units, smallest=2)
    check_count("num_classes", num_classes, smallest=2)
    node = linear(embedding, units, NODE, dtype)
    return {NODE: node, LOGITS: linear(node, num_classes, LOGITS, dtype)}


def _is_linear(layer: Any, name: str) -> bool:
    is_dense = type(layer) is keras.layers.Dense and layer.name == name
    return is_dense and layer.activation is keras.activations.linear


def _product(first: keras.layers.Dense, second: keras.layers.Dense) -> keras.layers.Dense:
    """The one layer that does what two dense layers without activation do in turn."""
    kernels = [np.asarray(layer.kernel, "float64") for layer in (first, second)]
    biases = [
        np.zeros(layer.units) if layer.bias is None else np.asarray(layer.bias, "float64")
        for layer in (first, second)
    ]
    folded = keras.layers.Dense(second.units, dtype=second.dtype_policy, name=second.name)
    folded.build((None, kernels[0].shape[0]))
    folded.set_weights([kernels[0] @ kernels[1], biases[0] @ kernels[1] + biases[1]])
    return folded
