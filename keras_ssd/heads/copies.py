"""Calls of a network made again with fresh layers, with or without reducing the spatial size."""

from __future__ import annotations

import collections
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras

from keras_ssd.freezing.calls import Call, Calls
from keras_ssd.heads.main_path import is_merge, replay
from keras_ssd.layers.functional import reason_of

_POOLING = (keras.layers.AveragePooling2D, keras.layers.MaxPooling2D)


class RepetitionError(ValueError):
    """A call that cannot be made again with a fresh layer."""


class Copies:
    """Fresh layers in the place of a network's own, made from their configs.

    They are trained, whatever the originals are, and draw their first weights anew, whatever seeds
    the originals had. A layer that is called several times becomes one layer. Called as they are:
    operations, and layers without weights that no config can hold.

    Args:
        prefix: What their names begin with, before the name of the original.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._fresh: dict[int, keras.layers.Layer] = {}
        self._names: collections.Counter[str] = collections.Counter()

    def repeat(
        self,
        calls: Sequence[Call],
        start: keras.KerasTensor,
        end: keras.KerasTensor,
        x: keras.KerasTensor,
    ) -> keras.KerasTensor:
        """What the calls from `start` to `end` give for `x` in the place of `start`.

        Raises:
            RepetitionError: If a layer cannot be made or called again.
        """

        def apply(call: Call, *args: Any, **kwargs: Any) -> Any:
            return self._call(call, args, kwargs)

        return replay(calls, {id(start): x}, apply)[id(end)]

    def repeat_in_one_size(
        self,
        calls: Sequence[Call],
        start: keras.KerasTensor,
        end: keras.KerasTensor,
        x: keras.KerasTensor,
    ) -> keras.KerasTensor:
        """The same without reducing the spatial size, for an `x` of any width.

        Strides are 1, convolutions pad "same"; explicit padding and pooling with strides are left
        out. So is the projection of a shortcut where its input has the right width already.

        Raises:
            RepetitionError: If a layer cannot be made or called again, or reduces the size all the
                same.
        """
        kept = [call for call in calls if not _only_resizes(call.layer)]
        left_out = [call for call in calls if _only_resizes(call.layer)]
        stands_for = {id(call.outputs): call.inputs[0] for call in left_out}
        rest = Calls(start, kept, end).renamed(stands_for)
        projections = dict(_projections(rest.calls))
        identities: set[int] = set()

        def apply(call: Call, *args: Any, **kwargs: Any) -> Any:
            given = [*args, *kwargs.values()][0]
            if id(call) in projections and given.shape[-1] == call.layer.filters:
                identities.update(projections[id(call)])
            if id(call) in identities:
                return given
            return self._call(call, args, kwargs, in_one_size=True)

        outputs = replay(rest.calls, {id(start): x}, apply)[id(rest.outputs)]
        if outputs.shape[:-1] != x.shape[:-1]:
            raise RepetitionError(
                f"the layers before {calls[-1].name!r} change the size {x.shape[1:-1]} to "
                f"{outputs.shape[1:-1]} without a `strides` that could be 1"
            )
        return outputs

    def _call(
        self,
        call: Call,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        *,
        in_one_size: bool = False,
    ) -> Any:
        try:
            return self._layer(call.layer, in_one_size)(*args, **kwargs)
        except Exception as error:  # whatever a user's layer raises
            reason = textwrap.shorten(reason_of(error), 160)  # some quote whole configs
            raise RepetitionError(f"{call.name!r} cannot be made again: {reason}") from error

    def _layer(self, layer: Any, in_one_size: bool) -> Any:
        if not isinstance(layer, keras.layers.Layer):
            return layer
        if id(layer) not in self._fresh:
            self._fresh[id(layer)] = self._made_again(layer, in_one_size)
        return self._fresh[id(layer)]

    def _made_again(self, layer: keras.layers.Layer, in_one_size: bool) -> keras.layers.Layer:
        try:
            config = _in_one_size(_config(layer)) if in_one_size else _config(layer)
            fresh = type(layer).from_config({**config, "name": self._name(layer)})
        except Exception:  # a part that no config can hold, such as a lambda
            if layer.weights:
                raise
            return layer
        fresh.trainable = True
        return fresh

    def _name(self, layer: keras.layers.Layer) -> str:
        name = f"{self._prefix}{layer.name}"
        self._names[name] += 1  # layers of two nested models may have one name
        return name if self._names[name] == 1 else f"{name}.{self._names[name]}"


def _config(layer: keras.layers.Layer) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a lambda, in case it were saved
        return _without_seeds(layer.get_config())


def _without_seeds(config: Any) -> Any:
    """So that two classifiers do not start from equal weights."""
    if isinstance(config, dict):
        return {k: None if k == "seed" else _without_seeds(v) for k, v in config.items()}
    return list(map(_without_seeds, config)) if isinstance(config, list) else config


def _in_one_size(config: dict[str, Any]) -> dict[str, Any]:
    changed: dict[str, Any] = {key: 1 for key in ("strides", "stride") if key in config}
    if config.get("padding") == "valid":
        changed["padding"] = "same"
    return {**config, **changed}


def _only_resizes(layer: Any) -> bool:
    strided = isinstance(layer, _POOLING) and max(layer.strides) > 1
    return strided or isinstance(layer, keras.layers.ZeroPadding2D)


def _projections(calls: Sequence[Call]) -> Iterator[tuple[int, list[int]]]:
    """The 1x1 convolutions that stand in shortcuts because the shape changes.

    Yields:
        The id of the call, and the ids of it and of the batch normalisation behind it.
    """
    makers = {id(x): call for call in calls for x in keras.tree.flatten(call.outputs)}
    for merge in calls:
        for tensor in merge.inputs if is_merge(merge, "Add") else ():
            chain = [makers[id(tensor)]] if id(tensor) in makers else []
            if chain and isinstance(chain[0].layer, keras.layers.BatchNormalization):
                chain += [makers[id(x)] for x in chain[0].inputs if id(x) in makers]
            beside = _all_before([x for x in merge.inputs if x is not tensor], makers)
            if chain and _changes_shape(chain[-1]) and _is_shortcut(chain, beside):
                yield id(chain[-1]), list(map(id, chain))
                break


def _changes_shape(call: Call) -> bool:
    layer = call.layer
    return (
        isinstance(layer, keras.layers.Conv2D)
        and (*layer.kernel_size, layer.groups) == (1, 1, 1)
        and (max(layer.strides) > 1 or call.inputs[0].shape[-1] != layer.filters)
    )


def _is_shortcut(chain: Sequence[Call], beside: set[int]) -> bool:
    """Whether what lies beside begins where the chain does, and reads nothing of it."""
    begins = id(chain[-1].inputs[0]) in beside
    return begins and beside.isdisjoint(id(call.outputs) for call in chain)


def _all_before(tensors: Sequence[keras.KerasTensor], makers: Mapping[int, Call]) -> set[int]:
    """The ids of tensors and of everything that they are made of."""
    waiting = {id(x) for x in tensors}
    found: set[int] = set()
    while waiting:
        found |= waiting
        calls = [makers[x] for x in waiting if x in makers]
        waiting = {id(x) for call in calls for x in call.inputs} - found
    return found
