import numpy as np
import pytest

from data.image_bytes import png
from data.photo_folders import load, numbered, train_and_test, values, write


@pytest.mark.parametrize("test", ["test", "testing", "validation", "valid", "val", "Test"])
def test_folders_of_training_and_test_images(tmp_path, test, capsys):
    splits = load(write(tmp_path, train_and_test(test)))
    assert values(splits.train) == [(i, i // 6) for i in range(12)]
    assert [label for _, label in values(splits.test)] == [0, 0, 1, 1]
    assert [value for value, _ in values(splits.test)] == [100, 101, 102, 103]
    assert splits.info.class_names == ("a", "b")
    assert splits.info.input_shape == (4, 4, 3)
    assert splits.info.counts == {"train": 12, "validation": 0, "test": 4}
    assert splits.info.name == str(tmp_path)
    assert capsys.readouterr().out.count("\n") == 1  # mean and deviation


@pytest.mark.parametrize(("train", "test"), [("training", "testing"), ("Training", "Test")])
def test_other_names_of_splits(tmp_path, train, test):
    write(tmp_path, numbered("abc", prefix=f"{train}/") | numbered("abc", 2, 100, f"{test}/"))
    splits = load(tmp_path)
    assert splits.info.class_names == ("a", "b", "c")
    assert splits.info.counts == {"train": 18, "validation": 0, "test": 6}


def test_what_lies_beside_the_splits_is_not_used_and_that_is_said(tmp_path, capsys):
    write(tmp_path, train_and_test("test") | numbered("ab", 2, 200, prefix="val/"))
    write(tmp_path, {"extra/0.png": png(77), "stray.jpg": png(78), ".hidden/0.png": png(79)})
    write(tmp_path, {"README.txt": b"", ".DS_Store": b""})
    splits = load(tmp_path)
    assert [value for value, _ in values(splits.test)] == [100, 101, 102, 103]
    assert [value for value, _ in values(splits.train)] == list(range(12))
    first, *others = capsys.readouterr().out.splitlines()
    said = "not used beside 'train' and 'test': 'extra', 'stray.jpg', 'val'."
    assert first == f"{tmp_path}: {said}"
    assert len(others) == 1  # mean and deviation


def test_stray_image_beside_the_training_images(tmp_path, capsys):
    load(write(tmp_path, numbered(prefix="Train/") | {"stray.png": png(77)}))
    assert f"{tmp_path}: not used beside 'Train': 'stray.png'.\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("folders", "said"),
    [
        (("train", "Train", "test"), "Train, train"),
        (("train", "training", "test"), "train, training"),
        (("train", "Train"), "Train, train"),
        (("train", "TEST", "test"), "TEST, test"),
    ],
)
def test_two_folders_of_one_split_are_refused(tmp_path, folders, said):
    for folder in folders:
        write(tmp_path, numbered(prefix=f"{folder}/"))
    with pytest.raises(ValueError, match=f"one folder of each split, got {said}: merge or rename"):
        load(tmp_path)


@pytest.mark.parametrize(
    "splits",
    [
        ("test_set", "train_set"),
        ("Test", "learn"),
        ("seg_test", "seg_train"),
        ("Validation2", "photos"),
        ("my-val", "rest"),
    ],
)
def test_splits_of_other_names_are_not_taken_for_classes(tmp_path, splits):
    for split, classes in zip(splits, ("abcd", "abc"), strict=True):
        write(tmp_path, numbered(classes, prefix=f"{split}/"))
    write(tmp_path, {"to predict/0.png": png(77)})
    names = ", ".join(splits)
    with pytest.raises(ValueError, match=f"folders {names} in .* both hold a, b, c, so that they"):
        load(tmp_path)


@pytest.mark.parametrize(
    "inside",
    [
        {"train_station": "ab", "bus_stop": "cd"},
        {"testudo": ["images"], "turtle": ["images"]},
        {"valley": "ab", "hill": "ab"},
        {"latest": "ab", "oldest": "ab"},
    ],
)
def test_classes_may_hold_folders(tmp_path, inside):
    for name, folders in inside.items():
        write(tmp_path, numbered(folders, prefix=f"{name}/"))
    assert load(tmp_path).info.class_names == tuple(sorted(inside))


def test_test_images_are_in_the_order_of_their_names(tmp_path):
    splits = load(write(tmp_path, train_and_test()))
    assert [int(images[0, 0, 0, 0]) for images, _ in splits.test] == [100, 101, 102, 103]


@pytest.mark.parametrize("inside", ["", "train/"])
def test_one_folder_gives_a_third_of_each_class(tmp_path, capsys, inside):
    files = numbered("ab", 12, prefix=inside) | numbered("c", 6, 24, prefix=inside)
    write(tmp_path, files)
    splits = load(tmp_path)
    train, test = values(splits.train), values(splits.test)
    assert sorted(train + test) == [(i, min(i // 12, 2)) for i in range(30)]
    assert np.bincount([label for _, label in test]).tolist() == [4, 4, 2]
    said = "so about a third of each of the 3 classes is kept for the test (10 of 30 images)"
    assert said in capsys.readouterr().out
    assert values(load(tmp_path, seed=5).test) == test
    assert values(load(tmp_path, seed=5, validation=0.2).validation) != values(
        load(tmp_path, seed=6, validation=0.2).validation
    )


def test_every_class_keeps_an_image_for_training(tmp_path, capsys):
    # two thirds of ten are seven, of six they are four, so that three are left for four classes
    splits = load(write(tmp_path, numbered("a", 6) | numbered("bcde", 1, 6)))
    train, test = ([label for _, label in values(part)] for part in (splits.train, splits.test))
    assert train == [0, 0, 0, 0, 1, 2, 3, 4]
    assert test == [0, 0]
    assert "for the test (2 of 10 images)" in capsys.readouterr().out


def test_too_few_images_for_a_test(tmp_path):
    write(tmp_path, numbered(count=1))
    with pytest.raises(ValueError, match=r"one of each class for training, got 2 .*: add images"):
        load(tmp_path)


def test_a_class_may_be_called_train(tmp_path):
    splits = load(write(tmp_path, numbered(["plane", "train"])))
    assert splits.info.class_names == ("plane", "train")


def test_training_images_beside_what_is_no_test_are_refused(tmp_path):
    write(tmp_path, numbered(prefix="train/") | numbered("x", prefix="unlabeled/"))
    with pytest.raises(ValueError, match=r"must hold 'test' .* beside 'train', got train, unlabel"):
        load(tmp_path)
    assert load(tmp_path / "train").info.class_names == ("a", "b")
