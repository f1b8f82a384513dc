"""Presets: each method as keyword arguments of `Distiller`, every number an argument.

`Distiller(teacher=t, student=s, **presets.sskd())` and spelling the objectives out are one thing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keras_ssd.objectives import (
    AuxiliaryLabels,
    AuxiliaryTransfer,
    ContrastivePretext,
    HardLabels,
    Mutual,
    SelectiveSoftLabels,
    SimilarityTransfer,
    SoftLabels,
    SymmetricSoftLabels,
)
from keras_ssd.views import Plain, Rotations


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
