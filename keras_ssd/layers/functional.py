"""Networks whose graph is known: functional models and built Sequential ones."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import keras

_WRAPPED = "Exception encountered when calling"
NAME_OUTPUTS = "return a dict such as {'logits': ..., 'projection': ...} from its `call` instead"


def as_functional(model: keras.Model, advice: str = NAME_OUTPUTS) -> keras.Model:
    """`model` as an uncompiled functional model on the same layers.

    Args:
        model: A functional or built Sequential model.
        advice: What to do about a subclassed model, which is refused.

    Raises:
        TypeError: If `model` is no Keras model.
        ValueError: If it is subclassed or not built.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(f"Expected a Keras model, got {type(model).__name__}.")
    if isinstance(model, keras.Sequential) and not model.built:
        raise ValueError(
            f"Sequential model {model.name!r} is not built: begin it with keras.Input(...) "
            "or call it once on a batch of images."
        )
    if not is_functional(model):
        raise ValueError(
            f"{type(model).__name__} {model.name!r} is a subclassed model, whose layers are known "
            f"only while it runs: {advice}."
        )
    if isinstance(model, keras.Sequential):
        return network_like(model, model.inputs[0], model.outputs[0])
    return network_like(model, model.input, model.output)


def called_anew(network: keras.Model, call: Callable[..., Any]) -> keras.Model:
    """A functional model on a new input, each of its layers and operations called by `call`.

    Args:
        network: The model, which is left as it is.
        call: Takes a layer and its arguments, and gives its outputs.
    """
    return keras.models.clone_model(network, clone_function=lambda layer: layer, call_function=call)


def is_functional(model: Any) -> bool:
    """Whether the graph of `model` is known, and no `call` of a user's class decides instead."""
    if not isinstance(model, keras.Model) or not type(model).call.__module__.startswith("keras."):
        return False
    # A Sequential model that takes several tensors is built, but has neither `inputs` nor a graph.
    known = "inputs" if isinstance(model, keras.Sequential) else "operations"
    return model.built and hasattr(model, known)


def outputs_of(model: keras.Model) -> dict[str, keras.KerasTensor]:
    """The named outputs of a functional model; a single tensor is `logits`."""
    outputs = single(model.output)
    if isinstance(outputs, keras.KerasTensor):
        return {"logits": outputs}
    if isinstance(outputs, dict) and "logits" in outputs:
        return dict(outputs)
    raise ValueError(
        f"Model {model.name!r} must return a tensor (the logits) or a dict with 'logits', got "
        f"{sorted(outputs) if isinstance(outputs, dict) else type(outputs).__name__}."
    )


def reason_of(error: Exception) -> str:
    """The line that says what went wrong; Keras writes a page around that of a layer's `call`."""
    text = re.sub(r"\x1b\[\d*m", "", str(error))  # bold letters of a terminal
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    reasons = [line for line in lines if not line.startswith(_WRAPPED)]
    return next(iter(reasons), type(error).__name__).removesuffix(".")


def single(outputs: Any) -> Any:
    """The outputs of a model as Keras answers: of a list of one output, that one."""
    return outputs[0] if isinstance(outputs, (list, tuple)) and len(outputs) == 1 else outputs


def network_like(model: keras.Model, inputs: Any, outputs: Any) -> keras.Model:
    """A functional model with the name and the dtype policy of `model`."""
    network = keras.Model(inputs, outputs, name=model.name)
    network.dtype_policy = model.dtype_policy
    return network
