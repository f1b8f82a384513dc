"""Named outputs: reading layers inside a model, and taking heads off again."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import keras

from keras_ssd.layers.frozen_backbone import FrozenBackbone
from keras_ssd.layers.functional import (
    as_functional,
    called_anew,
    is_functional,
    network_like,
    outputs_of,
    single,
)

Side = Literal["input", "output"]


def named_outputs(model: keras.Model, taps: Mapping[str, str]) -> keras.Model:
    """A network that returns `logits` and, under names of your choice, what layers give.

    All layers are shared: training the network trains `model`.

    Args:
        model: A functional, Sequential or nested Keras model that returns the logits, or a dict of
            named outputs with `logits` among them (these are kept).
        taps: From the name of a new output to the name of a layer, nested ones as
            `backbone/block_3`.

    Returns:
        A functional model that returns a dict of tensors.

    Raises:
        TypeError: If `model` is no Keras model.
        ValueError: If `model` is subclassed or not built, a name is taken or unknown, or a layer
            is called several times or returns several tensors.
    """
    network = as_functional(model)
    taken = [name for name in taps if name in outputs_of(network)]
    if taken:
        raise ValueError(
            f"Model {model.name!r} has an output named {taken[0]!r} already: give the tap "
            "another name."
        )
    rebuilt, tensors = rebuild(network, taps)
    return network_like(model, rebuilt.input, {**outputs_of(rebuilt), **tensors})


def strip_heads(network: keras.Model) -> keras.Model:
    """The function of `network` with only `logits`, sharing its layers.

    Of the models inside it, too, only what leads to the logits is left.

    Args:
        network: A functional or Sequential model. One without heads comes back as it is.

    Returns:
        A model that returns the tensor of logits.

    Raises:
        TypeError: If `network` is no Keras model.
        ValueError: If it is subclassed or not built, or returns no `logits`.
    """
    functional = as_functional(network)
    logits = outputs_of(functional)["logits"]
    if not isinstance(functional.output, dict):
        return without_unread(functional) or network
    alone = network_like(network, functional.input, logits)
    return without_unread(alone) or alone


def without_unread(network: keras.Model) -> keras.Model | None:
    """The same function, the models inside it without the outputs that nobody reads.

    Args:
        network: A functional model; it is left as it is.

    Returns:
        A model that shares the layers that are left; None where all outputs are read.
    """
    if not any(map(is_functional, network.layers)):
        return None
    recorded: list[tuple[Any, Any, Any]] = []

    def record(layer: Any, *args: Any, **kwargs: Any) -> Any:
        outputs = layer(*args, **kwargs)
        recorded.append((layer, (args, kwargs), outputs))
        return outputs

    copy = called_anew(network, record)
    taken = [copy.output, *(given for _, given, _ in recorded)]
    read = set(map(id, keras.tree.flatten(taken)))
    places: dict[int, list[bool]] = {}  # of each model: which of its outputs some call has read
    for layer, _, outputs in recorded:
        if is_functional(layer):
            mine = [id(tensor) in read for tensor in keras.tree.flatten(outputs)]
            places[id(layer)] = [
                any(pair) for pair in zip(mine, places.get(id(layer), mine), strict=True)
            ]
    layers = {id(layer): layer for layer, _, _ in recorded}
    cut = {key: _only(layers[key], kept) for key, kept in places.items()}
    if not any(cut.values()):
        return None

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        inner = cut.get(id(layer))
        if inner is None:
            return layer(*args, **kwargs)
        results = keras.tree.flatten(inner(*args, **kwargs))
        rest = iter(results)
        flat = [next(rest) if kept else results[0] for kept in places[id(layer)]]
        return keras.tree.pack_sequence_as(single(layer.output), flat)

    rebuilt = called_anew(network, call)
    return network_like(network, rebuilt.input, rebuilt.output)


def _only(model: keras.Model, kept: Sequence[bool]) -> keras.Model | None:
    """A model with some of its outputs; None where these are all, here and in what it holds."""
    functional = as_functional(model)
    outputs = keras.tree.flatten(functional.output)
    if all(kept):
        return without_unread(functional)
    some = [output for output, is_kept in zip(outputs, kept, strict=True) if is_kept]
    alone = network_like(model, functional.input, some)
    return without_unread(alone) or alone


def with_embedding(network: keras.Model, embedding: str | None) -> keras.Model:
    """A functional network with an output `embedding`, sharing all layers.

    Args:
        network: A functional model that returns the logits, or a dict with `logits`.
        embedding: The layer that gives the embedding, nested ones as `backbone/pool`. By default
            the output named `embedding`, else the layer of that name on the way to the logits, else
            what goes into the last Dense layer.

    Raises:
        ValueError: If the embedding cannot be found, or is named although there is such an output.
    """
    outputs = outputs_of(network)
    if "embedding" in outputs:
        if embedding is not None:
            raise ValueError(
                f"Model {network.name!r} has an output named 'embedding' already: leave "
                "`embedding=` out, or name the outputs anew."
            )
        return network
    path, side = _find_embedding(network, embedding)
    rebuilt, tensors = rebuild(network, {"embedding": path}, side)
    return network_like(network, rebuilt.input, {**outputs_of(rebuilt), **tensors})


def _find_embedding(network: keras.Model, embedding: str | None) -> tuple[str, Side]:
    """The layer to tap, and whether its input or its output is the embedding."""
    if embedding is not None:
        return embedding, "output"
    to_logits = keras.Model(network.input, outputs_of(network)["logits"])
    layers = dict(layers_by_path(to_logits))
    named = [path for path in layers if path.split("/")[-1] == "embedding"]
    if named:
        return min(named, key=lambda path: path.count("/")), "output"
    dense = [path for path, layer in layers.items() if isinstance(layer, keras.layers.Dense)]
    if dense:
        return dense[-1], "input"
    raise ValueError(
        f"Model {network.name!r} has neither a layer named 'embedding' nor a Dense layer: pass "
        "`embedding=` the name of the layer that gives its embedding."
    )


def layers_by_path(
    model: keras.Model, prefix: str = ""
) -> Iterator[tuple[str, keras.layers.Layer]]:
    """Every layer that can be tapped, with its path, in the order in which the layers run.

    Nested models are opened, frozen ones too.
    """
    for layer in model.layers:
        if isinstance(layer, keras.layers.InputLayer):
            continue
        yield prefix + layer.name, layer
        inner = layer.frozen.model if isinstance(layer, FrozenBackbone) else layer
        if is_functional(inner):
            yield from layers_by_path(inner, f"{prefix}{layer.name}/")


def rebuild(
    model: keras.Model, taps: Mapping[str, str], side: Side = "output"
) -> tuple[keras.Model, dict[str, keras.KerasTensor]]:
    """`model` on a new input, sharing all layers, and the tensors at the tapped layers.

    A layer's own `.output` belongs to the first graph that it was called in, which need not be this
    model's, and never reaches out of a nested model. So the graph is run again and watched.

    Args:
        model: A functional model.
        taps: From a name to the path of a layer.
        side: Whether a tap is what goes into a layer or what comes out.

    Returns:
        The rebuilt model and, under the names of `taps`, symbolic tensors of its graph.
    """
    _check_paths(model, taps)
    found: dict[str, keras.KerasTensor] = {}

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        mine = {name: path for name, path in taps.items() if path.split("/")[0] == layer.name}
        repeated = [path for name, path in mine.items() if name in found]
        if repeated:
            raise ValueError(
                f"Layer {repeated[0]!r} is called several times, so its name does not say which "
                "output is meant: tap a layer that is called once."
            )
        inner = {name: path.partition("/")[2] for name, path in mine.items() if "/" in path}
        outputs, tensors = _call_tapped(layer, inner, side, args, kwargs)
        found.update(tensors)
        for name, path in mine.items():
            if name not in inner:
                value = outputs if side == "output" else [*args, *kwargs.values()][0]
                found[name] = _one_tensor(value, path)
        return outputs

    rebuilt = called_anew(model, call)
    return rebuilt, {name: found[name] for name in taps}


def _call_tapped(
    layer: Any,
    taps: Mapping[str, str],
    side: Side,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[Any, dict[str, keras.KerasTensor]]:
    """Calls a layer; a nested model is replaced by one that returns the tapped tensors too."""
    if not taps:
        return layer(*args, **kwargs), {}
    is_frozen = isinstance(layer, FrozenBackbone)
    model = layer.frozen.model if is_frozen else layer
    rebuilt, tensors = rebuild(as_functional(model), taps, side)
    flat = {f"/{i}": tensor for i, tensor in enumerate(keras.tree.flatten(rebuilt.output))}
    tapped = network_like(model, rebuilt.input, {**flat, **tensors})
    results = (layer.with_outputs_of(tapped) if is_frozen else tapped)(*args, **kwargs)
    outputs = keras.tree.pack_sequence_as(rebuilt.output, [results[key] for key in flat])
    return outputs, {name: results[name] for name in tensors}


def _one_tensor(tensor: Any, path: str) -> keras.KerasTensor:
    if not isinstance(tensor, keras.KerasTensor):
        raise ValueError(f"Layer {path!r} gives several tensors: tap a layer that gives one.")
    return tensor


def _check_paths(model: keras.Model, taps: Mapping[str, str]) -> None:
    if not isinstance(taps, Mapping) or not all(isinstance(x, str) for x in taps.values()):
        raise TypeError(
            "Outputs are named by a dict from names to paths of layers, such as {'embedding': "
            f"'avg_pool'}}, got {taps!r}."
        )
    paths = [path for path, _ in layers_by_path(model)]
    for path in taps.values():
        if path in paths:
            continue
        same_name = [known for known in paths if known.split("/")[-1] == path.split("/")[-1]]
        near = list(dict.fromkeys(same_name + difflib.get_close_matches(path, paths)))[:5]
        raise ValueError(
            f"No layer {path!r} in model {model.name!r}. Close names: {', '.join(near) or 'none'}. "
            "Write nested layers as 'backbone/block3'."
        )
