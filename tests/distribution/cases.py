"""What is trained for five steps on every configuration of replicas and workers."""

import dataclasses
import tempfile
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from data import stored_teacher
from distiller.one_and_two import examples

import keras_ssd as ssd
from keras_ssd import objectives, presets
from keras_ssd.views import Plain, Rotations

from .networks import CLASSES, NODES, network, teacher_head

STEPS, BATCH = 5, 10
# 10 images are 3, 3, 2 and 2 on four replicas; 7 are left for the last step: one of four gets none.
IMAGES, LABELS = examples(47)
PLACES = np.arange(47)[::-1].astype("int32")


def sgd(**options):
    return ssd.optimizers.SGD(0.05, momentum=0.9, weight_decay=5e-4, **options)


def labeled():
    return IMAGES, LABELS


def unlabeled():
    return (IMAGES,)


def weighted():
    """Images with their places; labels of which some are missing; weights of which some are 0."""
    random = np.random.RandomState(5)
    labels = np.where(random.rand(47) < 0.2, -1, LABELS)
    weights = random.uniform(0.5, 2, 47) * (random.rand(47) > 0.2)
    return {"image": IMAGES, "index": PLACES}, labels, weights


def one_hot():
    return IMAGES, np.eye(CLASSES, dtype="float32")[LABELS]


def stored():
    """What a teacher gave for the unaugmented images, so that no teacher runs."""
    logits = np.random.RandomState(6).standard_normal((47, CLASSES))
    return {"image": IMAGES, "teacher": {"logits": logits}}, LABELS


def cached():
    """Stored outputs of augmentations that are drawn again, in the order of a seed."""
    images = stored_teacher.splits(count=STEPS * BATCH, batch_size=BATCH)
    with tempfile.TemporaryDirectory() as folder:  # files that are mapped outlive their names
        views = SSKD()["views"]
        return stored_teacher.cached(folder, data=images, views=views, augmentations=3).train


def even():
    """The last step has as many images as all others, so that no replica is without any."""
    order = np.arange(STEPS * BATCH) % 47
    return IMAGES[order], LABELS[order]


def one_image_left():
    return IMAGES[:41], LABELS[:41]


def one_image():
    return IMAGES[:1], LABELS[:1]


@dataclasses.dataclass(frozen=True)
class Case:
    """A Distiller to be made, and its data.

    `terms` gives all arguments of `Distiller` but the networks.
    """

    terms: Callable[[], dict[str, Any]]
    floats: str = "float64"
    data: Callable[[], tuple | tf.data.Dataset] = labeled
    optimizer: Callable[[], keras.optimizers.Optimizer] = sgd
    batch_norm: str | None = None
    extra: Callable[[], keras.layers.Layer] | None = None
    compiled: Callable[[], dict[str, Any]] = dict
    evaluates: bool = False

    def dataset(self):
        data = self.data()
        if isinstance(data, tf.data.Dataset):
            return data
        return tf.data.Dataset.from_tensor_slices(data).batch(BATCH)

    def distiller(self):
        """The compiled Distiller; its variables belong to the strategy whose scope is open."""
        arguments = self.terms()
        terms = arguments["objectives"]
        heads = _heads(terms)
        extra = None if self.extra is None else self.extra()
        student = network(heads, width=4, seed=1, batch_norm=self.batch_norm, extra=extra)
        if any(name.startswith("peer_") for term in terms for name in term.student_outputs):
            peer = network(heads, width=5, seed=2, batch_norm=self.batch_norm)
            student = ssd.with_peer(student, peer)
        has_head = "teacher_objectives" in arguments
        if any(term.teacher_outputs for term in terms) and self.data not in (stored, cached):
            arguments["teacher"] = _encoder() if has_head else _teacher(heads)
        compiled = self.compiled()
        if has_head:
            arguments["teacher_head"] = teacher_head()
            trained = any(term.trains_teacher_head for term in terms)
            if trained or arguments["teacher_objectives"]:
                compiled["teacher_optimizer"] = sgd()
        model = ssd.Distiller(student=student, **arguments)
        model.compile(self.optimizer(), **compiled)
        return model


def _teacher(heads):
    names = ["embedding" if name == "connector" else name for name in heads]
    return network(names, width=8, seed=0)


def _encoder():
    """A teacher without a classifier."""
    whole = _teacher(["embedding"])
    return keras.Model(whole.input, {"embedding": whole.output["embedding"]})


def _heads(terms):
    """The outputs that the student needs beside its logits."""
    names = {name.removeprefix("peer_") for term in terms for name in term.student_outputs}
    if "auxiliary_1" in names:
        names.add("auxiliary_2")
    return sorted(names - {"logits"})


def alone(make):
    """One objective and its views, as `terms` of a case."""

    def terms():
        objective = make()
        return together(objective)

    return terms


def together(*terms, **more):
    views = any(term.needs_views for term in terms)
    made = Rotations(padding=1) if views else Plain(True, flip=True, padding=1)
    return {"objectives": list(terms), "views": made, **more}


OBJECTIVES = {  # by the name of the class: away from the defaults
    "AttentionTransfer": lambda: objectives.AttentionTransfer(
        10.0, teacher_outputs=["map"], student_outputs=["map"]
    ),
    "AuxiliaryLabels": lambda: objectives.AuxiliaryLabels(diagnostics=False),
    "AuxiliaryTransfer": lambda: objectives.AuxiliaryTransfer(diagnostics=False),
    "ClassRelations": lambda: objectives.ClassRelations(2.0),
    "CompositionalContrastive": objectives.CompositionalContrastive,
    "ContrastivePretext": objectives.ContrastivePretext,
    "ContrastiveRepresentation": lambda: memory("self"),
    "CorrelationCongruence": lambda: objectives.CorrelationCongruence(0.5),
    "DecoupledSoftLabels": lambda: objectives.DecoupledSoftLabels(other_weight=2.0),
    "EmbeddingGraph": lambda: objectives.EmbeddingGraph(normalization="mean"),
    "HardLabels": lambda: objectives.HardLabels(label_smoothing=0.1),
    "Hint": lambda: objectives.Hint(1.0),
    "JensenShannon": lambda: objectives.JensenShannon(4.0),
    "Mutual": lambda: objectives.Mutual(objectives.SelectiveSoftLabels(keep_wrong=0.5)),
    "NoiseContrastive": objectives.NoiseContrastive,
    "ProbabilisticTransfer": lambda: objectives.ProbabilisticTransfer(300.0),
    "RelationalKnowledge": lambda: objectives.RelationalKnowledge(2.0, 4.0),
    "SelectiveSoftLabels": lambda: objectives.SelectiveSoftLabels(keep_wrong=0.5),
    "SimilarityPreserving": lambda: objectives.SimilarityPreserving(30.0),
    "SimilarityTransfer": lambda: objectives.SimilarityTransfer(weight=10.0),
    "SoftCrossEntropy": objectives.SoftCrossEntropy,
    "SoftLabels": objectives.SoftLabels,
    "SymmetricSoftLabels": objectives.SymmetricSoftLabels,
}


def memory(positives):
    labels = np.empty(47, "int32")
    labels[PLACES] = LABELS
    return objectives.ContrastiveRepresentation(
        labels, negatives=5, width=NODES, positives=positives
    )


def preset(name, **options):
    """A preset with views for images of 8 pixels, as `terms` of a case."""
    return lambda: getattr(presets, name)(padding=1, **options)


def both_heads_learn():
    """CRD and CC send gradients into a head of either side, beside the labels of EGA's head."""
    congruence = objectives.CorrelationCongruence(0.5, teacher_output="node", student_output="node")
    terms = objectives.HardLabels(), memory("class"), congruence
    return together(*terms, teacher_objectives=[objectives.HardLabels()])


def many(needs_views):
    """All objectives of the table that read transformed views, or all that do not, as one loss."""
    made = [make() for name, make in OBJECTIVES.items() if name != "Mutual"]
    return together(*(term for term in made if term.needs_views == needs_views))


class MeanSquare(keras.layers.Layer):
    """Adds a loss that is a mean over rows."""

    def call(self, x):
        self.add_loss(0.1 * keras.ops.mean(keras.ops.square(x)))
        return x


def every_option():
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    measured = keras.metrics.SparseCategoricalCrossentropy(from_logits=True, name="ce")
    return {"loss": cross_entropy, "metrics": ["accuracy"], "weighted_metrics": [measured]}


def scaled():
    return keras.optimizers.LossScaleOptimizer(sgd(global_clipnorm=0.5), initial_scale=1024.0)


def averaged():
    return keras.optimizers.Adam(1e-2, use_ema=True, ema_momentum=0.9)


# Accuracies of auxiliary classifiers cost more than all the rest: those of one preset are shown.
QUIET = ("combined", "combined_teacher", "hsakd_online", "hsakd_teacher")
PRESETS = {
    name: preset(name, **({"diagnostics": False} if name in QUIET else {}))
    for name in presets.__all__
}
SSKD, KD, COMBINED = PRESETS["sskd"], PRESETS["kd"], PRESETS["combined"]
OTHERS = {
    # Terms together.
    "SSKD and EGA's graph": Case(
        lambda: {**SSKD(), "objectives": [*SSKD()["objectives"], objectives.EmbeddingGraph()]}
    ),
    "CRD, CC and a teacher's head": Case(both_heads_learn, data=weighted),
    "every option": Case(
        KD, data=weighted, extra=MeanSquare, compiled=every_option, evaluates=True
    ),
    # Optimizers: limits that act.
    "clipnorm": Case(KD, optimizer=lambda: sgd(clipnorm=0.01)),
    "global_clipnorm, scaled": Case(
        SSKD, optimizer=lambda: sgd(global_clipnorm=0.02, loss_scale_factor=1024.0)
    ),
    "clipvalue": Case(KD, optimizer=lambda: sgd(clipvalue=1e-3)),
    "EMA": Case(KD, optimizer=averaged),
    # Data.
    "no labels": Case(PRESETS["ssld"], data=unlabeled),
    "one-hot labels": Case(KD, data=one_hot),
    "stored outputs": Case(preset("kd", crop=False, flip=False), data=stored),
    "cached teacher, float32": Case(SSKD, "float32", data=cached),  # as it is stored
    "one image is left": Case(SSKD, data=one_image_left),
    # Convolutions and batch normalisation of the global batch.
    "combined, synchronized": Case(COMBINED, batch_norm="synchronized", data=weighted),
    "SSKD, synchronized, float32": Case(SSKD, "float32", batch_norm="synchronized", data=even),
    # Other precisions: the value of every term, and the weights that all of them together give.
    "objectives of plain rows, float32": Case(lambda: many(False), "float32", data=weighted),
    "objectives of all views, float32": Case(lambda: many(True), "float32", data=weighted),
    "EGA, float32": Case(PRESETS["ega"], "float32"),
    "HSAKD online, float32": Case(PRESETS["hsakd_online"], "float32"),
    "SSKD, bfloat16": Case(SSKD, "mixed_bfloat16"),
    "SSKD, float16, scaled": Case(SSKD, "mixed_float16", optimizer=scaled),
}
CASES = {
    **{name: Case(make) for name, make in PRESETS.items()},
    **{name: Case(alone(make), data=weighted) for name, make in OBJECTIVES.items()},
    **OTHERS,
}
# Runs last: workers cannot go on after a step that has failed.
REFUSED = {"an empty shard, statistics of each replica": Case(KD, data=one_image, batch_norm="own")}
