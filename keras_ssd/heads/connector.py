"""A trainable connector: from features of a student to the shape of a teacher's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import keras

from keras_ssd.arguments import is_integer
from keras_ssd.heads.linear import linear
from keras_ssd.heads.taps import rebuild
from keras_ssd.layers import BatchNormalization
from keras_ssd.layers.functional import as_functional, network_like, outputs_of
from keras_ssd.layers.structure import inner_layers, policy_of
from keras_ssd.models.initializers import uniform

_ADVICE = "return a dict such as {'logits': ..., 'connector': ...} from its `call` instead"


def with_connector(
    model: keras.Model,
    output: str,
    like: Sequence[int] | keras.KerasTensor,
    *,
    name: str = "connector",
) -> keras.Model:
    """A network with a trainable head from its features to the shape of a teacher's features.

    A vector becomes a vector by one linear Dense layer. A map becomes a map by a convolution, batch
    normalisation and ReLU, the regressor of FitNets: a 3x3 convolution of stride 2 where the map is
    twice as high and wide as `like`, a transposed 4x4 convolution of stride 2 where it is half as
    high and wide, else a convolution without padding of kernel 1 + the difference of the sizes.
    Kernels and biases start uniform on +-1 / sqrt(fan in). The head is trained, saved and loaded
    with the network, and `strip_heads` and `export_student` leave it out. Under mixed precision its
    output is float32 all the same.

    Args:
        model: A functional, Sequential or nested Keras model that returns the logits, or a dict of
            named outputs (these are kept).
        output: What the head takes: the name of an output or of a layer, nested ones as
            `backbone/block_3`; `(rows, width)` or `(rows, height, width, channels)`.
        like: The shape to reach, without the batch axis, `(width,)` or
            `(height, width, channels)`; or a tensor of that shape with the batch axis, such as
            `teacher.output["embedding"]`.
        name: Name of the new output. The head's layers are named `<name>.dense`, or
            `<name>.convolution`, `<name>.batch_norm` and `<name>.relu`.

    Returns:
        A functional model that returns a dict with `logits`, `name` `(rows, *like)` and the further
        outputs of `model`.

    Raises:
        TypeError: If `model` is no Keras model.
        ValueError: If `model` is subclassed or not built, has an output `name` already or no output
            or layer `output`, or no such head leads from the one shape to the other.

    Source: Romero et al. 2015, arXiv:1412.6550, section 2.1; layers and first weights as in the
    code of CRD, where a fan in of a transposed convolution is PyTorch's, 16 * channels out.
    """
    network = as_functional(model, _ADVICE)
    outputs = outputs_of(network)
    if name in outputs:
        raise ValueError(
            f"Model {model.name!r} has an output named {name!r} already: give the connector "
            "another name."
        )
    inputs = network.input
    if output in outputs:
        features = outputs[output]
    else:
        rebuilt, tensors = rebuild(network, {name: output})
        inputs, outputs, features = rebuilt.input, outputs_of(rebuilt), tensors[name]
    connected = _Connector(network, name).connect(features, _shape_of(like))
    return network_like(model, inputs, {**outputs, name: connected})


def _shape_of(like: Sequence[int] | keras.KerasTensor) -> tuple[int, ...]:
    given = like.shape[1:] if hasattr(like, "shape") else like
    shape = tuple(given) if isinstance(given, Iterable) else ()
    whole = all(is_integer(size) and size > 0 for size in shape)
    if len(shape) not in (1, 3) or not whole:
        raise ValueError(
            "`like` must be the shape of a vector, (width,), or of a map, (height, width, "
            f"channels), without the batch axis and with known sizes, got {given!r}."
        )
    return tuple(int(size) for size in shape)


class _Connector:
    """Makes the layers of one head on a network."""

    def __init__(self, network: keras.Model, name: str) -> None:
        self.name = name
        self.policy = policy_of(network)
        self.wide = "float64" if self.policy.name == "float64" else "float32"
        self.synchronized = any(
            isinstance(layer, keras.layers.BatchNormalization) and layer.synchronized
            for layer in inner_layers(network)
        )

    def connect(self, features: keras.KerasTensor, shape: tuple[int, ...]) -> keras.KerasTensor:
        """The output of the head, of one shape a row."""
        found = tuple(features.shape[1:])
        if len(found) != len(shape) or None in found:
            raise ValueError(
                f"Connector {self.name!r} leads from a vector to a vector or from a map to a map "
                f"of known size, not from {found} to {shape}: name another output, or another "
                "shape to reach."
            )
        if len(shape) == 1:
            return linear(features, shape[0], f"{self.name}.dense", self.wide)
        x = self._convolution(features, shape)
        x = BatchNormalization(
            momentum=0.9,
            epsilon=1e-5,
            synchronized=self.synchronized,
            dtype=self.policy,
            name=f"{self.name}.batch_norm",
        )(x)
        return keras.layers.ReLU(dtype=self.wide, name=f"{self.name}.relu")(x)

    def _convolution(self, x: keras.KerasTensor, shape: tuple[int, ...]) -> keras.KerasTensor:
        sizes, wanted = tuple(x.shape[1:3]), shape[:2]
        channels, filters = x.shape[-1], shape[-1]
        options = {"dtype": self.policy, "name": f"{self.name}.convolution"}
        if sizes == tuple(2 * size for size in wanted):
            x = keras.layers.ZeroPadding2D(dtype=self.policy, name=f"{self.name}.padding")(x)
            options |= _uniform(fan_in=9 * channels)
            return keras.layers.Conv2D(filters, 3, strides=2, **options)(x)
        if tuple(2 * size for size in sizes) == wanted:
            options |= _uniform(fan_in=16 * filters)
            layer = keras.layers.Conv2DTranspose(filters, 4, strides=2, padding="same", **options)
            return layer(x)
        kernel = tuple(1 + size - reached for size, reached in zip(sizes, wanted, strict=True))
        if min(kernel) < 1:
            raise ValueError(
                f"Connector {self.name!r} cannot lead from a map of {sizes[0]}x{sizes[1]} to one "
                f"of {wanted[0]}x{wanted[1]}: a map may be shrunk, or doubled in both axes; name "
                "another pair of maps."
            )
        options |= _uniform(fan_in=math.prod(kernel) * channels)
        return keras.layers.Conv2D(filters, kernel, **options)(x)


def _uniform(fan_in: int) -> dict[str, keras.initializers.Initializer]:
    """How kernel and bias of a convolution start."""
    return {"kernel_initializer": uniform(fan_in), "bias_initializer": uniform(fan_in)}
