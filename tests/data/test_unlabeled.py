"""Unlabeled images between the labelled ones of each batch."""

import collections

import keras
import numpy as np
import pytest

from data.contents import contents, labels_by_image
from data.photo_folders import numbered, write
from keras_ssd import data
from keras_ssd.callbacks import FollowEpoch
from keras_ssd.data.order import epochs_of

Count = collections.Counter


def digits(batch_size=64, **arguments):
    return data.load("digits", batch_size, **({"validation": 0} | arguments))


@pytest.fixture(scope="module")
def few_digits():
    """Two sets of digits: 1,198 in batches of 64 and 299 of another seed."""
    return digits(), digits(seed=5).few_shot(0.25)


def epoch_of(dataset, epoch=0):
    """Images as bytes with their labels, in the order of an epoch."""
    for variable in epochs_of(dataset):
        variable.assign(epoch)
    return [
        (image.tobytes(), int(label))
        for images, labels in dataset.as_numpy_iterator()
        for image, label in zip(images, labels, strict=True)
    ]


def parted(pairs):
    """The pairs with a label, and the images without."""
    known = [(image, label) for image, label in pairs if label >= 0]
    return known, [image for image, label in pairs if label == -1]


def images_of(dataset):
    return [image for image, _ in contents(dataset)]


# --- What an epoch holds -----------------------------------------------------------------------


def test_each_labelled_image_once_and_the_unlabeled_ones_in_turn(any_source):
    more = any_source(validation=0, batch_size=4)
    few = more.few_shot(0.5)
    mixed = few.with_unlabeled(more, share=0.5).train
    assert len(mixed) == 15
    known, unlabeled = zip(*(parted(epoch_of(mixed, epoch)) for epoch in range(3)), strict=True)
    labels = labels_by_image(more.train)
    assert {len(images) for images in unlabeled} == {30}
    assert Count(unlabeled[0] + unlabeled[1]) == Count(images_of(more.train))
    assert not Count(unlabeled[2]) - Count(images_of(more.train))
    assert len({tuple(images) for images in unlabeled}) == 3
    assert {len(pairs) for pairs in known} == {30}
    assert Count(known[0]) == Count(known[1]) == Count(known[2])
    assert not Count(contents(few.train)) - Count(known[0])
    assert all(labels[image] == label for image, label in known[0])
    assert known[0] != known[1]


def test_labelled_images_keep_their_order_and_unlabeled_ones_have_their_own(few_digits):
    labelled, more = few_digits
    alone, first, same, other = (
        digits(48).train,
        labelled.with_unlabeled(more, 0.25).train,
        labelled.with_unlabeled(more, 0.25).train,
        labelled.with_unlabeled(digits(seed=6).few_shot(0.25), 0.25).train,
    )
    for epoch in (0, 2):
        known, unlabeled = parted(epoch_of(first, epoch))
        assert known == epoch_of(alone, epoch)
        assert parted(epoch_of(same, epoch)) == (known, unlabeled)
        assert parted(epoch_of(other, epoch))[0] == known
        assert parted(epoch_of(other, epoch))[1] != unlabeled


def test_few_unlabeled_images_are_seen_several_times(few_digits):
    pool = digits(16).few_shot(0.02)
    mixed = few_digits[1].with_unlabeled(pool, share=0.75).train
    assert (len(mixed), pool.info.counts["train"]) == (18, 23)
    unlabeled = [parted(epoch_of(mixed, epoch))[1] for epoch in range(2)]
    assert [len(images) for images in unlabeled] == [18 * 48] * 2
    in_turn = unlabeled[0] + unlabeled[1]
    rounds = [set(in_turn[start : start + 23]) for start in range(0, 2 * 18 * 48 - 23, 23)]
    assert len(rounds[0]) == 23
    assert all(images == rounds[0] for images in rounds)


def test_batches_keep_shape_and_kind(few_digits):
    labelled, more = few_digits
    mixed = labelled.with_unlabeled(more, share=0.25)
    assert mixed.train.element_spec == labelled.train.element_spec
    images, labels = next(mixed.train.as_numpy_iterator())
    assert images.dtype == np.uint8
    assert images.shape == (64, 16, 16, 3)
    assert (labels == -1).sum() == 16
    assert (mixed.validation, mixed.test) == (labelled.validation, labelled.test)


# --- Where they stand in a batch ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "batch_size", "count"),
    [(0.25, 64, 16), (0.5, 5, 2), (0.9, 64, 58), (0.01, 64, 1), (0.7, 10, 7), (0.3, 3, 1)],
)
def test_rows_are_spread_evenly(few_digits, share, batch_size, count):
    more = few_digits[1]
    mixed = digits(batch_size).with_unlabeled(more, np.float64(share))
    assert mixed.info.changes[0].endswith(f", {share=})")
    for _, labels in mixed.train.take(3).as_numpy_iterator():
        before = np.cumsum([0, *(labels == -1)])
        assert before[-1] == count
        for length in range(1, batch_size + 1):
            parts = before[length:] - before[:-length]
            assert abs(parts - count * length / batch_size).max() < 1


def test_replicas_hold_as_many(few_digits, two_replicas):
    mixed = digits(10).with_unlabeled(few_digits[1], 0.3)
    for _, labels in two_replicas.experimental_distribute_dataset(mixed.train.take(5)):
        parts = two_replicas.experimental_local_results(labels)
        assert [len(part) for part in parts] == [5, 5]
        assert sorted(int((part.numpy() == -1).sum()) for part in parts) == [1, 2]


# --- Epochs in Keras ---------------------------------------------------------------------------


class Recorder(keras.Model):
    """Keeps the sum of the pixels and the label of every image."""

    def __init__(self):
        super().__init__()
        self.seen = []
        self.compile(run_eagerly=True)

    def train_step(self, batch):
        images, labels = (part.numpy() for part in batch)
        self.seen += zip(images.sum((1, 2, 3), dtype=int).tolist(), labels.tolist(), strict=True)
        return {"loss": 0.0}


def test_a_resumed_run_sees_what_an_undisturbed_one_saw(few_digits):
    train = digits(256).with_unlabeled(few_digits[1], 0.5).train

    def fit(**arguments):
        model = Recorder()
        follow = FollowEpoch(train)
        model.fit(train, epochs=3, callbacks=[follow], shuffle=False, verbose=0, **arguments)
        return model.seen

    whole, per_epoch = fit(), 256 * len(train)
    assert len(whole) == 3 * per_epoch
    assert fit(initial_epoch=2) == whole[2 * per_epoch :]
    assert whole[:per_epoch] != whole[per_epoch : 2 * per_epoch]


# --- What is told ------------------------------------------------------------------------------


def test_info_and_the_printed_line(few_digits, capsys):
    labelled, more = few_digits
    mixed = labelled.with_unlabeled(more, share=0.75)
    assert capsys.readouterr().out == (
        "digits: 48 of the 64 images of a batch are unlabeled (299 of digits); an epoch has 74 "
        "steps, which show each labelled image once and each unlabeled one 12 times.\n"
    )
    assert len(mixed.train) == 74
    assert mixed.info.counts == labelled.info.counts | {"unlabeled": 299}
    assert mixed.info.changes == ("with_unlabeled('digits'.few_shot(0.25, seed=0), share=0.75)",)
    assert (mixed.info.mean, mixed.info.std) == (labelled.info.mean, labelled.info.std)
    assert mixed.info.fingerprint == labelled.info.fingerprint
    assert labelled.info.changes == ()


def test_share_of_all_images_together(few_digits):
    labelled, more = few_digits  # 299 of 1,497 images are a share of 0.2
    mixed = labelled.with_unlabeled(more)
    assert (next(mixed.train.as_numpy_iterator())[1] == -1).sum() == 13
    share = 13 / 64
    assert mixed.info.changes == (f"with_unlabeled('digits'.few_shot(0.25, seed=0), {share=})",)
    again = labelled.with_unlabeled(more, share)
    assert epoch_of(again.train, 1) == epoch_of(mixed.train, 1)


# --- With other changes ------------------------------------------------------------------------


def test_fewer_and_wrong_labels_keep_the_unlabeled_images(few_digits):
    labelled, more = few_digits
    mixed = labelled.with_unlabeled(more, share=0.25)
    fewer = mixed.few_shot(0.5).label_noise(0.2)
    assert fewer.info.counts == {"train": 599, "validation": 0, "test": 599, "unlabeled": 299}
    assert fewer.info.changes == (
        "with_unlabeled('digits'.few_shot(0.25, seed=0), share=0.25)",
        "few_shot(0.5, seed=0)",
        "label_noise(0.2, seed=0)",
    )
    before = labelled.few_shot(0.5).label_noise(0.2).with_unlabeled(more, share=0.25)
    for epoch in (0, 1):
        assert epoch_of(fewer.train, epoch) == epoch_of(before.train, epoch)
    assert len(fewer.train) == 599 // 48
    assert Count(label for _, label in epoch_of(fewer.train))[-1] == 16 * len(fewer.train)


def test_one_batch_of_labelled_images_must_be_left(few_digits):
    mixed = few_digits[0].with_unlabeled(few_digits[1], share=0.25)
    assert len(mixed.few_shot(0.05).train) == 1
    with pytest.raises(
        ValueError, match=r"keeps 47 training .* one batch of 48 labelled ones: give"
    ):
        mixed.few_shot(0.04)


# --- What is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0, 1, -0.5, 1.5, float("nan"), True, "0.5", 1j])
def test_refuses_shares(few_digits, share):
    message = r"`share` must be a number in \(0, 1\) or None, got "
    with pytest.raises(ValueError, match=message):
        few_digits[0].with_unlabeled(few_digits[1], share)


@pytest.mark.parametrize(("share", "count"), [(0.001, 0), (0.999, 64)])
def test_one_image_of_each_kind_must_be_in_a_batch(few_digits, share, count):
    message = rf"share of {share} is {count} of the 64 images of a batch, which .* larger `batch_s"
    with pytest.raises(ValueError, match=message):
        few_digits[0].with_unlabeled(few_digits[1], share)


def test_share_of_all_images_may_leave_no_labelled_one(few_digits):
    few = digits(2).few_shot(0.01)
    with pytest.raises(ValueError, match=r"A share of 0.9645 is 2 of the 2 images of a batch"):
        few.with_unlabeled(few_digits[1])


def test_unlabeled_images_are_added_once(few_digits):
    labelled, more = few_digits
    mixed = labelled.with_unlabeled(more)
    with pytest.raises(ValueError, match="added once, and these hold some already: mine all"):
        mixed.with_unlabeled(more)
    with pytest.raises(ValueError, match="added once, and those of `unlabeled` hold some already"):
        labelled.with_unlabeled(mixed)


def test_images_must_have_one_shape(few_digits, tmp_path):
    photos = data.load(write(tmp_path, numbered()), 2, 0)
    message = r"one shape, got \(16, 16, 3\) of 'digits' and \(4, 4, 3\) of .*: load one .*image_s"
    with pytest.raises(ValueError, match=message):
        few_digits[0].with_unlabeled(photos)


@pytest.mark.parametrize("kind", ["train", "name", "nothing"])
def test_refuses_what_load_does_not_return(few_digits, kind):
    labelled, more = few_digits
    other = {"train": more.train, "name": "cifar10", "nothing": None}[kind]
    with pytest.raises(TypeError, match=r"`unlabeled` must be what `data\.load` returns, got "):
        labelled.with_unlabeled(other)
