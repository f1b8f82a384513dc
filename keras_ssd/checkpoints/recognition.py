"""Which network of the papers a checkpoint is of."""

from __future__ import annotations

from collections.abc import Mapping

import keras

from keras_ssd import models
from keras_ssd.checkpoints.places import places

SIZES = {  # how many arrays a network has, and how many features its classifier takes
    "resnet8": (47, 64),
    "resnet14": (77, 64),
    "resnet20": (107, 64),
    "resnet32": (167, 64),
    "resnet44": (227, 64),
    "resnet56": (287, 64),
    "resnet110": (557, 64),
    "resnet8x4": (52, 256),
    "resnet32x4": (172, 256),
    "resnet14x05": (77, 32),
    "resnet20x05": (107, 32),
    "resnet20x0375": (107, 24),
    "wrn_16_1": (69, 64),
    "wrn_16_2": (70, 128),
    "wrn_40_1": (189, 64),
    "wrn_40_2": (190, 128),
    "vgg8": (32, 512),
    "vgg11": (50, 512),
    "vgg13": (62, 512),
    "vgg16": (80, 512),
    "vgg19": (98, 512),
    "mobilenet_v2": (267, 1280),
    "shufflenet_v1": (247, 960),
    "shufflenet_v2": (282, 1024),
    "resnet50": (267, 2048),
    "resnet18_imagenet": (102, 512),
    "resnet34_imagenet": (182, 512),
    "resnet50_imagenet": (267, 2048),
}


def recognized(
    arrays: Mapping[str, tuple[int, ...]], channels: int
) -> tuple[str, int] | tuple[None, None]:
    """The name of the network that arrays of these names and shapes belong to, and its classes.

    Args:
        arrays: From the name to the shape of an array, both as in PyTorch, without those of heads.
        channels: Int > 0, channels of an image.

    Returns:
        Two times None if they belong to none of `models.names()`.
    """
    classes, width = next((shape for shape in arrays.values() if len(shape) == 2), (0, 0))
    for name, size in SIZES.items():
        if size == (len(arrays), width) and arrays == _shapes(name, classes, channels):
            return name, classes
    return None, None


def _shapes(name: str, num_classes: int, channels: int) -> dict[str, tuple[int, ...]]:
    # Without values the largest network takes some tenths of a second.
    with keras.StatelessScope(initialize_variables=False):
        model = models.build(name, num_classes=num_classes, input_shape=(None, None, channels))
    return {array: place.shape for array, place in places(model).items()}
