"""Layers of the library's networks."""

from keras_ssd.layers.batch_normalization import BatchNormalization
from keras_ssd.layers.channels import ChannelShuffle, ChannelSplit
from keras_ssd.layers.frozen_backbone import FrozenBackbone
from keras_ssd.layers.grouped_convolution import GroupedConv2D
from keras_ssd.layers.image_preprocessing import ImagePreprocessing

__all__ = [
    "BatchNormalization",
    "ChannelShuffle",
    "ChannelSplit",
    "FrozenBackbone",
    "GroupedConv2D",
    "ImagePreprocessing",
]
