"""Stochastic gradient descent as the papers ran it."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_ssd.arguments import check_not_negative
from keras_ssd.schedules import rate_dtype


@keras.saving.register_keras_serializable(package="keras_ssd")
class SGD(keras.optimizers.Optimizer):
    """SGD with momentum and L2 weight decay, the recurrence that the papers' numbers stand on.

    For a weight `w` with gradient `g`, velocity `v` (0 at the start) and rate `lr`:

        d = g + weight_decay * w
        v = momentum * v + d
        w = w - lr * (d + momentum * v if nesterov else v)

    `keras.optimizers.SGD` differs twice: its velocity contains the rate, so that after a drop of
    the rate old gradients keep acting at the old one; and its `weight_decay` shrinks the weights
    directly, without going through the velocity.

    The rate is held in float64 (float32 on TPUs), so that float64 weights see it exactly.

    Args:
        learning_rate: Finite number >= 0 (0 leaves every weight bit for bit as it is), a
            `LearningRateSchedule` such as those of `keras_ssd.schedules`, or a function without
            arguments.
        momentum: Number in 0..1.
        weight_decay: Finite number >= 0. Acts on **every** trainable weight, biases and batch
            normalisation included, except those named to `exclude_from_weight_decay` and what
            `decay_batch_norm` exempts; after clipping.
        nesterov: Whether the step looks ahead along the velocity. Needs `momentum`.
        decay_batch_norm: False exempts scale and shift of normalisation layers from the decay. They
            are known by their name, the last part of their path: `gamma` or `beta`, as in Keras'
            batch, layer and group normalisation (and in the layer scale of ConvNeXt).
        learning_rate_multipliers: From the path of a weight (`variable.path`) to a finite factor
            >= 0 of its rate; weights that are not named have 1. At 0 a weight stays bit for bit as
            it is, whatever decay, momentum and averages (`use_ema`) say; its velocity rests.
            `models.stage_multipliers` gives such a mapping.
        **options: Whatever else `keras.optimizers.Optimizer` takes: `clipnorm`, `clipvalue`,
            `global_clipnorm`, `use_ema`, `ema_momentum`, `ema_overwrite_frequency`,
            `loss_scale_factor`, `gradient_accumulation_steps`, `name`.

    Raises:
        TypeError: If `learning_rate_multipliers` is no mapping.
        ValueError: If an argument is out of its range or unknown; when the optimizer is built, if a
            path in `learning_rate_multipliers` is that of none of its weights, or of several.

    Source: `torch.optim.SGD` (dampening 0), which SSKD, CRD and HSAKD use with momentum 0.9 and
    weight decay 5e-4 (Xu et al. 2020, arXiv:2006.07114). A weight without gradient is skipped,
    a gradient of zeros still decays its weight: as there. In SSLD's programs the files of
    MobileNetV3, GhostNet, PPLCNet and PPHGNet exempt batch normalisation, those of ResNet do not.
    """

    def __init__(
        self,
        learning_rate: float | LearningRateSchedule | Callable[[], Any],
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        decay_batch_norm: bool = True,
        learning_rate_multipliers: Mapping[str, float] | None = None,
        **options: Any,  # Keras' own, checked by Keras
    ) -> None:
        check_not_negative("momentum", momentum)
        check_not_negative("weight_decay", weight_decay)
        if momentum > 1:
            raise ValueError(f"`momentum` must lie in 0..1, got {momentum}.")
        if nesterov and momentum == 0:
            raise ValueError("`nesterov=True` needs a `momentum` > 0: set both or neither.")
        if not isinstance(decay_batch_norm, bool):
            raise ValueError(f"`decay_batch_norm` must be True or False, got {decay_batch_norm!r}.")
        multipliers = _checked_multipliers(learning_rate_multipliers)
        is_constant = not callable(learning_rate)
        if is_constant:
            check_not_negative("learning_rate", learning_rate)
        # Keras would hold a constant in its default float type, float32: a function makes it wait.
        rate = (lambda: learning_rate) if is_constant else learning_rate
        super().__init__(rate, weight_decay=float(weight_decay), **options)
        self.momentum = float(momentum)
        self.nesterov = bool(nesterov)
        self.decay_batch_norm = decay_batch_norm
        self.learning_rate_multipliers = multipliers
        self._paths: tuple[str, ...] = ()  # of the weights; of a loaded optimizer, when saved
        if is_constant:
            self._learning_rate = self.add_variable(
                (),
                initializer=lambda shape, dtype: tf.fill(shape, tf.constant(learning_rate, dtype)),
                dtype=rate_dtype(),
                aggregation="only_first_replica",
                name="learning_rate",
            )

    def build(self, variables: list[keras.Variable]) -> None:
        """Creates one velocity a weight; none without momentum."""
        if self.built:
            return
        self._paths = _paths_of(variables, self._paths)
        _check_paths(self.learning_rate_multipliers, self._paths)
        self._multipliers = tuple(self.learning_rate_multipliers.get(p, 1.0) for p in self._paths)
        self._decays = tuple(
            self.decay_batch_norm or _last_part(path) not in ("gamma", "beta")
            for path in self._paths
        )
        super().build(variables)
        if self.momentum:
            self._velocities = self.add_optimizer_variables(variables, "velocity")

    def update_step(
        self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor
    ) -> None:
        """Moves one weight by one step."""
        index = self._get_variable_index(variable)
        multiplier = self._multipliers[index]
        if multiplier == 0:
            return
        # Numbers multiply tensors as they are: `ops.cast(0.9, "float64")` passes through float32.
        step = tf.cast(tf.convert_to_tensor(gradient), variable.dtype)
        if self.weight_decay and self._decays[index] and self._use_weight_decay(variable):
            step = step + self.weight_decay * variable
        if self.momentum:
            velocity = self._velocities[index]
            moved = self.momentum * velocity + step
            self.assign(velocity, moved)
            step = step + self.momentum * moved if self.nesterov else moved
        self.assign_sub(variable, multiplier * ops.cast(learning_rate, variable.dtype) * step)

    def _apply_weight_decay(self, variables: list[keras.Variable]) -> None:
        """Keras' decay, which goes past the velocity: `update_step` has its own."""

    def _update_model_variables_moving_average(self, variables: list[keras.Variable]) -> None:
        super()._update_model_variables_moving_average(variables)
        averages = self._model_variables_moving_average
        for multiplier, average, variable in zip(
            self._multipliers, averages, variables, strict=True
        ):
            if multiplier == 0:  # the mean of equal numbers is rounded
                average.assign(variable)

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor, and the paths of the weights that have multipliers."""
        config = {
            **super().get_config(),
            "momentum": self.momentum,
            "nesterov": self.nesterov,
            "decay_batch_norm": self.decay_batch_norm,
            "learning_rate_multipliers": dict(self.learning_rate_multipliers),
        }
        return {**config, "paths": list(self._paths)} if self.learning_rate_multipliers else config

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> SGD:
        """The optimizer that `get_config` describes."""
        config = dict(config)
        paths = config.pop("paths", ())
        optimizer = super().from_config(config, custom_objects=custom_objects)
        optimizer._paths = tuple(paths)
        return optimizer


def _checked_multipliers(multipliers: Mapping[str, float] | None) -> dict[str, float]:
    if multipliers is None:
        return {}
    if not isinstance(multipliers, Mapping):
        raise TypeError(
            "`learning_rate_multipliers` must map paths of weights to factors, got "
            f"{multipliers!r}: `models.stage_multipliers` makes such a mapping."
        )
    for path, each in multipliers.items():
        check_not_negative(f"learning_rate_multipliers[{path!r}]", each)
    return {str(path): float(each) for path, each in multipliers.items()}


def _paths_of(variables: Sequence[keras.Variable], saved: Sequence[str]) -> tuple[str, ...]:
    """The paths of weights: those that they were saved under, as Keras may name layers anew."""
    paths = tuple(getattr(variable, "path", variable.name) for variable in variables)
    return tuple(saved) if [*map(_last_part, saved)] == [*map(_last_part, paths)] else paths


def _last_part(path: str) -> str:
    return path.rpartition("/")[2].partition(":")[0]


def _check_paths(multipliers: Mapping[str, float], paths: Sequence[str]) -> None:
    for path in multipliers:
        if path not in paths:
            near = difflib.get_close_matches(path, paths, n=4) or paths[:4]
            raise ValueError(
                f"`learning_rate_multipliers` names {path!r}, which is none of the "
                f"{len(paths)} weights that are trained. Near names: {', '.join(near)}."
            )
        if paths.count(path) > 1:
            raise ValueError(
                f"`learning_rate_multipliers` names {path!r}, which is the path of "
                f"{paths.count(path)} weights: give their layers different names."
            )
