"""SSLD: distillation without labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keras_ssd.objectives import SymmetricSoftLabels
from keras_ssd.views import Plain


def ssld(
    *,
    soft_labels_weight: float = 1.0,
    temperature: float = 1.0,
    crop: bool = True,
    flip: bool = True,
    padding: int = 4,
    pad_value: float | Sequence[float] = 0,
) -> dict[str, Any]:
    """SSLD: the student learns the teacher's class distribution of any image, without labels.

    The same for both stages: all images first, those of the target set then, at a hundredth of the
    rate.

    Args:
        soft_labels_weight: Weight of the symmetric divergence.
        temperature: Its temperature.
        crop: Random crops of the padded image.
        flip: Random left-right mirroring.
        padding: Pixels on each side.
        pad_value: What black is in the images that are given to `fit`.

    Returns:
        `objectives` and `views` for `Distiller`.

    Source: Cui et al. 2021 (arXiv:2103.05959) and its code: the only term, without a temperature.
    Its crops are those of photographs (8 % to all of the area, resized to 224), which belong where
    images are decoded: `crop=False` then. Crop and padding here are those of CIFAR.
    """
    symmetric = SymmetricSoftLabels(soft_labels_weight, temperature=temperature)
    return {
        "objectives": [symmetric],
        "views": Plain(crop, flip=flip, padding=padding, pad_value=pad_value),
    }
