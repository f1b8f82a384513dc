"""The auxiliary classifiers of HSAKD: classes x views, on hierarchical feature maps."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Literal

import keras

from keras_ssd.batch import PEER, auxiliary_names
from keras_ssd.heads.segments import Segments
from keras_ssd.heads.taps import layers_by_path, rebuild
from keras_ssd.layers import BatchNormalization
from keras_ssd.layers.frozen_backbone import FrozenBackbone
from keras_ssd.layers.functional import as_functional, network_like, outputs_of
from keras_ssd.layers.structure import inner_layers, policy_of
from keras_ssd.models import network_of
from keras_ssd.models.blocks import Blocks
from keras_ssd.models.network import Network

_ADVICE = "return a dict such as {'logits': ..., 'auxiliary_1': ...} from its `call` instead"


def with_auxiliary_classifiers(
    model: keras.Model,
    *,
    num_views: int = 4,
    backbone: Literal["trainable", "frozen"] = "trainable",
    taps: Sequence[str] | None = None,
) -> keras.Model:
    """A network with classifiers over classes x views on its feature maps: `auxiliary_1`, ...

    A classifier begins at the last feature map of each spatial size, from shallow to deep, and
    repeats the rest of the network with fresh weights; the last one repeats the layers of the
    smallest size without reducing it. Its logits `(rows, classes * num_views)` are ordered by class
    (column `num_views * c + v` is class c in view v) and float32 under mixed precision, too. The
    gradient of classifier l reaches the layers up to its tap.

    Networks of `models.build` get the classifiers of the papers, with the authors' names and first
    weights. For any other model the layers between tap and pooling are made again from their
    configs; where that cannot be done, the classifier is a small one that is not the paper's (one
    residual block for each further spatial size), and a log line says so.

    Args:
        model: A functional, Sequential or nested Keras model that returns the logits, or a dict of
            named outputs (these are kept).
        num_views: Views of an image, 4 for `views.Rotations`.
        backbone: `"trainable"` shares the layers of `model`, which is trained with the classifiers.
            `"frozen"` puts copies of its variables, never trained and always in inference mode,
            into a `layers.FrozenBackbone`, heads that it has already with it; `model` is left
            alone.
        taps: Layers at whose outputs the classifiers begin, shallow to deep, nested ones as
            `backbone/block_3`; they are then made as for any other model. By default those of the
            papers, or found from the spatial sizes.

    Returns:
        A functional model that returns a dict with `logits`, `auxiliary_1` to `auxiliary_L` and the
        further outputs of `model`. `strip_heads` gives the plain network back.

    Raises:
        TypeError: If `model` is no Keras model.
        ValueError: If `model` is subclassed, not built or has auxiliary classifiers already, an
            argument is out of range, or taps do not exist or cannot be found.

    Source: Yang et al. 2021, arXiv:2107.13715, section 3.1, and the authors' code
    (https://github.com/winycg/HSAKD) for layers and first weights.
    """
    if backbone not in ("trainable", "frozen"):
        raise ValueError(f"`backbone` must be 'trainable' or 'frozen', got {backbone!r}.")
    network = as_functional(model, _ADVICE)
    names = outputs_of(network)
    if auxiliary_names(names):
        raise ValueError(
            f"Model {model.name!r} has auxiliary classifiers already: use it, or `strip_heads` "
            "first."
        )
    if PEER + "logits" in names:
        raise ValueError(
            f"Model {model.name!r} has a peer: give each of the two networks its auxiliary "
            "classifiers before `with_peer`."
        )
    width = names["logits"].shape[-1] * _checked_views(num_views)
    family = _FamilyHeads.of(network) if taps is None else None
    heads: _FamilyHeads | Segments = family or Segments.of(network, taps)
    paths = {f"auxiliary_{head}": path for head, path in enumerate(heads.taps, start=1)}
    rebuilt, tensors = rebuild(network, paths)
    outputs = {**outputs_of(rebuilt), **tensors}
    if backbone == "frozen":
        tapped = network_like(model, rebuilt.input, outputs)
        outputs = FrozenBackbone(tapped, name="backbone")(rebuilt.input)
    auxiliary = {
        name: heads.auxiliary_logits(outputs[name], head, width)
        for head, name in enumerate(paths, start=1)
    }
    return network_like(model, rebuilt.input, {**{n: outputs[n] for n in names}, **auxiliary})


def _checked_views(num_views: int) -> int:
    try:
        views = operator.index(num_views)
    except TypeError:
        views = 0
    if views < 2:
        raise ValueError(f"`num_views` must be an integer of 2 or more, got {num_views!r}.")
    return views


class _FamilyHeads:
    """The classifiers of a network of `models.build`."""

    def __init__(self, family: Network, taps: Sequence[str], layers: Blocks) -> None:
        self.family = family
        self.taps = taps
        self.layers = layers

    @classmethod
    def of(cls, network: keras.Model) -> _FamilyHeads | None:
        """None for a model that `models.build` has not made."""
        family = network_of(network)
        if family is None:
            return None
        layers = dict(layers_by_path(network))
        last = [path.rpartition("/")[2] for path in layers]
        if any(last.count(stage) > 1 for stage in family.stages.values()):
            return None  # two networks of one family
        paths = dict(zip(last, layers, strict=True))
        synchronized = any(
            isinstance(layer, BatchNormalization) and layer.synchronized
            for layer in inner_layers(network)
        )
        taps = [paths[family.stages[unit]] for unit in family.taps]
        blocks = Blocks(policy_of(network), family.auxiliary_initialization, synchronized)
        return cls(family, taps, blocks)

    def auxiliary_logits(self, tap: keras.KerasTensor, head: int, width: int) -> keras.KerasTensor:
        """The joint logits of one classifier on its feature map."""
        return self.family.auxiliary_logits(self.layers, tap, head, width)
