"""The main path of a network: what every way from the images to the logits passes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras

from keras_ssd.freezing.calls import Call, Calls, leading_to
from keras_ssd.heads.taps import rebuild
from keras_ssd.layers.functional import outputs_of, single

_GLOBAL_POOLING = (
    keras.layers.GlobalAveragePooling1D,
    keras.layers.GlobalAveragePooling2D,
    keras.layers.GlobalMaxPooling1D,
    keras.layers.GlobalMaxPooling2D,
)


@dataclasses.dataclass(frozen=True)
class MainPath:
    """The calls that lead to the logits, and the maps that all ways pass, up to the pooling.

    Args:
        images: What the network takes.
        calls: The calls in order, nested models opened.
        stops: From the index of a call to the map that it gives, where all ways pass it: a tensor
            `(rows, height, width, channels)` or `(rows, places, channels)`. The last one is what is
            pooled, or flattened, before the logits.
        tapped: The outputs of the layers that were asked for.
    """

    images: keras.KerasTensor
    calls: Sequence[Call]
    stops: Mapping[int, keras.KerasTensor]
    tapped: Sequence[keras.KerasTensor]

    @classmethod
    def of(cls, network: keras.Model, taps: Sequence[str] = ()) -> MainPath:
        """The main path of a functional model, and the outputs of some of its layers.

        Args:
            network: The model.
            taps: Paths of layers, nested ones as `backbone/block_3`.

        Raises:
            ValueError: If the model takes several tensors or pools nothing, or a layer is unknown,
                is called several times or returns several tensors.
        """
        rebuilt, tensors = rebuild(network, {path: path for path in taps})
        logits = outputs_of(rebuilt)["logits"]
        opened = Calls.of(keras.Model(rebuilt.input, [logits, *(tensors[path] for path in taps)]))
        images = single(opened.inputs)
        if not isinstance(images, keras.KerasTensor):
            raise ValueError(
                "A network with auxiliary classifiers takes one tensor, the images; "
                f"{network.name!r} takes {len(keras.tree.flatten(images))}."
            )
        logits, *tapped = keras.tree.flatten(opened.outputs)
        calls = leading_to(logits, opened.calls)
        stops = _before_pooling(calls, _passed_by_all(images, calls, logits))
        if not stops:
            raise ValueError(
                f"Model {network.name!r} must pool or flatten feature maps before its logits "
                f"{logits.shape}: auxiliary classifiers repeat what comes before that."
            )
        return cls(images, calls, stops, tapped)

    @property
    def pooled(self) -> int:
        """The index of the call that gives what is pooled."""
        return max(self.stops)

    def between(
        self, first: int, last: int
    ) -> tuple[Sequence[Call], keras.KerasTensor, keras.KerasTensor]:
        """The calls between two stops, and the tensors that they begin and end with."""
        return self.calls[first + 1 : last + 1], self.stops[first], self.stops[last]


def replay(
    calls: Sequence[Call],
    given: Mapping[int, keras.KerasTensor],
    apply: Callable[..., Any] = lambda call, *args, **kwargs: call.layer(*args, **kwargs),
) -> dict[int, Any]:
    """Makes calls again on other tensors.

    Args:
        calls: What is called, in order.
        given: From the id of a tensor to the one in its place.
        apply: Gives the outputs of a call for other arguments.

    Returns:
        `given` and the same for everything that the calls give.
    """
    values = dict(given)
    for call in calls:
        args, kwargs = keras.tree.map_structure(
            lambda x: values.get(id(x), x), (call.args, dict(call.kwargs))
        )
        outputs = keras.tree.flatten(apply(call, *args, **kwargs))
        values.update(zip(map(id, keras.tree.flatten(call.outputs)), outputs, strict=True))
    return values


def is_merge(call: Call, *kinds: str) -> bool:
    """Whether a call puts tensors together in one of these ways, as a layer or an operation."""
    # Keras' layers and operations have the same class names; not all operations are public.
    return type(call.layer).__name__ in kinds and len(call.inputs) > 1


def _passed_by_all(
    images: keras.KerasTensor, calls: Sequence[Call], logits: keras.KerasTensor
) -> dict[int, keras.KerasTensor]:
    """The tensors that are all that later calls read, once they are there."""
    last_read = {id(x): index for index, call in enumerate(calls) for x in call.inputs}
    last_read[id(logits)] = len(calls)
    open_ends = {id(images)}
    passed = {}
    for index, call in enumerate(calls):
        given = {id(x): x for x in keras.tree.flatten(call.outputs) if id(x) in last_read}
        open_ends -= {id(x) for x in call.inputs if last_read[id(x)] == index}
        open_ends |= given.keys()
        if len(open_ends) == 1 and open_ends == given.keys():
            (passed[index],) = given.values()
    return passed


def _before_pooling(
    calls: Sequence[Call], passed: Mapping[int, keras.KerasTensor]
) -> dict[int, keras.KerasTensor]:
    stops: dict[int, keras.KerasTensor] = {}
    for index, tensor in passed.items():
        rank = len(tensor.shape)
        if rank < 3 or isinstance(calls[index].layer, _GLOBAL_POOLING):
            return stops
        if rank < 5:  # a channel shuffle may pass through five dimensions
            stops[index] = tensor
    return {}
