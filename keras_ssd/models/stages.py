"""Learning-rate multipliers of a network, a stage at a time."""

from __future__ import annotations

import collections
import difflib
import itertools
import math
from collections.abc import Iterator, Sequence
from numbers import Real

import keras

from keras_ssd.freezing.calls import Call, Calls, leading_to
from keras_ssd.layers.functional import as_functional

_ADVICE = "give the optimizer a mapping from the paths of its weights to factors"


def stage_multipliers(
    model: keras.Model, multipliers: Sequence[float], stages: Sequence[str] | None = None
) -> dict[str, float]:
    """The `learning_rate_multipliers` of `optimizers.SGD` for fine-tuning, a factor a stage.

    A weight belongs to the first stage whose end depends on it. What lies behind the last stage
    (classifier, heads) is not named and keeps the whole rate. Published factors are, for the stem
    and four stages of ResNet50-vd, [0.1, 0.1, 0.2, 0.2, 0.3] (classification) and
    [0.05, 0.05, 0.05, 0.1, 0.15] (detection), and for the 15 blocks of MobileNetV3-large in threes,
    the stem with the first, [0.25, 0.25, 0.5, 0.5, 0.75].

    Args:
        model: A functional or Sequential model, with or without heads: the student that is trained.
        multipliers: A factor >= 0 for each stage, from shallow to deep; 0 freezes.
        stages: The layers that end the stages, from shallow to deep, such as `conv1_relu`,
            `conv2_block3_out`, ... of `keras.applications.ResNet50`; those of nested models by
            their own names. By default `stage_0`, `stage_1`, ... as in the networks of `build`,
            where the first is the end of the stem.

    Returns:
        From `variable.path` to the factor, for each trainable weight of a stage.

    Raises:
        TypeError: If `model` is no Keras model.
        ValueError: If `model` is subclassed or not built; a layer is not there once, or not behind
            the one before; there are more or fewer factors than stages; or nothing in the stages is
            trained.

    Source: PaddleClas' and PaddleDetection's fine-tuning of the networks that SSLD has trained.
    """
    wrong = [each for each in multipliers if not (isinstance(each, Real) and 0 <= each < math.inf)]
    if wrong:
        raise ValueError(f"`multipliers` must be finite numbers >= 0, got {wrong[0]!r}.")
    network = Calls.of(as_functional(model, _ADVICE))
    ends = _ends(model, network, stages)
    if len(multipliers) != len(ends):
        raise ValueError(
            f"Model {model.name!r} has {len(ends)} stages, which end with {', '.join(ends)}, and "
            f"there are {len(multipliers)} multipliers: give one for each stage."
        )
    factors: dict[str, float] = {}
    before: list[Call] = []
    for (name, end), multiplier in zip(ends.items(), multipliers, strict=True):
        leading = leading_to(end.outputs, network.calls)
        if before and before[-1] not in leading:
            raise ValueError(
                f"`stages` must go from shallow to deep, and {name!r} does not lie behind "
                f"{before[-1].name!r}, got {list(ends)}."
            )
        before = leading
        for path in _trained(leading):
            factors.setdefault(path, multiplier)
    if not factors:
        raise ValueError(
            f"Nothing in the stages of model {model.name!r} is trained: give the model that is, "
            "before its backbone is frozen."
        )
    return factors


def _ends(model: keras.Model, network: Calls, stages: Sequence[str] | None) -> dict[str, Call]:
    """The calls that end the stages, by the names of their layers."""
    times = collections.Counter(call.name for call in network.calls)
    if stages is None:
        numbered = (f"stage_{number}" for number in itertools.count())
        stages = list(itertools.takewhile(times.__contains__, numbered))
    if not stages:
        raise ValueError(
            f"Model {model.name!r} has no layers stage_0, stage_1, ...: pass `stages=` the names "
            "of the layers that end its stages, from shallow to deep."
        )
    for name in stages:
        if name not in times:
            near = difflib.get_close_matches(name, times)
            raise ValueError(
                f"No layer {name!r} in model {model.name!r}. Close names: "
                f"{', '.join(near) or 'none'}."
            )
        if times[name] > 1:
            raise ValueError(
                f"Layer {name!r} is called {times[name]} times in model {model.name!r}: a stage "
                "ends with a layer that is called once."
            )
    calls = {call.name: call for call in network.calls}
    return {name: calls[name] for name in stages}


def _trained(calls: Sequence[Call]) -> Iterator[str]:
    """The paths of the trainable weights of calls."""
    for call in calls:
        # The weights of a layer inside a `FrozenBackbone` are not the ones that it is called with.
        if isinstance(call.layer, keras.layers.Layer) and call.values is None:
            yield from (variable.path for variable in call.layer.trainable_variables)
