"""Wrong labels, as many as asked for."""

from __future__ import annotations

import numpy as np

from keras_ssd.arguments import is_number
from keras_ssd.data.order import check_seed


def symmetric_noise(labels: np.ndarray, num_classes: int, rate: float, seed: int = 0) -> np.ndarray:
    """Labels of which a share is wrong, every wrong class being as likely.

    Exactly `round(rate * n)` of the n labels are replaced by another class, drawn uniformly from
    the other C - 1. Another common convention draws from all C classes, so that some of the labels
    it chooses stay right: its rate r leaves r * (C - 1) / C of the labels wrong, which is the
    `rate` to give here for the same noise.

    Args:
        labels: Array of integers `[N]` in 0 to `num_classes` - 1.
        num_classes: Integer >= 2.
        rate: Share in [0, 1].
        seed: Integer in [0, 2^32): chooses the labels and what they become.

    Returns:
        A new array `[N]` in the dtype of `labels`.

    Raises:
        ValueError: If an argument is out of range.
    """
    if not is_number(rate) or not 0 <= rate <= 1:
        raise ValueError(f"`rate` must be a number in [0, 1], got {rate!r}.")
    check_seed(seed)
    if num_classes < 2:
        raise ValueError(f"Wrong labels need two classes or more, got {num_classes}.")
    noisy = np.array(labels)
    outside = noisy[(noisy < 0) | (noisy >= num_classes)]
    if len(outside):
        raise ValueError(
            f"Labels must lie in 0 to {num_classes - 1} to be changed, got {outside[0]}: leave the "
            "unlabeled images out."
        )
    rng = np.random.RandomState(seed)  # the generator that NumPy has frozen
    chosen = rng.permutation(len(noisy))[: round(rate * len(noisy))]
    noisy[chosen] = (noisy[chosen] + rng.randint(1, num_classes, len(chosen))) % num_classes
    return noisy
