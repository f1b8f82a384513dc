"""What a batch says of networks: is the teacher trained for it, do the values fit them?"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_ssd.layers.frozen_backbone import FrozenCopy
from keras_ssd.layers.image_preprocessing import ImagePreprocessing
from keras_ssd.layers.structure import normalization_of, takes_raw_images
from keras_ssd.teacher import FrozenTeacher

# A finding of chance would be one in a hundred batches; of several candidates one in a thousand.
_CHANCE, _CANDIDATE = 1e-2, 1e-3
_SHUFFLES = 2_000


def teacher_findings(
    logits: np.ndarray, labels: np.ndarray, teacher: FrozenTeacher | None, images: np.ndarray
) -> list[str]:
    """Sentences on a teacher that does not know the images or the labels; empty for a good one.

    Args:
        logits: The teacher's, `[B, C]`.
        labels: Integers `[B]`, -1 where an image has none or does not count.
        teacher: The teacher, None where its outputs were stored.
        images: What it is given, `[B, height, width, channels]`.
    """
    known = labels >= 0
    if not known.any():
        return []
    predicted, truth = logits.argmax(axis=1)[known], labels[known]
    reasons = [_another_order(predicted, truth)]
    if teacher is not None:
        reasons.append(_other_values(teacher, images, labels))
    if not any(reasons):
        reasons.append(_no_better_than_chance(predicted, truth))
    return [reason for reason in reasons if reason is not None]


def is_chance(predicted: np.ndarray, labels: np.ndarray) -> bool:
    """Whether answers fit the labels no better than they fit the same labels shuffled."""
    _, counts = np.unique(labels, return_counts=True)
    orders = math.lgamma(len(labels) + 1) - sum(math.lgamma(count + 1) for count in counts)
    if math.exp(-orders) > _CHANCE:  # a few images fit even right answers by chance
        return False
    right = (predicted == labels).sum()
    shuffled = np.random.default_rng(0).permuted(np.tile(labels, (_SHUFFLES, 1)), axis=1)
    as_good = ((shuffled == predicted).sum(axis=1) >= right).sum()
    return (as_good + 1) / (_SHUFFLES + 1) > _CHANCE


def _no_better_than_chance(predicted: np.ndarray, labels: np.ndarray) -> str | None:
    if (labels == labels[0]).all():
        return (
            f"All labels of this batch are class {labels[0]}, so it cannot tell whether the "
            "teacher is any good: shuffle the images."
        )
    if not is_chance(predicted, labels):
        return None
    return (
        f"The teacher is right in {(predicted == labels).sum()} of {len(labels)} images, no more "
        "than chance explains: is it trained, are its weights loaded, and does it know these "
        "classes?"
    )


def _another_order(predicted: np.ndarray, labels: np.ndarray) -> str | None:
    """Whether a class of the teacher tells the label, but another one than its number."""
    right = predicted == labels
    renumbered = np.array([_usual_label(predicted, labels, i) for i in range(len(labels))])
    renumbered_right = renumbered == labels
    if not _better(renumbered_right, right, labels):
        return None
    pairs = Counter(zip(predicted.tolist(), labels.tolist(), strict=True)).most_common()
    moved = [f"{p} where the label is {label}" for (p, label), _ in pairs if p != label][:3]
    return (
        f"The teacher's classes are in another order than the labels: it is right in "
        f"{right.sum()} of {len(labels)} images, and in {renumbered_right.sum()} when its classes "
        "are renumbered by what the other images of the batch say (it often says "
        f"{', '.join(moved)}): bring the class names into one order."
    )


def _usual_label(predicted: np.ndarray, labels: np.ndarray, image: int) -> int:
    """The label that most other images have for which the teacher says the same."""
    others = (predicted == predicted[image]) & (np.arange(len(labels)) != image)
    return int(np.bincount(labels[others]).argmax()) if others.any() else -1


def _other_values(teacher: FrozenTeacher, images: np.ndarray, labels: np.ndarray) -> str | None:
    """Whether the teacher knows the images better with other values than it is given."""
    right = _right_with(teacher, images, labels)
    found = {
        words: _right_with(teacher, values, labels)
        for words, values in _candidates(teacher, images)
    }
    answered = {words: answers for words, answers in found.items() if answers is not None}
    words = max(answered, key=lambda name: answered[name].sum(), default=None)
    truth = labels[labels >= 0]
    if right is None or words is None or not _better(answered[words], right, truth):
        return None
    return (
        f"The teacher is right in {right.sum()} of {len(truth)} images as they are, and in "
        f"{answered[words].sum()} when it sees them {words}: normalise them as it was trained, in "
        "the model or by `teacher_preprocessing`."
    )


def _right_with(teacher: FrozenTeacher, images: np.ndarray, labels: np.ndarray) -> Any:
    """Whether each labelled image is put into its class; None where a user's function fails."""
    try:
        logits = teacher(tf.convert_to_tensor(images))["logits"]
    except Exception:  # the values are none that it was written for
        return None
    return (np.argmax(logits, axis=1) == labels)[labels >= 0]


def _candidates(teacher: FrozenTeacher, images: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """The images with other values, in words and as the teacher is to be given them."""
    if images.shape[-1] == 3:
        yield "with red and blue exchanged", images[..., ::-1]
    of_keras = isinstance(teacher.preprocessing or teacher.model, (keras.layers.Layer, FrozenCopy))
    if np.issubdtype(images.dtype, np.integer) and not of_keras:
        return  # a function may take no other kind, or round what it is given
    unit = _in_unit_range(images.astype("float32"))
    mean, std = (f(unit, axis=(0, 1, 2)) for f in (np.mean, np.std))
    seen = {
        "in 0..1": unit,
        "in -1..1": 2 * unit - 1,
        "in 0..255": 255 * unit,
        "with mean 0 and deviation 1 a channel": (unit - mean) / np.maximum(std, 1e-3),
    }
    layer = None if teacher.preprocessing is not None else normalization_of(teacher.model)
    for words, values in seen.items():
        if layer is not None:  # both kinds of layer are affine
            offset = np.asarray(layer(np.zeros_like(values[:1])), "float32")
            scale = np.asarray(layer(np.ones_like(values[:1])), "float32") - offset
            values, words = (values - offset) / scale, f"{words}, behind its own normalisation"
        yield words, values


def _in_unit_range(images: np.ndarray) -> np.ndarray:
    """The images in 0..1: raw ones exactly, normalised ones as far as a batch shows their range."""
    low, high = images.min(axis=(0, 1, 2)), images.max(axis=(0, 1, 2))
    if low.min() >= 0 and high.max() <= 255:
        low, high = np.float32(0), np.float32(255 if high.max() > 2 else 1)
    return (images - low) / np.maximum(high - low, 1e-6)


def _better(candidate: np.ndarray, right: np.ndarray, labels: np.ndarray) -> bool:
    """Whether a candidate is right more often, and than a constant answer, by more than luck."""
    wins, losses = int((candidate & ~right).sum()), int((right & ~candidate).sum())
    constant = np.bincount(labels).max() / len(labels)
    luck = _tail(wins + losses, wins, 0.5), _tail(len(labels), int(candidate.sum()), constant)
    return wins > losses and max(luck) <= _CANDIDATE


def _tail(trials: int, successes: int, chance: float) -> float:
    """The probability of at least so many successes."""
    if chance >= 1:
        return 1.0
    logs = (
        math.lgamma(trials + 1)
        - math.lgamma(k + 1)
        - math.lgamma(trials - k + 1)
        + k * math.log(chance)
        + (trials - k) * math.log1p(-chance)
        for k in range(successes, trials + 1)
    )
    return sum(map(math.exp, logs))


def value_findings(
    images: np.ndarray, student: keras.Model, teacher: FrozenTeacher | None
) -> dict[str, str]:
    """Sentences, by part, on values of the images that do not fit what a network expects.

    Args:
        images: `[few, height, width, channels]`.
        student: The student.
        teacher: The teacher that runs, or None.
    """
    networks: dict[str, Any] = {"student": student}
    if teacher is not None and isinstance(teacher.preprocessing, ImagePreprocessing):
        networks["teacher"] = teacher.preprocessing
    elif teacher is not None and teacher.preprocessing is None:
        networks["teacher"] = teacher.model
    if images.size == 0:
        return {}
    low, high = float(images.min()), float(images.max())
    findings = {}
    for part, network in networks.items():
        raw = takes_raw_images(network)
        if raw is True and (low < 0 or high <= 2):
            findings[part] = (
                f"The {part} {network.name!r} normalises raw images (0..255) itself, but the "
                f"images lie in {low:.4g}..{high:.4g}: give raw images, or build it without `mean` "
                "and `std`."
            )
        elif raw is False and low >= 0 and high > 20:
            findings[part] = (
                f"The {part} {network.name!r} has no layer that normalises, but the images lie in "
                f"{low:.4g}..{high:.4g}: build it with `data.info`, or normalise the images."
            )
    if teacher is not None and _left_raw(teacher):
        findings.setdefault(
            "teacher",
            "The teacher has no layer that normalises, and its ImagePreprocessing leaves images in "
            "0..255: give it the `mean` and `std` that the teacher was trained with.",
        )
    return findings


def _left_raw(teacher: FrozenTeacher) -> bool:
    """Whether nothing normalises the images, neither the preprocessing nor the network."""
    first = teacher.preprocessing
    leaves = isinstance(first, ImagePreprocessing) and first.mean is None
    return leaves and takes_raw_images(teacher.model) is False
