"""Which rows a selective objective keeps, decided over the global batch."""

from __future__ import annotations

import tensorflow as tf

from keras_ssd import losses
from keras_ssd.collectives import all_gather, replica_rows, row_count


def kept_rows(ranks: tf.Tensor, keep_wrong: float, weights: tf.Tensor) -> tf.Tensor:
    """Error level ranking over the rows of all replicas.

    Args:
        ranks: Integers `[R]`: how many columns the teacher puts before the right one.
        keep_wrong: Share of the wrong rows that is kept, best ranks first.
        weights: `[R]`; a row of weight 0 is neither right nor wrong and never kept.

    Returns:
        Float tensor `[R]`: the weights of the kept rows, 0 for the others; no gradient.

    Source: Xu et al. 2020 (arXiv:2006.07114), section 3.3. The authors' sort leaves the order of
    equal ranks open; here the row that comes first in the global batch wins.
    """
    start, _ = replica_rows(row_count(ranks))
    valid = all_gather(tf.cast(weights > 0, tf.int32))
    kept = losses.keep_mask(all_gather(ranks), keep_wrong, valid=valid)
    mine = kept[start : start + row_count(ranks)]
    return tf.stop_gradient(tf.cast(mine, weights.dtype) * weights)
