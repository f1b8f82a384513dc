"""Which networks, dtypes and data fit; what becomes of the user's networks."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from keras.distillation import Distiller as PeerDistiller
from keras.distillation import FeatureDistillation, LogitsDistillation

import keras_ssd as ssd
from keras_distillation.networks import (
    BOTH,
    IMAGES,
    TEMPERATURE,
    SameFeatures,
    Table,
    divergence,
    network,
    ours,
    outcome,
    peer,
    step,
    teacher_network,
)
from keras_ssd.objectives import SimilarityTransfer, SoftLabels
from keras_ssd.views import Rotations


def measure() -> list[Table]:
    """What fits."""
    rows = [
        ("feature vectors of 16 and of 8 numbers", *_widths()),
        ("a layer inside a nested backbone", *_nested("backbone/pool", "pool")),
        ("the nested backbone itself", *_nested("backbone", "backbone")),
        ("teacher for 16x16, student for 8x8 images", *_sizes()),
        ("mixed_float16 teacher, float32 student", *_teacher_dtype("mixed_float16")),
        ("mixed_bfloat16 teacher, float32 student", *_teacher_dtype("mixed_bfloat16")),
        *_float16(),
        *_users_networks(),
        ("`compile()` without a loss", *_without_loss()),
        ("`fit(x)` without labels", *_label_free([])),
        ('... with `metrics=["accuracy"]`', *_label_free(["accuracy"])),
    ]
    return [Table("What fits", BOTH, rows)]


def _widths() -> tuple[object, object]:
    networks = {"teacher": teacher_network(features=16), "student": network(features=8)}

    def theirs() -> None:
        names = {"teacher_layer_name": "features_1", "student_layer_name": "features_1"}
        step(peer(FeatureDistillation("cosine_similarity", **names), **networks))

    def mine() -> str:
        taps = {"projection": "features_1"}
        tapped = {part: ssd.named_outputs(each, taps) for part, each in networks.items()}
        step(ours([SimilarityTransfer()], views=Rotations(crop=None), **tapped))
        return "works (`SimilarityTransfer`)"

    return outcome(theirs), outcome(mine)


def _on_backbone(width: int, seed: int) -> keras.Model:
    backbone = network(width, seed=seed)
    backbone = keras.Model(backbone.input, backbone.get_layer("pool").output, name="backbone")
    images = keras.Input((8, 8, 3))
    x = layers.Dense(8, name="neck")(backbone(images))
    return keras.Model(images, layers.Dense(3, name="head")(x))


def _nested(path: str, peers_name: str) -> tuple[object, object]:
    """Both networks of one width, so that the name is all that may fail."""
    networks = _on_backbone(4, 1), _on_backbone(4, 0)

    def theirs() -> None:
        names = {"teacher_layer_name": peers_name, "student_layer_name": peers_name}
        step(peer(FeatureDistillation("mse", **names), teacher=networks[0], student=networks[1]))

    def mine() -> None:
        teacher, student = (ssd.named_outputs(each, {"tap": path}) for each in networks)
        model = ssd.Distiller(teacher, student, [SoftLabels(), SameFeatures("tap")])
        model.compile("sgd")
        step(model)

    return outcome(theirs), outcome(mine)


def _sizes() -> tuple[object, object]:
    teacher = teacher_network(size=16)
    resized = {"teacher_preprocessing": layers.Resizing(16, 16)}
    return (
        outcome(lambda: step(peer(teacher=teacher)) and None),
        outcome(lambda: step(ours(teacher=teacher, **resized)) and None),
    )


def _teacher_dtype(dtype: str) -> list[object]:
    makers = peer, ours
    return [
        outcome(lambda make=make: step(make(teacher=teacher_network(dtype=dtype))) and None)
        for make in makers
    ]


def _float16() -> list[tuple[object, ...]]:
    """Networks whose logits are float16, or computed in it; three steps."""

    def losses_of(model: keras.Model) -> list[float]:
        return [step(model)["loss"] for _ in range(3)]

    def both(dtype: str) -> dict[str, keras.Model]:
        return {"teacher": teacher_network(dtype=dtype), "student": network(dtype=dtype)}

    half = "mixed_float16"
    default = LogitsDistillation(TEMPERATURE)
    far = np.full((1, 4), 300, "float16"), np.zeros((1, 4), "float16")
    mean_square = FeatureDistillation("mse").compute_loss(*far)
    ours_of_far = ssd.losses.kl_divergence(
        tf.constant([[300, -300]], "float16"), tf.constant([[-300, 300]], "float16")
    )
    return [
        (
            "mixed_float16, loss of the first three steps: default",
            losses_of(peer(default, **both(half))),
            losses_of(ours(**both(half))),
        ),
        ("... with `KLDivergence()`", losses_of(peer(**both(half))), "as above"),
        (
            'float16 feature maps that differ by 300, `"mse"`; float16 logits, `kl_divergence`',
            mean_square,
            ours_of_far[0],
        ),
    ]


def _users_networks() -> list[tuple[object, ...]]:
    def flag(make: Any) -> str:
        teacher = teacher_network()
        make(teacher=teacher)
        return f"True before, {teacher.trainable} after"

    def shared(make: Any) -> str:
        images = keras.Input((8, 8, 3))
        x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(layers.Rescaling(1 / 128)(images)))
        teacher = keras.Model(images, layers.Dense(3)(layers.Dense(16)(x)))
        student = keras.Model(images, layers.Dense(3)(x))
        before = len(student.trainable_weights)
        make(teacher=teacher, student=student)
        return f"{before} before, {len(student.trainable_weights)} after"

    return [
        ("`teacher.trainable`", *map(flag, (peer, ours))),
        (
            "trainable weights of a student that shares a convolution with its teacher",
            *map(shared, (peer, ours)),
        ),
    ]


def _without_loss() -> tuple[object, object]:
    theirs = PeerDistiller(teacher_network(), network(), divergence(), student_loss_weight=0.0)
    mine = ssd.Distiller(teacher_network(), network(), [SoftLabels()])
    return outcome(lambda: theirs.compile("sgd")), outcome(lambda: mine.compile("sgd"))


def _label_free(metrics: list[str]) -> tuple[object, object]:
    """`keras.distillation` is given a loss that nothing reads."""
    compiled = {"compiled": {"metrics": metrics}}
    theirs = peer(divergence(), student_loss_weight=0.0, **compiled)
    mine = ours([SoftLabels()], **compiled)

    def fitted(model: keras.Model) -> None:
        model.fit(IMAGES, batch_size=12, verbose=0)

    return outcome(lambda: fitted(theirs)), outcome(lambda: fitted(mine))
