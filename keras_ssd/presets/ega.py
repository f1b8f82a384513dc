"""EGA: the embedding graph of a self-supervised teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keras_ssd.objectives import EmbeddingGraph, HardLabels
from keras_ssd.views import Plain


def ega(
    *,
    labels_weight: float = 1.0,
    node_weight: float = 0.8,
    edge_weight: float = 0.24,
    train_teacher_head: bool = True,
    shared_view: bool = False,
    crop: bool = True,
    flip: bool = True,
    padding: int = 4,
    pad_value: float | Sequence[float] = 0,
) -> dict[str, Any]:
    """EGA: labels, and the graph of a self-supervised teacher's embeddings of the batch.

    The student is `with_node_embedding(model)`, and `teacher_head=node_embedding_head(...)` makes
    the teacher's nodes. The head learns from its own cross-entropy while the student learns; its
    optimizer is `compile(teacher_optimizer=optimizers.SGD(0.01, momentum=0.9, weight_decay=5e-4))`.

    Args:
        labels_weight: Weight of the student's cross-entropy.
        node_weight: Weight of the node term.
        edge_weight: Weight of the edge term.
        train_teacher_head: False for a head that was trained before, or is not trained at all.
        shared_view: Whether the teacher sees the student's crop and flip, and not its own.
        crop: Random crops of the padded image.
        flip: Random left-right mirroring.
        padding: Pixels on each side.
        pad_value: What black is in the images that are given to `fit`.

    Returns:
        `objectives`, `views`, `teacher_views` and `teacher_objectives` for `Distiller`.

    Source: Ma et al. 2022 (arXiv:2211.13264), equations 7 and 8; the numbers are those of the
    authors' training program (0.8 and 0.24, so 0.8 outside and 0.3 inside in the paper's notation).
    There teacher and student draw their crops independently, and the gradient that the graph sends
    into the head is cleared, so that the head learns from labels alone.
    """
    augmentation: dict[str, Any] = {
        "crop": crop,
        "flip": flip,
        "padding": padding,
        "pad_value": pad_value,
    }
    return {
        "objectives": [
            HardLabels(labels_weight),
            EmbeddingGraph(node_weight, edge_weight),
        ],
        "views": Plain(**augmentation),
        "teacher_views": None if shared_view else Plain(**augmentation),
        "teacher_objectives": [HardLabels()] if train_teacher_head else [],
    }
