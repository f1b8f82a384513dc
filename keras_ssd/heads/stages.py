"""Where the stages of a network end, told by the spatial sizes of its maps."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from keras_ssd.freezing.calls import Call
from keras_ssd.heads.main_path import MainPath, is_merge, replay
from keras_ssd.heads.taps import layers_by_path

_UNKNOWN = 224  # pixels a side where the network leaves the size of its images open


def find_taps(network: keras.Model) -> list[str]:
    """The layers at which auxiliary classifiers begin, from shallow to deep.

    A stage begins with the operation that halves the height or width of the maps, or more. A first
    stage of one convolution is dropped, and a stage without one belongs to the next, or if it is
    the last one to what every classifier ends with. The tap of a stage is its last sum or
    concatenation, behind the activation or channel shuffle that follows it alone; failing that, the
    last map of the stage.

    Args:
        network: A functional model.

    Returns:
        Paths of layers.

    Raises:
        ValueError: If the taps cannot be found.

    Source: Yang et al. 2021, arXiv:2107.13715, section 3.1; the rules are this library's.
    """
    path = MainPath.of(network)
    if len(path.stops[path.pooled].shape) != 4:
        raise _not_found(network, "what it pools is no map (rows, height, width, channels)")
    if any(_is_dilated(call.layer) for call in path.calls):
        raise _not_found(network, "it has dilated convolutions, which end no stage by its size")
    stages = _stages(path, _sizes(network, path))
    if len(stages) < 2:
        raise _not_found(network, "two stages of different size, at least, are needed")
    named = _named(network, path.calls)
    return [named[_tap(network, path, stage, named)] for stage in stages]


def _not_found(network: keras.Model, reason: str) -> ValueError:
    return ValueError(
        f"The taps of auxiliary classifiers cannot be found in model {network.name!r}: {reason}. "
        "Pass `taps=` the layers at whose outputs they begin, from shallow to deep."
    )


def _is_dilated(layer: Any) -> bool:
    return any(rate != 1 for rate in keras.tree.flatten(getattr(layer, "dilation_rate", 1)))


def _sizes(network: keras.Model, path: MainPath) -> dict[int, tuple[int, int]]:
    """Height and width of the maps that all ways pass."""
    shape = [size or _UNKNOWN for size in path.images.shape[1:]]
    images = keras.Input(shape, dtype=path.images.dtype)
    values = replay(path.calls[: path.pooled + 1], {id(path.images): images})
    sizes = {}
    for index, tensor in path.stops.items():
        _, *size, _ = values[id(tensor)].shape
        if None in size:
            raise _not_found(network, f"the size of the map of {path.calls[index].name!r} is open")
        if len(size) == 2 and not isinstance(path.calls[index].layer, keras.layers.ZeroPadding2D):
            sizes[index] = tuple(size)
    return sizes


def _stages(path: MainPath, sizes: Mapping[int, tuple[int, int]]) -> list[list[int]]:
    """The maps of each stage, as indices of the calls that give them."""
    stages: list[list[int]] = []
    before = None
    for index, size in sizes.items():
        if before is None or any(map(_is_reduced, before, size)):
            stages.append([])
        stages[-1].append(index)
        before = size
    return _with_convolutions(stages, path.calls)


def _is_reduced(before: int, after: int) -> bool:
    return after < before and after <= (before + 1) // 2


def _with_convolutions(stages: Sequence[list[int]], calls: Sequence[Call]) -> list[list[int]]:
    kept: list[list[int]] = []
    counts = []
    stage: list[int] = []
    start = 0
    for maps in stages:
        stage = stage + maps
        count = sum(map(_convolutions, calls[start : stage[-1] + 1]))
        if count:
            kept.append(stage)
            counts.append(count)
            start, stage = stage[-1] + 1, []
    return kept[1:] if counts[:1] == [1] else kept


def _convolutions(call: Call) -> int:
    return sum(len(weight.shape) == 4 for weight in getattr(call.layer, "weights", ()))


def _named(network: keras.Model, calls: Sequence[Call]) -> dict[int, str]:
    """The paths of the calls whose outputs can be tapped: layers that are called once."""
    paths = {id(layer): path for path, layer in layers_by_path(network)}
    times = collections.Counter(id(call.layer) for call in calls)
    return {
        index: paths[id(call.layer)]
        for index, call in enumerate(calls)
        if id(call.layer) in paths and times[id(call.layer)] == 1
    }


def _tap(
    network: keras.Model, path: MainPath, stage: Sequence[int], named: Mapping[int, str]
) -> int:
    merges = [i for i in stage if is_merge(path.calls[i], "Add", "Concatenate")]
    wanted = _with_followers(path, stage, merges[-1]) if merges else stage
    choice = [index for index in wanted if index in named] or [i for i in stage if i in named]
    if not choice:
        name = path.calls[stage[-1]].name
        raise _not_found(network, f"no layer that is called once ends the stage of {name!r}")
    return choice[-1]


def _with_followers(path: MainPath, stage: Sequence[int], merge: int) -> list[int]:
    """A merge, and what follows it alone without weights and keeps the shape of its map."""
    chain = [merge]
    for index in range(merge + 1, stage[-1] + 1):
        call = path.calls[index]
        before = keras.tree.flatten(path.calls[index - 1].outputs)
        if getattr(call.layer, "weights", ()) or [*map(id, call.inputs)] != [*map(id, before)]:
            break
        if index in stage and path.stops[index].shape == path.stops[merge].shape:
            chain.append(index)
    return chain
