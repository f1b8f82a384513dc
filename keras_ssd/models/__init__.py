"""The papers' networks, built by name."""

from __future__ import annotations

import dataclasses
import difflib
import operator
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_ssd.layers.structure import inner_layers
from keras_ssd.models import (
    bottleneck_resnet,
    imagenet_resnet,
    mobilenet,
    resnet,
    shufflenet_v1,
    shufflenet_v2,
    vgg,
    wide_resnet,
)
from keras_ssd.models.blocks import Blocks
from keras_ssd.models.fused import fuse_batch_norm
from keras_ssd.models.network import Network
from keras_ssd.models.stages import stage_multipliers

__all__ = ["build", "fuse_batch_norm", "names", "stage_multipliers"]

_NETWORKS: dict[str, Network] = {
    **resnet.NETWORKS,
    **wide_resnet.NETWORKS,
    **vgg.NETWORKS,
    **mobilenet.NETWORKS,
    **shufflenet_v1.NETWORKS,
    **shufflenet_v2.NETWORKS,
    **bottleneck_resnet.NETWORKS,
    **imagenet_resnet.NETWORKS,
}


def names() -> list[str]:
    """The names that `build` knows, in the order of their families."""
    return list(_NETWORKS)


def build(
    name: str,
    info: Any = None,  # duck-typed: `data.load(...).info` or anything with its attributes
    *,
    num_classes: int | None = None,
    input_shape: Sequence[int | None] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    stem_stride: int | None = None,
    synchronized_batch_norm: bool = False,
    dtype: str | keras.dtype_policies.DTypePolicy | None = None,
) -> keras.Model:
    """Build a network of the papers, with fresh weights.

    With `mean` and `std` the network begins with its own normalisation and takes raw images, uint8
    or float, 0 to 255. Without them it takes images that are normalised already.

    Args:
        name: One of `names()`, for example "resnet8x4".
        info: Optional; an object with the attributes `num_classes`, `input_shape`, `mean` and `std`
            for the arguments below that are not given, such as `data.load(...).info`.
        num_classes: Int > 0.
        input_shape: `(height, width, channels)`; height and width may be None. Every network pools
            globally, so any size does from 4 on (`wrn_*` and the CIFAR ResNets of basic blocks),
            32 on (`*_imagenet`) or 8 on (all others).
        mean: Mean of each channel, of pixel values scaled to 0..1.
        std: Standard deviation of each channel, of pixel values scaled to 0..1.
        stem_stride: Of "mobilenet_v2" alone: 2 by default, as CRD and SSKD run it, or 1, as HSAKD
            does, with the same weights.
        synchronized_batch_norm: Whether batch normalisation sees the batch of all replicas (slower)
            instead of that of its own.
        dtype: Dtype policy, for example "mixed_bfloat16"; the global one by default. Normalisation,
            pooling and classifier stay in float32 in every mixed policy.

    Returns:
        A functional `keras.Model` with one output, the logits `(batch, num_classes)` in float32
        (float64 in a float64 network). Layers with weights have the authors' names, the classifier
        is `logits`, the pooled features `embedding`, the ends of the stages `stage_1`, ...

    Raises:
        ValueError: If the name is unknown, the classes or the shape are missing, a value is out of
            range, or `stem_stride` is given for another network.

    Source: the networks of Tian et al. 2020, arXiv:1910.10699 (CRD), as Xu et al. 2020,
    arXiv:2006.07114 (SSKD), and Yang et al. 2021, arXiv:2107.13715 (HSAKD), run them; for ImageNet
    those of torchvision. The code of the three pools most of them over fixed windows (32x32 images
    only) and normalises outside.
    """
    if not isinstance(name, str) or name not in _NETWORKS:
        near = difflib.get_close_matches(str(name), _NETWORKS, n=4, cutoff=0.5) or names()
        raise ValueError(f"No network is called {name!r}. Near names: {', '.join(near)}.")
    network = _with_stem_stride(name, stem_stride)
    num_classes = _checked_classes(_given(num_classes, info, "num_classes"))
    input_shape = _checked_shape(_given(input_shape, info, "input_shape"), network.min_size, name)
    mean, std = _given(mean, info, "mean"), _given(std, info, "std")
    _check_constants(mean, std, channels=input_shape[-1])

    policy = keras.dtype_policies.get(dtype)
    layers = Blocks(policy, network.initialization, synchronized_batch_norm)
    images = layers.images(input_shape)
    normalized = images if mean is None else layers.normalize(images, mean, std)
    model = keras.Model(images, network(layers, normalized, num_classes), name=name)
    model.dtype_policy = policy  # Keras gives a functional model the global one
    return model


def network_of(model: keras.Model) -> Network | None:
    """The network of the papers that `model` was built as; None for any other model.

    It is known by its name, the names of the layers that end its stages and those of its units.
    `stem_stride`, which no auxiliary classifier depends on, is the default one.
    """
    network = _NETWORKS.get(model.name)
    if network is None:
        return None
    names = {layer.name for layer in inner_layers(model)}
    has_units = all(any(n.startswith(f"{unit}.") for n in names) for unit in network.unit_names)
    return network if has_units and names.issuperset(network.stages.values()) else None


def _with_stem_stride(name: str, stem_stride: Any) -> Network:
    network = _NETWORKS[name]
    if stem_stride is None:
        return network
    if not isinstance(network, mobilenet.MobileNetV2):
        raise ValueError(
            f"`stem_stride` is an argument of 'mobilenet_v2' alone: leave it out for {name!r}."
        )
    if (stride := _as_int(stem_stride)) not in (1, 2):
        raise ValueError(
            f"`stem_stride` must be 1, as in HSAKD, or 2, as in CRD and SSKD, got {stem_stride!r}."
        )
    return dataclasses.replace(network, stem_stride=stride)


def _given(value: Any, info: Any, attribute: str) -> Any:
    return getattr(info, attribute, None) if value is None else value


def _checked_classes(num_classes: Any) -> int:
    if num_classes is None:
        raise ValueError("The number of classes is missing: pass `num_classes=` or `info`.")
    if (count := _as_int(num_classes)) is None or count < 1:
        raise ValueError(f"`num_classes` must be an integer of 1 or more, got {num_classes!r}.")
    return count


def _checked_shape(shape: Any, min_size: int, name: str) -> tuple[int | None, int | None, int]:
    if shape is None:
        raise ValueError("The shape of an image is missing: pass `input_shape=` or `info`.")
    if not isinstance(shape, Sequence) or len(shape) != 3:
        raise ValueError(f"`input_shape` must be (height, width, channels), got {shape!r}.")
    height, width, channels = (None if size is None else _as_int(size) or 0 for size in shape)
    if channels is None or channels < 1:
        raise ValueError(f"`input_shape` must end in 1 channel or more, got {tuple(shape)}.")
    if any(size is not None and size < min_size for size in (height, width)):
        raise ValueError(
            f"{name} needs images of {min_size} x {min_size} pixels or more, got {tuple(shape)}: "
            "enlarge them (`keras.layers.Resizing`)."
        )
    return height, width, channels


def _check_constants(mean: Any, std: Any, *, channels: int) -> None:
    if mean is None and std is None:
        return
    if mean is None or std is None:
        raise ValueError("Normalisation needs both `mean` and `std`, or neither; got only one.")
    if np.ndim(mean) != 1 or np.ndim(std) != 1:
        raise ValueError(
            f"`mean` and `std` must be lists, a value a channel, got {mean} and {std}."
        )
    if len(mean) != channels or len(std) != channels:
        raise ValueError(
            f"`mean` and `std` need a value for each of the {channels} channels, "
            f"got {len(mean)} and {len(std)}."
        )
    if not all(0 <= value <= 1 for value in mean) or not all(0 < value <= 1 for value in std):
        raise ValueError(
            "`mean` must lie in 0..1 and `std` above 0 and up to 1, as of pixels divided by 255; "
            f"got {tuple(mean)} and {tuple(std)}."
        )


def _as_int(value: Any) -> int | None:
    try:
        return operator.index(value)
    except TypeError:
        return None
