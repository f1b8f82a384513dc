"""How a frozen network is made cheap: opened into calls, batch norm folded, precision lowered."""

from keras_ssd.freezing.batch_statistics import BatchStatisticsNetwork
from keras_ssd.freezing.inference import InferenceNetwork
from keras_ssd.freezing.precision import HALVES, warn_if_slower

__all__ = ["HALVES", "BatchStatisticsNetwork", "InferenceNetwork", "warn_if_slower"]
