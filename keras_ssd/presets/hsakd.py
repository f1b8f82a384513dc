"""HSAKD: auxiliary classifiers on hierarchical feature maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keras_ssd.objectives import AuxiliaryLabels, AuxiliaryTransfer, HardLabels, Mutual, SoftLabels
from keras_ssd.views import Rotations


def hsakd_teacher(
    *,
    labels_weight: float = 1.0,
    auxiliary_weight: float = 1.0,
    diagnostics: bool = True,
    crop: str | None = "shared",
    flip: bool = True,
    padding: int = 4,
    pad_value: float | Sequence[float] = 0,
) -> dict[str, Any]:
    """HSAKD, the teacher: labels, and classes x rotations in every auxiliary classifier.

    The student of this phase is the teacher: `with_auxiliary_classifiers(teacher)`, from scratch
    (the authors' Teacher*), or `with_auxiliary_classifiers(teacher, backbone="frozen")`, trained
    before (their Teacher), where the labels' term is a constant.

    Args:
        labels_weight: Weight of the cross-entropy of the plain rows.
        auxiliary_weight: Weight of the sum over the auxiliary classifiers.
        diagnostics: Whether five accuracies a classifier are shown.
        crop: `"each"`, `"shared"` or None, see `views.Rotations`.
        flip: Random left-right mirroring.
        padding: Pixels on each side.
        pad_value: What black is in the images that are given to `fit`.

    Returns:
        `objectives` and `views` for `Distiller`.

    Source: Yang et al. 2021 (arXiv:2107.13715), equation 1, and the authors' code: all weights 1,
    one crop and one mirroring for the four views of an image.
    """
    objectives = [
        HardLabels(labels_weight),
        AuxiliaryLabels(auxiliary_weight, diagnostics=diagnostics),
    ]
    views = Rotations(crop, flip=flip, padding=padding, pad_value=pad_value)
    return {"objectives": objectives, "views": views}


def hsakd(
    *,
    labels_weight: float = 1.0,
    soft_labels_weight: float = 1.0,
    auxiliary_weight: float = 1.0,
    temperature: float = 3.0,
    diagnostics: bool = True,
    crop: str | None = "shared",
    flip: bool = True,
    padding: int = 4,
    pad_value: float | Sequence[float] = 0,
) -> dict[str, Any]:
    """HSAKD, the student: labels, the teacher's logits and its auxiliary classifiers.

    Args:
        labels_weight: Weight of the cross-entropy of the plain rows.
        soft_labels_weight: Weight of the divergence from the teacher's logits, on all rows.
        auxiliary_weight: Weight of the divergences from its auxiliary classifiers, summed.
        temperature: Temperature of all divergences.
        diagnostics: Whether five accuracies a classifier are shown.
        crop: `"each"`, `"shared"` or None, see `views.Rotations`.
        flip: Random left-right mirroring.
        padding: Pixels on each side.
        pad_value: What black is in the images that are given to `fit`.

    Returns:
        `objectives` and `views` for `Distiller`.

    Source: Yang et al. 2021 (arXiv:2107.13715), equation 5, and the authors' code: all weights 1,
    temperature 3, one crop and one mirroring for the four views of an image.
    """
    objectives = [
        HardLabels(labels_weight),
        SoftLabels(temperature, weight=soft_labels_weight, views="all"),
        AuxiliaryTransfer(temperature, weight=auxiliary_weight, diagnostics=diagnostics),
    ]
    views = Rotations(crop, flip=flip, padding=padding, pad_value=pad_value)
    return {"objectives": objectives, "views": views}


def hsakd_online(
    *,
    labels_weight: float = 1.0,
    auxiliary_labels_weight: float = 1.0,
    soft_labels_weight: float = 1.0,
    auxiliary_weight: float = 1.0,
    temperature: float = 3.0,
    diagnostics: bool = True,
    crop: str | None = "shared",
    flip: bool = True,
    padding: int = 4,
    pad_value: float | Sequence[float] = 0,
) -> dict[str, Any]:
    """HSAKD without a teacher: two networks learn from labels and from each other.

    The student is `with_peer(network, other)` of two networks with auxiliary classifiers.

    Args:
        labels_weight: Weight of the cross-entropies of the plain rows.
        auxiliary_labels_weight: Weight of the cross-entropies of the auxiliary classifiers, summed.
        soft_labels_weight: Weight of the divergences between the logits, on all rows.
        auxiliary_weight: Weight of the divergences between the auxiliary classifiers, summed.
        temperature: Temperature of all divergences.
        diagnostics: Whether five accuracies a classifier are shown.
        crop: `"each"`, `"shared"` or None, see `views.Rotations`.
        flip: Random left-right mirroring.
        padding: Pixels on each side.
        pad_value: What black is in the images that are given to `fit`.

    Returns:
        `objectives` and `views` for `Distiller`.

    Source: the online variant in https://github.com/winycg/HSAKD.
    """
    objectives = [
        Mutual(HardLabels(labels_weight)),
        Mutual(AuxiliaryLabels(auxiliary_labels_weight, diagnostics=diagnostics)),
        Mutual(SoftLabels(temperature, weight=soft_labels_weight, views="all")),
        Mutual(AuxiliaryTransfer(temperature, weight=auxiliary_weight, diagnostics=False)),
    ]
    views = Rotations(crop, flip=flip, padding=padding, pad_value=pad_value)
    return {"objectives": objectives, "views": views}
