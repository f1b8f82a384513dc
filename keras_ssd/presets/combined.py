"""SSKD and HSAKD in one step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keras_ssd.objectives import ContrastivePretext, SimilarityTransfer
from keras_ssd.presets.hsakd import hsakd, hsakd_teacher


def combined_teacher(
    *,
    labels_weight: float = 1.0,
    auxiliary_weight: float = 1.0,
    pretext_weight: float = 1.0,
    pretext_temperature: float = 1.0,
    diagnostics: bool = True,
    crop: str | None = "each",
    flip: bool = True,
    padding: int = 4,
    pad_value: float | Sequence[float] = 0,
) -> dict[str, Any]:
    """The teacher of `combined`: its projection head and its auxiliary classifiers in one run.

    The student of this phase is
    `with_projection(with_auxiliary_classifiers(teacher, backbone="frozen"))`.

    Args:
        labels_weight: Weight of the cross-entropy of the plain rows, a constant on a frozen
            backbone.
        auxiliary_weight: Weight of the sum over the auxiliary classifiers.
        pretext_weight: Weight of the contrastive loss of the projection head.
        pretext_temperature: Temperature of the contrastive loss.
        diagnostics: Whether five accuracies a classifier are shown.
        crop: `"each"`, `"shared"` or None, see `views.Rotations`.
        flip: Random left-right mirroring.
        padding: Pixels on each side.
        pad_value: What black is in the images that are given to `fit`.

    Returns:
        `objectives` and `views` for `Distiller`.

    Source: `hsakd_teacher` and `sskd_pretext` added up. On a frozen backbone the heads share no
    weight, so that each learns what it would learn alone.
    """
    teacher = hsakd_teacher(
        labels_weight=labels_weight,
        auxiliary_weight=auxiliary_weight,
        diagnostics=diagnostics,
        crop=crop,
        flip=flip,
        padding=padding,
        pad_value=pad_value,
    )
    pretext = ContrastivePretext(pretext_temperature, weight=pretext_weight)
    return {**teacher, "objectives": [*teacher["objectives"], pretext]}


def combined(
    *,
    labels_weight: float = 1.0,
    soft_labels_weight: float = 1.0,
    auxiliary_weight: float = 1.0,
    similarity_weight: float = 10.0,
    temperature: float = 3.0,
    similarity_temperature: float = 0.5,
    keep_wrong_similarity: float = 0.75,
    diagnostics: bool = True,
    crop: str | None = "each",
    flip: bool = True,
    padding: int = 4,
    pad_value: float | Sequence[float] = 0,
) -> dict[str, Any]:
    """SSKD and HSAKD in one step: soft labels, similarity matrices and auxiliary classifiers.

    Teacher and student have a projection head and auxiliary classifiers, one forward each.

    Args:
        labels_weight: Weight of the cross-entropy of the plain rows.
        soft_labels_weight: Weight of the divergence from the teacher's logits, on all rows.
        auxiliary_weight: Weight of the divergences from its auxiliary classifiers, summed.
        similarity_weight: Weight of the divergence between similarity matrices.
        temperature: Temperature of the divergences of logits.
        similarity_temperature: Temperature of the similarity matrices.
        keep_wrong_similarity: Share of transformed images kept that the teacher matches wrongly.
        diagnostics: Whether five accuracies a classifier are shown.
        crop: `"each"`, `"shared"` or None, see `views.Rotations`.
        flip: Random left-right mirroring.
        padding: Pixels on each side.
        pad_value: What black is in the images that are given to `fit`.

    Returns:
        `objectives` and `views` for `Distiller`.

    Source: the terms of `hsakd` with its numbers, and the similarity term of `sskd` with those of
    its code. The two terms of soft labels of SSKD are left out: with the shares of the authors'
    code they compare all rows, as HSAKD's term does (weighted 3.6 in all at temperature 4, where
    HSAKD has 1 at 3).
    """
    student = hsakd(
        labels_weight=labels_weight,
        soft_labels_weight=soft_labels_weight,
        auxiliary_weight=auxiliary_weight,
        temperature=temperature,
        diagnostics=diagnostics,
        crop=crop,
        flip=flip,
        padding=padding,
        pad_value=pad_value,
    )
    similarity = SimilarityTransfer(
        similarity_temperature, keep_wrong=keep_wrong_similarity, weight=similarity_weight
    )
    return {**student, "objectives": [*student["objectives"], similarity]}
