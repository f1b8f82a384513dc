"""Why a checkpoint does not fit a network, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import keras

from keras_ssd import models
from keras_ssd.checkpoints.places import places

Shapes = Mapping[str, tuple[int, ...]]

PROJECTION = "proj_head."
AUXILIARY = "auxiliary_classifier."
HEADS = {  # their names begin with it: what they are, what attaches them
    PROJECTION: ("a projection head", "with_projection"),
    AUXILIARY: ("auxiliary classifiers", "with_auxiliary_classifiers"),
}
MOST_NAMES = 10


def misfits(model: keras.Model, wanted: Shapes, given: Shapes) -> list[str]:
    """What keeps arrays out of a network, in words.

    Args:
        model: The network.
        wanted: From the names of its weights to their shapes, both as in PyTorch.
        given: The same of the checkpoint.

    Returns:
        A part of a sentence for each reason; none if all arrays fit.
    """
    reasons = []
    for head, (title, attach) in HEADS.items():
        in_network, in_checkpoint = _any_begins(wanted, head), _any_begins(given, head)
        if in_network == in_checkpoint:
            continue
        if in_checkpoint:
            reasons.append(
                f"the checkpoint has {title}, the network has not: attach them with `{attach}`, "
                'or read the backbone alone with `prefix="backbone."`'
            )
        else:
            reasons.append(
                f"the network has {title}, the checkpoint has not: load it before `{attach}`, or "
                "its backbone alone into `strip_heads(network)`, which shares the layers"
            )
        wanted, given = _without(wanted, head), _without(given, head)
    rest = _other_widths(wanted, given)
    if rest is None:
        rest = _other_network(model, wanted, given) or _listed_problems(wanted, given)
    return [*reasons, rest] if rest else reasons


def _any_begins(names: Iterable[str], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in names)


def _without(shapes: Shapes, prefix: str) -> Shapes:
    return {name: shape for name, shape in shapes.items() if not name.startswith(prefix)}


def _problems(wanted: Shapes, given: Shapes) -> dict[str, list[str]]:
    return {
        "missing": [name for name in wanted if name not in given],
        "unexpected": [name for name in given if name not in wanted],
        "of another shape": [
            name for name, shape in wanted.items() if name in given and given[name] != shape
        ],
    }


def _other_widths(wanted: Shapes, given: Shapes) -> str | None:
    """A reason where all differences are numbers of classes or of views; None otherwise."""
    misshapen = _problems(wanted, given)
    if misshapen["missing"] or misshapen["unexpected"]:
        return None
    names = misshapen["of another shape"]
    kernels = [name for name in names if len(wanted[name]) == 2]
    biases = {name.removesuffix("weight") + "bias" for name in kernels}
    others = set(names) - biases - set(kernels)
    if not names or others or any(wanted[name][1:] != given[name][1:] for name in kernels):
        return None
    for name in kernels:
        if not name.startswith(AUXILIARY):
            there, here = given[name][0], wanted[name][0]
            return (
                f"the checkpoint has {there} classes, the network {here}: build the network with "
                f"`num_classes={there}`"
            )
    classes = wanted[_classifier(wanted)][0] if _classifier(wanted) else 0
    there, here = given[kernels[0]][0], wanted[kernels[0]][0]
    return (
        f"the auxiliary classifiers of the checkpoint give {there} logits, those of the network "
        f"{here}, for {classes} classes: attach them with the `num_views` of the checkpoint"
    )
