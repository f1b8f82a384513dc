"""A network whose classifier alone trains, for images of another size if wanted."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from keras_ssd.arguments import check_height_and_width
from keras_ssd.freezing.calls import Call, Calls, leading_to
from keras_ssd.heads.main_path import replay
from keras_ssd.heads.taps import strip_heads
from keras_ssd.layers.frozen_backbone import FrozenBackbone, FrozenCopy
from keras_ssd.layers.functional import as_functional, network_like, single

_ADVICE = "build it as a functional model"


def with_frozen_backbone(
    model: keras.Model, image_size: tuple[int, int] | None = None
) -> keras.Model:
    """A network like `model` that trains its classifier and nothing else, as in SSLD's "fix" stage.

    Everything up to the input of the classifier goes into a `layers.FrozenBackbone`: copies of the
    weights that nothing trains, always in inference mode (stored batch-norm statistics, no
    dropout). The classifier, the Dense layer that gives the logits (or a convolution in its place,
    as in MobileNetV3), is a new layer with the old one's weights. `model` is left alone.

    Args:
        model: A functional, Sequential or nested Keras model that returns the logits, or a dict
            with `logits`; further heads are left out.
        image_size: Height and width of the images from now on. The layers stay what they are
            (padding, pooling) and run on larger maps; those of `models.build` and others that pool
            globally can. None: those of `model`.

    Returns:
        A functional model with one output, the logits. Without `image_size` they are at first those
        of `model` in inference mode.

    Raises:
        TypeError: If `model` is no Keras model.
        ValueError: If `model` is subclassed or not built, takes several tensors, does not end in
            a classifier, or a layer does not fit the image size.

    Source: SSLD's ResNet50-vd, fine-tuned at 320 x 320 after training at 224 x 224 with everything
    frozen except the fully connected layer; Touvron et al. 2019, arXiv:1906.06423.
    """
    as_functional(model, _ADVICE)
    network = Calls.of(strip_heads(model))
    images = _images(model, network, image_size)
    classifier, *rest = _from_classifier_on(model, network)
    (features,) = classifier.inputs
    leading = leading_to(features, network.calls)
    _check_names(model, leading)
    tensors = _run_again(model, leading, {id(single(network.inputs)): images}, images)
    backbone = keras.Model(images, tensors[id(features)], name=model.name)
    values = {key: held for call in leading for key, held in (call.values or {}).items()}
    frozen = FrozenBackbone(FrozenCopy(backbone, values), name="backbone")(images)

    layer = classifier.layer
    fresh = type(layer).from_config({**layer.get_config(), "trainable": True})
    rest = [dataclasses.replace(classifier, layer=fresh), *rest]
    logits = _run_again(model, rest, {id(features): frozen}, images)[id(network.outputs)]
    for expected, got in ((features, frozen), (network.outputs, logits)):
        if expected.shape[-1] != got.shape[-1]:
            reason = f"what was {expected.shape} would be {got.shape}"
            raise _misfit(model, images, reason)
    fresh.set_weights(classifier.weights())
    return network_like(model, images, logits)


def _images(
    model: keras.Model, network: Calls, image_size: tuple[int, int] | None
) -> keras.KerasTensor:
    """The input of the new network."""
    images = single(network.inputs)
    if not isinstance(images, keras.KerasTensor):
        raise ValueError(
            f"Model {model.name!r} must take one tensor, the images, and takes "
            f"{len(keras.tree.flatten(images))}."
        )
    shape, size = images.shape[1:], check_height_and_width(image_size)
    if size is not None:
        shape = (*size, *shape[2:])
        if len(shape) != 3 or any(_is_channels_first(call.layer) for call in network.calls):
            raise ValueError(
                "`image_size` needs a network of images (height, width, channels), and model "
                f"{model.name!r} takes {images.shape[1:]}, or has layers with "
                "data_format='channels_first'."
            )
    return keras.Input(shape, dtype=images.dtype, name=images.name)


def _is_channels_first(layer: Any) -> bool:
    return getattr(layer, "data_format", None) == "channels_first"


def _from_classifier_on(model: keras.Model, network: Calls) -> list[Call]:
    """The call of the classifier and those behind it, up to the logits."""
    producers = network.producers()
    tensor, calls = network.outputs, []
    while id(tensor) in producers:
        calls.append(network.calls[producers[id(tensor)]])
        layer = calls[-1].layer
        if isinstance(layer, (keras.layers.Dense, keras.layers.Conv2D)):
            return calls[::-1]
        if getattr(layer, "weights", ()) or len(calls[-1].inputs) != 1:
            break
        (tensor,) = calls[-1].inputs
    found = repr(calls[-1].name) if calls else "its input"
    raise ValueError(
        f"Model {model.name!r} must end in a classifier, a Dense layer that gives the logits (or a "
        f"convolution in its place), and ends in {found}."
    )


def _check_names(model: keras.Model, calls: Sequence[Call]) -> None:
    layers = {id(call.layer): call.name for call in calls}
    name, times = collections.Counter(layers.values()).most_common(1)[0] if layers else ("", 0)
    if times > 1:
        raise ValueError(
            f"Model {model.name!r} has {times} layers named {name!r} in the models inside it, and "
            "its frozen backbone is one flat model: give them different names."
        )


def _run_again(
    model: keras.Model,
    calls: Sequence[Call],
    given: Mapping[int, keras.KerasTensor],
    images: keras.KerasTensor,
) -> dict[int, Any]:
    """What the calls give for other tensors."""

    def apply(call: Call, *args: Any, **kwargs: Any) -> Any:
        try:
            return call.layer(*args, **kwargs)
        except Exception as error:  # whatever a user's layer raises
            raise _misfit(model, images, f"its layer {call.name!r} does not fit them") from error

    return replay(calls, given, apply)


def _misfit(model: keras.Model, images: keras.KerasTensor, reason: str) -> ValueError:
    return ValueError(
        f"Model {model.name!r} cannot take images {images.shape[1:]}: {reason}. Leave "
        "`image_size` out, or give a network that pools globally before its classifier."
    )
