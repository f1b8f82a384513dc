"""Objectives: a loss bound to named outputs, rows, labels and a weight."""

from keras_ssd.objectives.auxiliary import (
    AuxiliaryLabels,
    AuxiliaryTransfer,
)
from keras_ssd.objectives.contrastive import (
    CompositionalContrastive,
    NoiseContrastive,
)
from keras_ssd.objectives.contrastive_representation import (
    ContrastiveRepresentation,
)
from keras_ssd.objectives.decoupled import (
    ClassRelations,
    DecoupledSoftLabels,
)
from keras_ssd.objectives.features import (
    AttentionTransfer,
    Hint,
)
from keras_ssd.objectives.graph import (
    EmbeddingGraph,
)
from keras_ssd.objectives.labels import (
    HardLabels,
)
from keras_ssd.objectives.mutual import (
    Mutual,
)
from keras_ssd.objectives.objective import (
    Objective,
)
from keras_ssd.objectives.relational import (
    CorrelationCongruence,
    ProbabilisticTransfer,
    RelationalKnowledge,
    SimilarityPreserving,
)
from keras_ssd.objectives.similarity import (
    ContrastivePretext,
    SimilarityTransfer,
)
from keras_ssd.objectives.soft_labels import (
    JensenShannon,
    SelectiveSoftLabels,
    SoftCrossEntropy,
    SoftLabels,
    SymmetricSoftLabels,
)

__all__ = [
    "AttentionTransfer",
    "AuxiliaryLabels",
    "AuxiliaryTransfer",
    "ClassRelations",
    "CompositionalContrastive",
    "ContrastivePretext",
    "ContrastiveRepresentation",
    "CorrelationCongruence",
    "DecoupledSoftLabels",
    "EmbeddingGraph",
    "HardLabels",
    "Hint",
    "JensenShannon",
    "Mutual",
    "NoiseContrastive",
    "Objective",
    "ProbabilisticTransfer",
    "RelationalKnowledge",
    "SelectiveSoftLabels",
    "SimilarityPreserving",
    "SimilarityTransfer",
    "SoftCrossEntropy",
    "SoftLabels",
    "SymmetricSoftLabels",
]
