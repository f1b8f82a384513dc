"""What replicas tell each other; on one replica every function is the identity."""

from __future__ import annotations

import tensorflow as tf

_GATHERED_AS_THEY_ARE = (tf.float32, tf.float64, tf.int32)


def _several_replicas() -> tf.distribute.ReplicaContext | None:
    """The replica context, or None where there is nobody to talk to."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return None
    return context


def all_gather(tensor: tf.Tensor) -> tf.Tensor:
    """Joins the rows of all replicas, in replica order.

    Differentiable: the gradient of a row is the sum of the gradients that all replicas give it.

    Args:
        tensor: Tensor `[rows, ...]`. The number of rows may differ between replicas and be 0 on
            some; where it is 0 on all of them, TensorFlow 2.21 ends the process.

    Returns:
        Tensor `[all rows, ...]`. `tf.distribute` gathers float32, float64 and int32 alone (float16
        ends in an internal error on a CPU), so other floats come back as float32, integers as
        int32.
    """
    context = _several_replicas()
    if context is None:
        return tensor
    if tensor.dtype not in _GATHERED_AS_THEY_ARE:
        tensor = tf.cast(tensor, tf.float32 if tensor.dtype.is_floating else tf.int32)
    gathered = context.all_gather(tensor, axis=0)
    return tf.ensure_shape(gathered, [None, *tensor.shape[1:]])  # it forgets what it knew


def all_sum(tensor: tf.Tensor) -> tf.Tensor:
    """Adds up the tensors of all replicas.

    Args:
        tensor: Tensor (or a nested structure of tensors) of one shape on every replica.

    Returns:
        The sums, the same on every replica.
    """
    context = _several_replicas()
    if context is None:
        return tensor
    return context.all_reduce(tf.distribute.ReduceOp.SUM, tensor)


def replica_rows(rows: tf.Tensor | int) -> tuple[tf.Tensor | int, tf.Tensor | int]:
    """Where this replica's rows stand in the global batch.

    Args:
        rows: Number of rows on this replica; it may differ between replicas.

    Returns:
        `(start, total)`: the first of this replica's rows in the global batch, and the number of
        rows of all replicas. A static `rows` stays a Python integer on one replica.
    """
    context = _several_replicas()
    if context is None:
        return 0, rows
    counts = context.all_gather(tf.reshape(tf.cast(rows, tf.int32), [1]), axis=0)
    mine = tf.cast(context.replica_id_in_sync_group, tf.int32)
    return tf.reduce_sum(counts[:mine]), tf.reduce_sum(counts)


def num_replicas() -> int:
    """Number of replicas that train together; 1 without a strategy."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def row_count(tensor: tf.Tensor) -> int | tf.Tensor:
    """The number of rows: a Python integer where the graph knows it, else a scalar tensor."""
    return tensor.shape[0] if tensor.shape[0] is not None else tf.shape(tensor)[0]
