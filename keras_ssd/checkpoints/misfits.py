"""Why a checkpoint does not fit a network, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import keras

from keras_ssd.checkpoints.recognition import recognized
from keras_ssd.models.network import AUXILIARY

Shapes = Mapping[str, tuple[int, ...]]

PROJECTION = "proj_head."
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
    """A reason if all that differs is a number of classes or of views; None otherwise."""
    names = {name for name, shape in wanted.items() if given.get(name) != shape}
    kernels = [name for name in names if len(wanted[name]) == 2]
    layers = {name.rpartition(".")[0] for name in kernels}
    is_all = wanted.keys() == given.keys() and layers == {n.rpartition(".")[0] for n in names}
    if not names or not is_all or any(wanted[name][1:] != given[name][1:] for name in kernels):
        return None
    # The classifier comes before the auxiliary ones, which have more logits for more classes.
    name = min(kernels, key=lambda kernel: kernel.startswith(AUXILIARY))
    there, here = given[name][0], wanted[name][0]
    if name.startswith(AUXILIARY):
        return (
            f"an auxiliary classifier gives {there} logits in the checkpoint, {here} in the "
            "network: attach them with the `num_views=` of the checkpoint"
        )
    return (
        f"the checkpoint has {there} classes, the network {here}: build the network with "
        f"`num_classes={there}`"
    )


def _other_network(model: keras.Model, wanted: Shapes, given: Shapes) -> str | None:
    """The network of the papers that the arrays are of, if it is another one."""
    inputs = getattr(model, "inputs", None)  # a subclassed model has none
    if not inputs or _backbone(given) == _backbone(wanted):
        return None
    name, classes = recognized(_backbone(given), channels=inputs[0].shape[-1])
    if name is None:
        return None
    return (
        f"the checkpoint is one of {name!r} with {classes} classes: build that with "
        f"`models.build({name!r}, num_classes={classes}, ...)`"
    )


def _backbone(shapes: Shapes) -> Shapes:
    return _without(_without(shapes, PROJECTION), AUXILIARY)


def _listed_problems(wanted: Shapes, given: Shapes) -> str:
    """What is missing, unexpected or of another shape; empty if all fits."""
    problems = _problems(wanted, given)
    problems["of another shape"] = [
        f"{name} {given[name]} for {wanted[name]}"
        + (", transposed" if sorted(given[name]) == sorted(wanted[name]) else "")
        for name in problems["of another shape"]
    ]
    return "; ".join(f"{problem}: {_listed(names)}" for problem, names in problems.items() if names)


def _listed(names: list[str]) -> str:
    more = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
