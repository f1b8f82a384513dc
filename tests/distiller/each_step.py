"""A tiny Distiller for every preset, and for every objective that no preset has."""

import keras
import numpy as np
from keras import layers
from weights import numbered

import keras_ssd as ssd
from keras_ssd import presets
from keras_ssd.layers import BatchNormalization
from keras_ssd.objectives import (
    AttentionTransfer,
    ClassRelations,
    CompositionalContrastive,
    ContrastivePretext,
    ContrastiveRepresentation,
    CorrelationCongruence,
    DecoupledSoftLabels,
    EmbeddingGraph,
    Hint,
    JensenShannon,
    NoiseContrastive,
    ProbabilisticTransfer,
    RelationalKnowledge,
    SimilarityPreserving,
    SimilarityTransfer,
    SoftCrossEntropy,
)
from keras_ssd.views import Plain, Rotations

IMAGES, CLASSES = 6, 3

ALONE = {  # the objectives that no preset has
    "attention": lambda: AttentionTransfer(
        teacher_outputs=["stage_1"], student_outputs=["stage_1"]
    ),
    "class relations": ClassRelations,
    "decoupled": DecoupledSoftLabels,
    "hint": lambda: Hint(student_output="embedding"),
    "Jensen-Shannon": JensenShannon,
    "soft cross-entropy": SoftCrossEntropy,
    "correlation congruence": CorrelationCongruence,
    "probabilistic transfer": ProbabilisticTransfer,
    "relational knowledge": RelationalKnowledge,
    "similarity preserving": SimilarityPreserving,
    "noise contrastive": NoiseContrastive,
    "compositional contrastive": CompositionalContrastive,
    "mean graph": lambda: EmbeddingGraph(normalization="mean"),
    "graph of a replica": lambda: EmbeddingGraph(scope="local"),
    "contrastive representation": lambda: ContrastiveRepresentation(
        np.arange(24) % CLASSES, negatives=4, width=5, positives="class"
    ),
    "similarity in blocks": lambda: SimilarityTransfer(columns_per_block=4),
    "pretext in blocks": lambda: ContrastivePretext(columns_per_block=4),
}
CASES = [*presets.__all__, *ALONE]


def network(width, outputs, *, seed):
    """8x8 images to the outputs asked for, with weights that tell images apart."""
    images = keras.Input((8, 8, 3), dtype="uint8")
    x = layers.Rescaling(1 / 127.5, -1, dtype=keras.config.floatx())(images)
    stages = []
    for _ in range(2):
        x = layers.Conv2D(width, 3, 2, "same", use_bias=False)(x)
        stages.append(x := layers.ReLU()(BatchNormalization(momentum=0.9)(x)))
    embedding = layers.GlobalAveragePooling2D()(x)
    heads = {
        "embedding": lambda: embedding,
        "stage_1": lambda: stages[0],
        "projection": lambda: layers.Dense(4, name="projection")(embedding),
        "node": lambda: layers.Dense(5, name="node")(embedding),
        "auxiliary_1": lambda: _auxiliary(stages[0], "auxiliary_1"),
        "auxiliary_2": lambda: _auxiliary(stages[1], "auxiliary_2"),
    }
    logits = layers.Dense(CLASSES, name="logits")(embedding)
    model = keras.Model(images, {"logits": logits, **{name: heads[name]() for name in outputs}})
    return numbered(model, seed)


def _auxiliary(features, name):
    return layers.Dense(4 * CLASSES, name=name)(layers.GlobalAveragePooling2D()(features))


def arguments_of(case):
    """Keyword arguments of `Distiller` but for the networks."""
    if case in presets.__all__:
        return getattr(presets, case)(padding=1)
    objective = ALONE[case]()
    views = Rotations(padding=1) if objective.needs_views else Plain(True, flip=True, padding=1)
    return {"objectives": [objective], "views": views}


def outputs_of(case, terms):
    """The heads that the networks of a case have."""
    names = {name for term in terms for name in term.student_outputs}
    if "hsakd" in case or "combined" in case:
        names |= {"auxiliary_1", "auxiliary_2"}
    if case == "ega":
        names |= {"embedding"}
    return sorted(n for n in names if n != "logits" and not n.startswith("peer_"))


def distiller(case, *, momentum=0.9, optimizer=None, **compiled):
    """The compiled Distiller of a case; rate 1, so that the first velocity is the gradient."""
    arguments = arguments_of(case)
    outputs = outputs_of(case, arguments["objectives"])
    student = network(4, outputs, seed=1)
    if case == "hsakd_online":
        student = ssd.with_peer(student, network(5, outputs, seed=2))
    if any(term.teacher_outputs for term in arguments["objectives"]):
        # As wide as the student only where features themselves are compared.
        teacher = network(4 if case in ("hint", "correlation congruence") else 6, outputs, seed=0)
        arguments["teacher"] = teacher
    if case == "ega":
        arguments["teacher"] = ssd.frozen_encoder(teacher, output="embedding")
        arguments["teacher_head"] = ssd.node_embedding_head(6, CLASSES, units=5)
        compiled["teacher_optimizer"] = ssd.optimizers.SGD(1.0, momentum=momentum)
    model = ssd.Distiller(student=student, **arguments)
    model.compile(optimizer or ssd.optimizers.SGD(1.0, momentum=momentum), **compiled)
    return model


def batch(*, weights=True, images=IMAGES):
    """Raw images of a colour each, with their index; labels of which one is unknown; weights."""
    random = np.random.RandomState(0)
    colours = random.uniform(40, 215, (images, 1, 1, 3))
    pixels = np.clip(colours + 40 * random.standard_normal((images, 8, 8, 3)), 0, 255)
    labels = np.arange(images) % CLASSES
    labels[-1] = -1
    x = {"image": pixels.astype("uint8"), "index": np.arange(images)}
    if not weights:
        return x, labels
    return x, labels, np.array([1.0, 0.5, 2.0, 0.0, 1.0, 1.5], "float32")[np.arange(images) % 6]
