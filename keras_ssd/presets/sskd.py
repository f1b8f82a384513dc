"""SSKD: self-supervised similarity matrices, and the pretext task of its head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keras_ssd.objectives import (
    ContrastivePretext,
    HardLabels,
    SelectiveSoftLabels,
    SimilarityTransfer,
    SoftLabels,
)
from keras_ssd.views import Rotations


def sskd_pretext(
    *,
    temperature: float = 1.0,
    crop: str | None = "each",
    flip: bool = True,
    padding: int = 4,
    pad_value: float | Sequence[float] = 0,
) -> dict[str, Any]:
    """SSKD, second phase: the teacher's projection head learns to find an image among others.

    The student of this phase is `with_projection(teacher, backbone="frozen")`.

    Args:
        temperature: Temperature of the contrastive loss.
        crop: `"each"`, `"shared"` or None, see `views.Rotations`.
        flip: Random left-right mirroring.
        padding: Pixels on each side.
        pad_value: What black is in the images that are given to `fit`.

    Returns:
        `objectives` and `views` for `Distiller`.

    Source: Xu et al. 2020 (arXiv:2006.07114), section 3.1, and its code (no temperature).
    """
    return {
        "objectives": [ContrastivePretext(temperature)],
        "views": Rotations(crop, flip=flip, padding=padding, pad_value=pad_value),
    }


def sskd(
    *,
    labels_weight: float = 0.1,
    soft_labels_weight: float = 0.9,
    selective_weight: float = 2.7,
    similarity_weight: float = 10.0,
    temperature: float = 4.0,
    similarity_temperature: float = 0.5,
    keep_wrong_labels: float = 1.0,
    keep_wrong_similarity: float = 0.75,
    crop: str | None = "each",
    flip: bool = True,
    padding: int = 4,
    pad_value: float | Sequence[float] = 0,
) -> dict[str, Any]:
    """SSKD, third phase: the student learns labels, soft labels and similarities.

    Args:
        labels_weight: Weight of the cross-entropy with the labels.
        soft_labels_weight: Weight of the divergence from the teacher on plain images.
        selective_weight: Weight of the divergence from the teacher on transformed images.
        similarity_weight: Weight of the divergence between similarity matrices.
        temperature: Temperature of both divergences of logits.
        similarity_temperature: Temperature of the similarity matrices.
        keep_wrong_labels: Share of transformed images kept that the teacher misclassifies.
        keep_wrong_similarity: Share of transformed images kept that the teacher matches wrongly.
        crop: `"each"`, `"shared"` or None, see `views.Rotations`.
        flip: Random left-right mirroring.
        padding: Pixels on each side.
        pad_value: What black is in the images that are given to `fit`.

    Returns:
        `objectives` and `views` for `Distiller`.

    Source: Xu et al. 2020 (arXiv:2006.07114). Weights, temperatures and shares are the defaults of
    the authors' CIFAR-100 code; the paper gives the weights 2.7 and 10 to the similarity and the
    selective term the other way round, its ECCV supplement 3 and 5.
    """
    objectives = [
        HardLabels(labels_weight),
        SoftLabels(temperature, weight=soft_labels_weight),
        SelectiveSoftLabels(temperature, keep_wrong=keep_wrong_labels, weight=selective_weight),
        SimilarityTransfer(
            similarity_temperature, keep_wrong=keep_wrong_similarity, weight=similarity_weight
        ),
    ]
    return {
        "objectives": objectives,
        "views": Rotations(crop, flip=flip, padding=padding, pad_value=pad_value),
    }
