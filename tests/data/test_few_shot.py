import collections

import numpy as np
import pytest
from conftest import golden_cases
from sklearn.model_selection import StratifiedShuffleSplit

from data.contents import contents, labels_by_image
from keras_ssd import data
from keras_ssd.data.few_shot import stratified_rows, stratified_subset
from keras_ssd.data.order import epochs_of

CIFAR_LIKE = np.arange(50_000) % 100
PUBLISHED = {  # fraction: (first indices, sum of all), of the authors' split
    0.25: ([16719, 27754, 17514, 2748, 11967, 25343, 23742, 32582], 313393050),
    0.5: ([5381, 35004, 12229, 25812, 22813, 30699, 20311, 43351], 625903600),
    0.75: ([31167, 43958, 19096, 37209, 13810, 10772, 22014, 16801], 939544150),
}


@pytest.mark.parametrize("fraction", PUBLISHED)
def test_published_subsets(fraction):
    first, total = PUBLISHED[fraction]
    kept = stratified_subset(CIFAR_LIKE, fraction)
    assert kept[:8].tolist() == first
    assert kept.sum() == total
    assert set(np.bincount(CIFAR_LIKE[kept])) == {500 * fraction}


@pytest.mark.parametrize("case", golden_cases("hsakd", "stratified_subset"))
def test_golden(case):
    labels = np.array(case["inputs"]["labels"])
    kept = stratified_subset(labels, case["params"]["keep_ratio"], case["params"]["seed"])
    assert kept.tolist() == case["expected"]["train_indices_in_order"]


@pytest.mark.parametrize(
    "sizes",
    [
        (13, 9, 17, 11),
        (5, 5, 5, 5, 5, 5, 5),
        (200, 3, 41, 7, 7),
        (24, 52, 18, 56, 58, 11),  # at 0.75 scikit-learn draws for the other part as well
    ],
)
@pytest.mark.parametrize("fraction", [0.3, 0.5, 0.6, 0.75])
def test_scikit_learn_on_unequal_classes(sizes, fraction):
    labels = np.repeat(np.arange(len(sizes)) * 3, sizes)
    for seed in range(10):
        np.random.RandomState(seed).shuffle(labels)
        split = StratifiedShuffleSplit(1, test_size=1 - fraction, random_state=seed)
        expected, rest = next(split.split(labels, labels))
        kept = stratified_subset(labels, fraction, seed)
        np.testing.assert_array_equal(kept, expected)
        again, others = stratified_rows(labels, len(kept), seed)
        np.testing.assert_array_equal(again, kept)
        np.testing.assert_array_equal(others, np.sort(rest))


def test_everything_is_kept_in_its_order():
    np.testing.assert_array_equal(stratified_subset(np.array([2, 0, 0, 1]), 1), range(4))
    kept, others = stratified_rows(np.array([1, 0]), 2, seed=0)
    np.testing.assert_array_equal(kept, [0, 1])
    assert len(others) == 0


@pytest.mark.parametrize("fraction", [0, -0.5, 1.01, float("nan"), True, "0.5", None, 1j])
def test_refuses_fractions(fraction):
    with pytest.raises(ValueError, match=r"`fraction` must be a number in \(0, 1\], got "):
        stratified_subset(CIFAR_LIKE, fraction)


@pytest.mark.parametrize("seed", [-1, 2**32, 1.0, True, "0", None])
def test_refuses_seeds(seed):
    with pytest.raises(ValueError, match=r"`seed` must be an integer in \[0, 2\^32\), got "):
        stratified_subset(CIFAR_LIKE, 0.5, seed)


@pytest.mark.parametrize(
    ("fraction", "message"),
    [
        (0.5, "keeps 5 of 11 images and none of 1 classes .the first is 7.: give a larger"),
        (1e-9, "keeps 0 of 11 images and none of 2 classes .the first is 3.: give a larger"),
    ],
)
def test_no_class_may_vanish(fraction, message):
    with pytest.raises(ValueError, match=message):
        stratified_subset(np.array([3] * 10 + [7]), fraction)


# --- Splits.few_shot, of every source ---------------------------------------------------------


def test_fewer_training_images(any_source):
    splits = any_source(validation=0.2)
    fewer = splits.few_shot(0.5, seed=3)
    assert fewer.validation is splits.validation
    assert fewer.test is splits.test
    kept, all_of_them = contents(fewer.train), contents(splits.train)
    assert not collections.Counter(kept) - collections.Counter(all_of_them)
    assert len(kept) == len(fewer.train) == 24
    assert fewer.info.counts == splits.info.counts | {"train": len(kept)}
    sizes = [np.bincount([label for _, label in part]) for part in (kept, all_of_them)]
    assert np.all(np.abs(sizes[0] - sizes[1] / 2) < 1)
    assert fewer.info.changes == ("few_shot(0.5, seed=3)",)
    assert splits.info.changes == ()


def test_subset_is_a_function_of_fraction_and_seed(any_source):
    splits = any_source(validation=0)
    once, again, other = (contents(splits.few_shot(0.4, seed).train) for seed in (1, 1, 2))
    assert once == again
    assert once != other
    reseeded = any_source(validation=0, seed=7)
    assert contents(reseeded.few_shot(0.4, 1).train) == once


def test_order_follows_seed_and_epoch(any_source):
    def order(dataset, epoch):
        epochs_of(dataset)[0].assign(epoch)
        return [image.tobytes() for image, _ in dataset.as_numpy_iterator()]

    splits = any_source()
    same, fewer = splits.few_shot(1), splits.few_shot(0.5)
    for epoch in (0, 1):
        assert order(same.train, epoch) == order(splits.train, epoch)
    assert order(fewer.train, 0) != order(fewer.train, 1)
    assert sorted(order(fewer.train, 0)) == sorted(order(fewer.train, 1))


def test_numpy_numbers_are_noted_as_plain_ones(prepare):
    splits = data.load("tiny", 1, 0, data_dir=prepare({"train": 30, "test": 7}))
    changed = splits.few_shot(np.float64(0.5), np.int64(3)).label_noise(
        np.float32(0.3), np.uint8(2)
    )
    rate = float(np.float32(0.3))
    assert changed.info.changes == ("few_shot(0.5, seed=3)", f"label_noise({rate!r}, seed=2)")
    again = splits.few_shot(0.5, 3).label_noise(rate, 2)
    assert contents(again.train) == contents(changed.train)


@pytest.mark.parametrize("number", [np.True_, np.str_("0.5"), np.float64("nan")])
def test_refuses_numpy_values_that_are_no_share(prepare, number):
    splits = data.load("tiny", 1, 0, data_dir=prepare({"train": 30, "test": 7}))
    with pytest.raises(ValueError, match="`fraction` must be a number"):
        splits.few_shot(number)
    with pytest.raises(ValueError, match="`rate` must be a number"):
        splits.label_noise(number)


def test_chained_with_noise_in_any_order(any_source):
    splits = any_source(validation=0)
    truth = labels_by_image(splits.train)
    first, second = splits.few_shot(0.5).label_noise(0.2), splits.label_noise(0.2).few_shot(0.5)
    assert first.info.changes == ("few_shot(0.5, seed=0)", "label_noise(0.2, seed=0)")
    assert second.info.changes == first.info.changes[::-1]
    assert first.info.counts == second.info.counts
    wrong = sum(label != truth[image] for image, label in contents(first.train))
    assert wrong == round(0.2 * len(first.train))
    assert any(label != truth[image] for image, label in contents(second.train))
    quarter = splits.few_shot(0.5).few_shot(0.5)
    assert not collections.Counter(contents(quarter.train)) - collections.Counter(
        contents(splits.few_shot(0.5).train)
    )
    assert quarter.info.counts["train"] == len(quarter.train) == 15


def test_one_batch_must_be_left(any_source):
    splits = any_source(validation=0, batch_size=15)
    assert len(splits.few_shot(0.25).train) == 1
    message = "`fraction`=0.2 keeps 12 training images, less than one batch of 15: give a larger"
    with pytest.raises(ValueError, match=message):
        splits.few_shot(0.2)
