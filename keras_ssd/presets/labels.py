"""Labels alone, and plain knowledge distillation: what every method is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keras_ssd.objectives import HardLabels, SoftLabels
from keras_ssd.views import Plain


def labels_only(
    *,
    crop: bool = True,
    flip: bool = True,
    padding: int = 4,
    pad_value: float | Sequence[float] = 0,
) -> dict[str, Any]:
    """The baseline without a teacher: cross-entropy with the labels.

    Args:
        crop: Random crops of the padded image.
        flip: Random left-right mirroring.
        padding: Pixels on each side.
        pad_value: What black is in the images that are given to `fit`.

    Returns:
        `objectives` and `views` for `Distiller`.

    Source: Xu et al. 2020 (arXiv:2006.07114), training of the teacher: padding 4, crop, flip.
    """
    views = Plain(crop, flip=flip, padding=padding, pad_value=pad_value)
    return {"objectives": [HardLabels()], "views": views}


def kd(
    *,
    labels_weight: float = 0.1,
    soft_labels_weight: float = 0.9,
    temperature: float = 4.0,
    crop: bool = True,
    flip: bool = True,
    padding: int = 4,
    pad_value: float | Sequence[float] = 0,
) -> dict[str, Any]:
    """Knowledge distillation: labels and the teacher's softened logits.

    Args:
        labels_weight: Weight of the cross-entropy with the labels.
        soft_labels_weight: Weight of the divergence from the teacher.
        temperature: Temperature of the divergence.
        crop: Random crops of the padded image.
        flip: Random left-right mirroring.
        padding: Pixels on each side.
        pad_value: What black is in the images that are given to `fit`.

    Returns:
        `objectives` and `views` for `Distiller`.

    Source: Hinton et al. 2015 (arXiv:1503.02531); the numbers are those of the KD rows in Tian et
    al. 2020 (CRD, arXiv:1910.10699) and Xu et al. 2020 (arXiv:2006.07114).
    """
    objectives = [
        HardLabels(labels_weight),
        SoftLabels(temperature, weight=soft_labels_weight),
    ]
    return {
        "objectives": objectives,
        "views": Plain(crop, flip=flip, padding=padding, pad_value=pad_value),
    }
