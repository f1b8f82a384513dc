"""Objectives: a loss bound to named outputs, rows, labels and a weight."""

from keras_ssd.objectives.auxiliary import AuxiliaryLabels, AuxiliaryTransfer
from keras_ssd.objectives.labels import HardLabels
from keras_ssd.objectives.mutual import Mutual
from keras_ssd.objectives.objective import Objective
from keras_ssd.objectives.similarity import ContrastivePretext, SimilarityTransfer
from keras_ssd.objectives.soft_labels import (
    JensenShannon,
    SelectiveSoftLabels,
    SoftCrossEntropy,
    SoftLabels,
    SymmetricSoftLabels,
)

__all__ = [
    "AuxiliaryLabels",
    "AuxiliaryTransfer",
    "ContrastivePretext",
    "HardLabels",
    "JensenShannon",
    "Mutual",
    "Objective",
    "SelectiveSoftLabels",
    "SimilarityTransfer",
    "SoftCrossEntropy",
    "SoftLabels",
    "SymmetricSoftLabels",
]
