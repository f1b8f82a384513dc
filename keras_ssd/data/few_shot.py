"""A share of the images of each class, drawn as the few-shot experiments draw it."""

from __future__ import annotations

import math

import numpy as np

from keras_ssd.arguments import is_number
from keras_ssd.data.order import check_seed


def stratified_subset(labels: np.ndarray, fraction: float, seed: int = 0) -> np.ndarray:
    """The places of a share of the labels, the same share of each class.

    A function of its arguments alone: those of scikit-learn's `StratifiedShuffleSplit` with
    `test_size=1 - fraction` and `random_state=seed`, of which this is the train part. As there,
    `ceil((1 - fraction) * n)` of the n labels are left out, computed in float64.

    Args:
        labels: Array of integers `[N]`.
        fraction: Share in (0, 1]; 1 keeps all.
        seed: Integer in [0, 2^32).

    Returns:
        Array of integers, places in `labels` in the order drawn (for 1 in their own order).

    Raises:
        ValueError: If an argument is out of range, or a class would be left without a label.

    Source: Yang et al. 2021, arXiv:2107.13715, few-shot experiments (fractions 0.25, 0.5, 0.75 and
    seed 0 on CIFAR-100).
    """
    if not is_number(fraction) or not 0 < fraction <= 1:
        raise ValueError(f"`fraction` must be a number in (0, 1], got {fraction!r}.")
    check_seed(seed)
    labels = np.asarray(labels)
    left_out = math.ceil((1 - fraction) * len(labels))
    kept, _ = stratified_rows(labels, len(labels) - left_out, seed)
    missing = np.setdiff1d(labels, labels[kept])
    if len(missing):
        raise ValueError(
            f"`fraction`={fraction} keeps {len(kept)} of {len(labels)} images and none of "
            f"{len(missing)} classes (the first is {missing[0]}): give a larger fraction."
        )
    return kept


def stratified_rows(labels: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The places of `count` labels, in the order drawn, and those of the others, sorted.

    Each class gives its share, rounded; nothing else is promised of a class with few labels.
    """
    places = np.arange(len(labels))
    if count == len(labels):
        return places, places[:0]
    rng = np.random.RandomState(seed)  # the generator that NumPy has frozen
    _, classes, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    kept_sizes = _shares(sizes, count, rng)
    _shares(sizes - kept_sizes, len(labels) - count, rng)  # for the ties that it draws
    members = np.split(np.argsort(classes, kind="stable"), np.cumsum(sizes)[:-1])
    drawn = [
        member[rng.permutation(len(member))[:kept]]
        for member, kept in zip(members, kept_sizes, strict=True)
    ]
    kept = rng.permutation(np.concatenate(drawn))
    return kept, np.setdiff1d(places, kept)


def _shares(sizes: np.ndarray, count: int, rng: np.random.RandomState) -> np.ndarray:
    """`count` divided in proportion to `sizes`: the largest remainders are rounded up."""
    exact = sizes / sizes.sum() * count
    shares = np.floor(exact).astype(int)
    remainders = exact - shares
    missing = count - shares.sum()
    for remainder in np.unique(remainders)[::-1]:
        if missing == 0:
            break
        ties = np.flatnonzero(remainders == remainder)
        chosen = rng.choice(ties, min(len(ties), missing), replace=False)
        shares[chosen] += 1
        missing -= len(chosen)
    return shares
