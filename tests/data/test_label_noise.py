import numpy as np
import pytest

from data.contents import contents, labels_by_image
from keras_ssd.data.label_noise import symmetric_noise
from keras_ssd.data.order import epochs_of

LABELS = np.random.default_rng(0).integers(0, 5, 20_000).astype("int32")


@pytest.mark.parametrize("rate", [0, 0.1, 0.33333, 1])
def test_exactly_so_many_labels_are_wrong(rate):
    before = LABELS.copy()
    noisy = symmetric_noise(LABELS, 5, rate)
    assert np.sum(noisy != LABELS) == round(rate * 20_000)
    assert noisy.dtype == LABELS.dtype
    assert noisy.min() >= 0
    assert noisy.max() < 5
    np.testing.assert_array_equal(LABELS, before)


def test_every_wrong_class_is_as_likely_in_every_class():
    noisy = symmetric_noise(LABELS, 5, 0.8)
    table = np.zeros((5, 5))
    np.add.at(table, (LABELS, noisy), 1)
    off_diagonal = table[~np.eye(5, dtype=bool)]  # each is binomial: 800 expected, deviation 28
    np.testing.assert_allclose(off_diagonal, 800, atol=5 * 28)
    np.testing.assert_allclose(np.diag(table), 800, atol=5 * 28)


def test_two_classes_change_places():
    np.testing.assert_array_equal(symmetric_noise(np.array([0, 1, 1, 0]), 2, 1.0), [1, 0, 0, 1])


def test_a_function_of_the_seed():
    once, again, other = (symmetric_noise(LABELS, 5, 0.5, seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(once, again)
    assert np.any(once != other)
    assert np.any((once != LABELS) != (other != LABELS))
    tf_like = symmetric_noise(LABELS, 5, 0.5, np.int64(3))
    np.testing.assert_array_equal(once, tf_like)


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan"), True, "0.2", None])
def test_refuses_rates(rate):
    with pytest.raises(ValueError, match=r"`rate` must be a number in \[0, 1\], got "):
        symmetric_noise(LABELS, 5, rate)


@pytest.mark.parametrize("seed", [-1, 2**32, 0.5, True, "0"])
def test_refuses_seeds(seed):
    with pytest.raises(ValueError, match=r"`seed` must be an integer in \[0, 2\^32\), got "):
        symmetric_noise(LABELS, 5, 0.2, seed)


@pytest.mark.parametrize(("outside", "classes"), [(-1, 5), (5, 5)])
def test_refuses_labels_of_no_class(outside, classes):
    with pytest.raises(ValueError, match=f"Labels must lie in 0 to 4 .*got {outside}: leave"):
        symmetric_noise(np.array([0, outside]), classes, 0.5)


def test_refuses_one_class():
    with pytest.raises(ValueError, match="need two classes or more, got 1"):
        symmetric_noise(np.zeros(4, int), 1, 0.5)


# --- Splits.label_noise, of every source ------------------------------------------------------


@pytest.mark.parametrize("rate", [0.25, 1.0])
def test_wrong_labels_in_training_alone(any_source, rate):
    splits = any_source(validation=0.2)
    clean = {name: contents(getattr(splits, name)) for name in ("train", "validation", "test")}
    truth = labels_by_image(splits.train)
    noisy = splits.label_noise(rate, seed=2)
    found = contents(noisy.train)
    assert [image for image, _ in found] == [image for image, _ in clean["train"]]
    assert sum(label != truth[image] for image, label in found) == round(rate * len(found))
    assert noisy.validation is splits.validation
    assert noisy.test is splits.test
    for name, expected in clean.items():
        assert contents(getattr(splits, name)) == expected
    assert contents(splits.label_noise(rate, seed=2).train) == found
    assert noisy.info.counts == splits.info.counts
    assert noisy.info.changes == (f"label_noise({rate}, seed=2)",)


def test_the_labels_are_those_of_the_function_and_stay_in_every_epoch(any_source):
    noisy = any_source(validation=0).label_noise(0.5, seed=1)
    first = contents(noisy.train)
    epochs_of(noisy.train)[0].assign(1)
    assert contents(noisy.train) == first
    again = any_source(validation=0, seed=9).label_noise(0.5, seed=1)
    assert contents(again.train) == first
    assert contents(any_source(validation=0).label_noise(0.5, seed=2).train) != first
