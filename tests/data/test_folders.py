import importlib
import os
import pathlib
import shutil
import warnings

import numpy as np
import pytest
import tensorflow as tf

from data.contents import contents
from data.image_bytes import CMYK_JPEG, COLOUR_PALETTE, GREY_PALETTE, bmp, gif, png, raw_png
from data.photo_folders import load, numbered, train_and_test, values, write
from keras_ssd.data import folders, sources
from keras_ssd.data.order import epochs_of

# --- What names a folder ------------------------------------------------------------------------


class OtherPath:
    def __init__(self, path):
        self.path = path

    def __fspath__(self):
        return str(self.path)


@pytest.mark.parametrize("kind", [str, OtherPath, pathlib.Path])
def test_paths_and_strings(tmp_path, kind):
    assert load(kind(write(tmp_path, train_and_test()))).info.name == str(tmp_path)


@pytest.mark.parametrize("kind", [str, pathlib.Path])
def test_relative_to_home_and_to_the_current_folder(tmp_path, monkeypatch, kind):
    write(tmp_path / "photos", train_and_test())
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load(kind("~/photos")).info.name == "~/photos"
    monkeypatch.chdir(tmp_path)
    assert load(kind("photos")).info.name == "photos"


def test_names_of_sets_go_first(tmp_path, monkeypatch):
    write(tmp_path / "digits", train_and_test())
    write(tmp_path / "tiny", train_and_test())
    monkeypatch.chdir(tmp_path)
    assert load("digits").info.num_classes == 10
    assert load(pathlib.Path("digits")).info.num_classes == 2
    assert load("tiny").info.num_classes == 2
    with pytest.raises(ValueError, match="There is no data set 'tiny';"):
        load("tiny", data_dir=tmp_path)
    with pytest.raises(ValueError, match=r"`data_dir` .* must be None with the path of a folder"):
        load(pathlib.Path("tiny"), data_dir=tmp_path)


def test_published_constants_are_not_those_of_a_folder(tmp_path, monkeypatch):
    write(tmp_path / "cifar10", train_and_test())
    monkeypatch.chdir(tmp_path)
    mean = np.mean(np.arange(12)) / 255
    np.testing.assert_allclose(load(pathlib.Path("cifar10")).info.mean, [mean] * 3, atol=5e-5)


@pytest.mark.parametrize("name", [3, None, b"photos"])
def test_name_is_a_string_or_a_path(name):
    with pytest.raises(TypeError, match="`name` must be the name of a data set or the path"):
        load(name)


def test_unknown_string_may_have_meant_a_folder():
    with pytest.raises(ValueError, match="There is no data set and no folder 'qqqqq';"):
        load("qqqqq")


# --- Kinds of files -----------------------------------------------------------------------------

PALETTE = (b"PLTE", bytes([10, 20, 30, 40, 50, 60]))
STANDARD = b"".join(mask.to_bytes(4, "little") for mask in (0xFF0000, 0xFF00, 0xFF))
FILES = {  # name: (content, its pixels)
    "grey.PNG": (raw_png((2, 1), 8, 0, [b"\x07\x09"]), [[7] * 3, [9] * 3]),
    "grey and alpha.png": (raw_png((2, 1), 8, 4, [b"\x07\0\x09\xff"]), [[7] * 3, [9] * 3]),
    "alpha.png": (raw_png((2, 1), 8, 6, [bytes([1, 2, 3, 0, 4, 5, 6, 9])]), [[1, 2, 3], [4, 5, 6]]),
    "palette.png": (raw_png((2, 1), 8, 3, [b"\1\0"], PALETTE), [[40, 50, 60], [10, 20, 30]]),
    "two bits.png": (raw_png((2, 1), 1, 3, [b"\x80"], PALETTE), [[40, 50, 60], [10, 20, 30]]),
    "16 bits.png": (raw_png((2, 1), 16, 0, [b"\x12\x80\xff\xff"]), [[18] * 3, [255] * 3]),
    "24.bmp": (bmp(24, [bytes([1, 2, 3, 4, 5, 6])], width=2), [[3, 2, 1], [6, 5, 4]]),
    "32.Bmp": (bmp(32, [bytes([1, 2, 3, 0, 4, 5, 6, 255])], width=2), [[3, 2, 1], [6, 5, 4]]),
    "masks.bmp": (
        bmp(32, [bytes([1, 2, 3, 0, 4, 5, 6, 0])], width=2, between=STANDARD, compression=3),
        [[3, 2, 1], [6, 5, 4]],
    ),
    "8.bmp": (bmp(8, [b"\x07\x09"], width=2, between=GREY_PALETTE), [[7] * 3, [9] * 3]),
    "frames.gif": (gif((0, 1), (1, 1)), [[10, 20, 30], [40, 50, 60]]),
    "deep/er/png in disguise.jpg": (
        raw_png((2, 1), 8, 0, [b"\x08\x09"]),
        [[8] * 3, [9] * 3],
    ),
}


@pytest.mark.parametrize("beyond_memory", [False, True])
def test_every_kind_of_file(tmp_path, monkeypatch, beyond_memory):
    if beyond_memory:
        monkeypatch.setattr(sources, "MEMORY_LIMIT", 0)
    write(tmp_path, {f"train/a/{name}": content for name, (content, _) in FILES.items()})
    write(tmp_path, {f"test/{name}/0.png": png(1, (1, 2, 3)) for name in "ab"})
    write(tmp_path, {"train/b/0.png": png(255, (1, 2, 3))})
    splits = load(tmp_path)
    assert splits.train.element_spec[0].shape == (1, 1, 2, 3)
    expected = [np.array(pixels, np.uint8).tobytes() for _, pixels in FILES.values()]
    assert [image for image, label in contents(splits.train) if label == 0] == sorted(expected)


@pytest.mark.parametrize("name", ["0.jpg", "0.JPEG", "0.jpe", "0.Jfif"])
def test_jpeg(tmp_path, name):
    jpeg = tf.io.encode_jpeg(np.full((8, 8, 3), 77, np.uint8), quality=100).numpy()
    splits = load(
        write(
            tmp_path,
            {f"{kind}/{i}{name}": jpeg for kind in "ab" for i in range(3)}
            | {"a/4.png": png(78, (8, 8, 3))},
        )
    )
    assert splits.info.counts["train"] + splits.info.counts["test"] == 7
    assert values(splits.train)[0] == (77, 0)


def test_four_inks(tmp_path):
    write(tmp_path, {f"{split}/a/0.jpg": CMYK_JPEG for split in ("train", "test")})
    write(tmp_path, {f"{split}/b/0.png": png(1, (8, 8, 3)) for split in ("train", "test")})
    _, (pixels, _) = sorted(contents(load(tmp_path).train))
    pixels = np.frombuffer(pixels, np.uint8).reshape(-1, 3)
    np.testing.assert_allclose(pixels, [[200, 100, 50]] * 64, atol=2)


ROW = [b"\x07\x09"]
SWAPPED = STANDARD[8:] + STANDARD[4:8] + STANDARD[:4]
GOOD_JPEG = tf.io.encode_jpeg(np.arange(768, dtype=np.uint8).reshape(16, 16, 3)).numpy()
UNREADABLE = {  # name: (content, the reason)
    "empty.png": (b"", "Input is empty"),
    "text.jpg": (b"a text in a file of images", "Unknown image file format"),
    "half.jpg": (GOOD_JPEG[: len(GOOD_JPEG) // 2], "Invalid JPEG data"),
    "half.png": (png(3, (40, 40, 3))[:60], "Invalid PNG data"),
    "half.gif": (gif((0, 1))[:-5], "Invalid GIF data"),
    "half.bmp": (bmp(24, [bytes(6)] * 9, width=2)[:-8], "Input size should match"),
    "colours.bmp": (bmp(8, ROW, width=2, between=COLOUR_PALETTE), "palette of colours"),
    "few.bmp": (bmp(8, [b"\0\1"], width=2, between=COLOUR_PALETTE[:8]), "palette of colours"),
    "4 bits.bmp": (bmp(4, [b"\x12"], width=2, between=bytes(64)), "channels"),
    "run length.bmp": (
        bmp(8, [b"\1\x07\1\x09"], width=2, between=GREY_PALETTE, compression=1),
        "a compressed BMP",
    ),
    "swapped.bmp": (
        bmp(32, [bytes(8)], width=2, between=SWAPPED, compression=3),
        "channels in another order",
    ),
    "short.bmp": (b"BM" + bytes(12) + (12).to_bytes(4, "little") + bytes(40), "of OS/2"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_file_that_cannot_be_read_is_left_out_and_named(tmp_path, name):
    content, reason = UNREADABLE[name]
    write(tmp_path, train_and_test() | {f"train/a/{name}": content})
    with pytest.warns(UserWarning, match="cannot be read are left out") as caught:
        splits = load(tmp_path)
    (warning,) = caught
    said = str(warning.message)
    assert said.startswith(
        f"Images in {str(tmp_path)!r} that cannot be read are left out (1 of 17)"
    )
    assert f": train/a/{name} (" in said
    assert reason in said
    assert "\n" not in said
    assert "{{" not in said
    assert "[Op" not in said
    assert warning.filename == load.__code__.co_filename
    assert splits.info.counts == {"train": 12, "validation": 0, "test": 4}
    assert values(splits.train) == [(i, i // 6) for i in range(12)]


def test_many_unreadable_files_are_counted_in_one_warning(tmp_path):
    write(tmp_path, train_and_test() | {f"train/b/x{i}.png": b"" for i in range(8)})
    with pytest.warns(UserWarning, match=r"\(8 of 24\): train/b/x0.png .* and 3 more.$") as caught:
        load(tmp_path)
    assert len(caught) == 1
    assert str(caught[0].message).count("x") == 5


def test_link_that_leads_nowhere(tmp_path):
    write(tmp_path, train_and_test())
    (tmp_path / "train" / "a" / "gone.png").symlink_to(tmp_path / "nothing.png")
    with pytest.warns(UserWarning, match=r"gone.png \(No such file or directory\)"):
        load(tmp_path)


def test_other_kinds_of_images_are_named(tmp_path):
    others = {f"test/a/{i}.{end}": b"" for i, end in enumerate(("webp", "TIF", "heic", "avif"))}
    write(tmp_path, train_and_test() | others | {"train/a/x.Tiff": b""})
    message = r"are no JPEG, PNG, BMP or GIF files are left out \(5\): test/a/0.webp, .*TIF, .*Tiff"
    with pytest.warns(UserWarning, match=message) as caught:
        splits = load(tmp_path)
    assert len(caught) == 1
    assert caught[0].filename == load.__code__.co_filename
    assert splits.info.counts["test"] == 4


def test_images_outside_the_folders_of_classes_are_named(tmp_path):
    write(tmp_path, train_and_test() | {"train/stray.png": png(1), "train/.hidden.png": b""})
    with pytest.warns(UserWarning, match=r"outside the folders .*\(1\): train/stray.png"):
        assert load(tmp_path).info.counts["train"] == 12


def test_what_is_passed_over_in_silence(tmp_path):
    write(tmp_path, train_and_test())
    write(tmp_path / "train", {"README.txt": b"", "a/notes.TXT": b"", "a/Thumbs.db": b""})
    write(tmp_path / "train", {".git/x.png": b"", "a/.cache/x.png": b"", "a/._1.png": b""})
    assert load(tmp_path).info.counts == {"train": 12, "validation": 0, "test": 4}


def test_what_an_archive_of_macos_holds_besides_is_no_class(tmp_path):
    write(tmp_path, numbered() | {"__MACOSX/a/._0.png": b"", "a/__MACOSX/._1.png": b""})
    info = load(tmp_path, validation=0).info
    assert info.class_names == ("a", "b")


def test_links_that_lead_back_hold_no_class(tmp_path):
    """Neither a class of all images nor images of another class."""
    write(tmp_path / "photos", numbered())
    (tmp_path / "photos" / "a" / "up").symlink_to("..")
    (tmp_path / "photos" / "again").symlink_to(".")
    (tmp_path / "photos" / "above").symlink_to("..")
    info = load(tmp_path / "photos", validation=0).info
    assert info.class_names == ("a", "b")
    assert info.counts["train"] + info.counts["test"] == 12


def test_a_pipe_is_no_image(tmp_path):
    write(tmp_path / "photos", numbered())
    os.mkfifo(tmp_path / "photos" / "a" / "pipe.png")
    with pytest.warns(UserWarning, match=r"a/pipe.png \(no regular file\)"):
        load(tmp_path / "photos", validation=0)


def test_links_are_followed_and_no_folder_twice(tmp_path):
    write(tmp_path / "elsewhere", numbered("bc"))
    write(tmp_path / "photos", {"a/12.png": png(12)})
    for link, target in {"b": "elsewhere/b", "a/more": "elsewhere/c"}.items():
        (tmp_path / "photos" / link).symlink_to(tmp_path / target)
    for link in ("round", "and round"):
        (tmp_path / "photos" / "a" / link).symlink_to(tmp_path / "photos" / "a")
    splits = load(tmp_path / "photos")
    found = values(splits.train) + values(splits.test)
    assert sorted(found) == [(i, i < 6) for i in range(13)]


# --- Sizes --------------------------------------------------------------------------------------


def test_several_sizes_need_image_size(tmp_path):
    write(tmp_path, train_and_test() | {"train/b/z.png": png(1, (5, 7, 3))})
    with pytest.raises(ValueError, match=r"one size, got 4x4 and 5x7: give `image_size=\(height"):
        load(tmp_path)


def test_resizing_and_what_is_said_of_it(tmp_path, capsys):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3)).astype(np.uint8)
    odd = {"train/a/y.png": tf.io.encode_png(pixels).numpy(), "test/b/z.png": png(1, (5, 30, 3))}
    splits = load(write(tmp_path, train_and_test() | odd), image_size=(4, 4))
    said = "2 of 18 images resized from 2 sizes, from 9x7 to 5x30, to 4x4."
    assert said in capsys.readouterr().out
    expected = np.round(tf.image.resize(pixels, (4, 4), antialias=True)).astype(np.uint8)
    found = {image for image, _ in contents(splits.train)}
    assert expected.tobytes() in found
    assert {bytes([i] * 48) for i in range(12)} < found
    load(tmp_path, image_size=(6, 8))
    assert (
        "18 of 18 images resized from 3 sizes, from 4x4 to 5x30, to 6x8" in capsys.readouterr().out
    )
    load(write(tmp_path / "one", train_and_test()), image_size=(6, 8))
    assert "16 of 16 images resized from 4x4 to 6x8." in capsys.readouterr().out


# --- Beyond memory ------------------------------------------------------------------------------


@pytest.fixture
def both(tmp_path, monkeypatch):
    """The same folder held in memory and decoded while it is read."""
    pixels = np.random.default_rng(1).integers(0, 256, (40, 9, 7, 3)).astype(np.uint8)
    encode = [tf.io.encode_png, tf.io.encode_jpeg]
    for i, image in enumerate(pixels):
        write(tmp_path, {f"{'ab'[i % 2]}/{i}.png": encode[i % 3 == 0](image).numpy()})
    write(tmp_path, {"a/x.png": b"", "b/grey.bmp": bmp(8, ROW, width=2, between=GREY_PALETTE)})

    def load_both(**arguments):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            held = load(tmp_path, image_size=(8, 8), **arguments)
            with monkeypatch.context() as patch:
                patch.setattr(sources, "MEMORY_LIMIT", 41 * 8 * 8 * 3)
                return held, load(tmp_path, image_size=(8, 8), **arguments)

    return load_both


def test_beyond_memory_is_the_same_in_the_same_order_of_every_epoch(both):
    held, read = both(batch_size=4, validation=0.25, seed=3)
    tf.random.set_seed(1)
    assert read.train.element_spec == held.train.element_spec
    assert len(read.train) == len(held.train) == 5
    for epoch in (0, 1, 5):
        sequences = []
        for splits in (held, read):
            epochs_of(splits.train)[0].assign(epoch)
            for dataset in (splits.train, splits.validation, splits.test):
                sequences.append([np.concatenate(part) for part in zip(*dataset, strict=True)])
        for mine, expected in zip(sequences[3:], sequences[:3], strict=True):
            np.testing.assert_array_equal(mine[0], expected[0])
            np.testing.assert_array_equal(mine[1], expected[1])
    assert read.info.fingerprint != held.info.fingerprint
    assert vars(read.info) | {"fingerprint": ""} == vars(held.info) | {"fingerprint": ""}


def test_order_beyond_memory_is_a_function_of_seed_and_epoch(both):
    def order(splits, epoch):
        epochs_of(splits.train)[0].assign(epoch)
        return [images.numpy().tobytes() for images, _ in splits.train]

    first, second, other = (both(seed=seed)[1] for seed in (0, 0, 1))
    tf.random.set_seed(7)
    assert order(first, 0) == order(second, 0) == order(first, 0)
    assert order(first, 1) == order(second, 1)
    assert order(first, 0) != order(first, 1)
    assert order(first, 0) != order(other, 0)
    assert sorted(order(first, 0)) == sorted(order(first, 1)) == sorted(order(other, 0))


def test_held_images_are_not_read_again(tmp_path):
    splits = load(write(tmp_path / "photos", train_and_test()))
    shutil.rmtree(tmp_path / "photos")
    assert len(values(splits.few_shot(0.5).label_noise(0.5).train)) == 6
    assert len(values(splits.train)) == 12


def test_long_reading_is_announced(tmp_path, monkeypatch, capsys):
    write(tmp_path, train_and_test())
    monkeypatch.setattr(folders, "_LONG", 16 * len(png(1)) - 1000)
    load(tmp_path)
    assert capsys.readouterr().out.startswith(f"{tmp_path}: reading all 16 images once.\n")


def test_constants_come_from_all_classes(tmp_path, monkeypatch):
    module = importlib.import_module("keras_ssd.data.load")
    monkeypatch.setattr(module, "STATISTICS_IMAGES", 20)
    dark, light = numbered("a", 100, prefix="train/"), numbered("b", 100, 100, prefix="train/")
    splits = load(write(tmp_path, dark | light | numbered(prefix="test/")))
    assert 60 < 255 * splits.info.mean[0] < 140  # 9.5 of the first images alone


# --- Held out -----------------------------------------------------------------------------------


@pytest.mark.parametrize("beyond_memory", [False, True])
def test_class_without_an_image_left_to_train_on_is_refused(tmp_path, monkeypatch, beyond_memory):
    if beyond_memory:
        monkeypatch.setattr(sources, "MEMORY_LIMIT", 0)
    write(tmp_path, numbered("ab", 10, prefix="train/") | {"train/rare/0.png": png(77)})
    write(tmp_path, numbered(["a", "b", "rare"], 2, 100, prefix="test/"))

    def outcome(seed):
        try:
            splits = load(tmp_path, validation=10, seed=seed)
        except ValueError as error:
            return str(error)
        return {label for _, label in values(splits.train)}

    refused = 0
    for seed in range(6):
        said = f"`validation`=10 with `seed`={seed} holds out every training image of rare: give a"
        trained = outcome(seed)
        assert trained == {0, 1, 2} or trained.startswith(said)
        refused += trained != {0, 1, 2}
    assert 0 < refused < 6


# --- Fingerprint --------------------------------------------------------------------------------


@pytest.mark.parametrize("beyond_memory", [False, True])
def test_fingerprint(tmp_path, monkeypatch, beyond_memory):
    if beyond_memory:
        monkeypatch.setattr(sources, "MEMORY_LIMIT", 0)

    def fingerprint(name, files, **arguments):
        return load(write(tmp_path / name, files), **arguments).info.fingerprint

    files = train_and_test()
    same = {fingerprint("one", files), fingerprint("two", files, seed=3, validation=0.2)}
    assert len(same) == 1
    moved = {path.replace("train/a/5", "train/b/5"): file for path, file in files.items()}
    tested = {path.replace("train/a/5", "test/a/5"): file for path, file in files.items()}
    other = files | {"train/a/0.png": png(77, (4, 4, 3))}
    changed = [fingerprint(str(i), f) for i, f in enumerate((moved, tested, other))]
    assert len({*same, *changed, fingerprint("big", files, image_size=(5, 5))}) == 5
    renamed = {path.replace("a/0", "a/00"): file for path, file in files.items()}
    assert (fingerprint("renamed", renamed) in same) == (not beyond_memory)


# --- Mistakes -----------------------------------------------------------------------------------

MISTAKES = {
    "empty": ({}, "each of two classes or more, got no folder and 0 images"),
    "flat": ({"1.png": png(1), "2.jpg": b""}, "got no folder and 2 images: put the images of each"),
    "one class": (numbered("a"), "of two classes or more, got a and 6 images"),
    "no images": (
        {"a/x.txt": b"", "b/y.txt": b""},
        "must hold JPEG, .* got 0 images of other kinds",
    ),
    "other images": ({"a/x.webp": b"", "b/y.tif": b""}, "got 2 images of other kinds"),
    "no test images": (
        numbered(prefix="train/") | {"test/a/x.txt": b"", "test/b/x.txt": b""},
        "test' must hold JPEG",
    ),
    "unreadable": (
        {"a/x.png": b"", "b/y.png": b""},
        "must hold images that can be read, got only others, such as a/x.png .Input is empty., b/y",
    ),
    "unreadable test": (
        numbered(prefix="train/") | {"test/a/x.png": b"", "test/b/y.png": b""},
        "test' must hold images that can be read",
    ),
    "other classes": (
        numbered("abc", prefix="train/") | numbered("bd", prefix="test/"),
        "the same classes, got d missing in 'train' and a, c missing in 'test': add or rename",
    ),
    "fewer classes": (
        numbered("abc", prefix="train/") | numbered("ab", prefix="Val/"),
        "the same classes, got none missing in 'train' and c missing in 'Val'",
    ),
    "empty class": (numbered() | {"c/x.txt": b"", "d/x.txt": b""}, "got none for c, d: add images"),
    "classless splits": (
        {"train/1.png": png(1), "test/2.png": png(2)},
        "got no folder and 1 images",
    ),
}


@pytest.mark.parametrize(("files", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes(tmp_path, files, message):
    write(tmp_path, files)
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


def test_class_without_a_readable_training_image(tmp_path):
    write(tmp_path, train_and_test(classes="abc"))
    for path in (tmp_path / "train" / "b").iterdir():
        path.write_bytes(b"")
    with (
        pytest.raises(ValueError, match="needs a training image that can be read, got none for b"),
        pytest.warns(UserWarning, match=r"\(6 of 24\)"),
    ):
        load(tmp_path)


@pytest.mark.parametrize("name", ["gone", "./gone", "~/gone"])
def test_folder_that_does_not_exist(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ValueError, match=r"folder of images must exist, got .*gone': check the"):
        load(name if name != "gone" else pathlib.Path(name))


@pytest.mark.parametrize("kind", [str, pathlib.Path])
def test_file_in_place_of_a_folder(tmp_path, kind):
    write(tmp_path, {"photos.zip": b""})
    with pytest.raises(ValueError, match=r"from a folder, got the file .*photos.zip': unpack it"):
        load(kind(tmp_path / "photos.zip"))


def test_folder_that_may_not_be_read(tmp_path, monkeypatch):
    write(tmp_path, train_and_test())
    scandir = os.scandir

    def refuse(path):
        if os.fspath(path).endswith("b"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match="Permission denied"):
        load(tmp_path)


# --- Real images --------------------------------------------------------------------------------


@pytest.mark.slow
def test_real_images_in_several_formats(real_data, tmp_path):
    import tensorflow_datasets as tfds

    builder = tfds.builder("cifar10", data_dir=real_data / "tfds")
    chosen = [(e["image"], int(e["label"])) for e in builder.as_dataset(split="test").take(300)]
    chosen = [(image.numpy()[:, 3:27], label) for image, label in chosen if label in (1, 5, 8)]
    names = {1: "automobile", 5: "dog", 8: "ship"}
    assert {label for _, label in chosen} == set(names)
    expected, approximate = {"train": [], "test": []}, {"train": [], "test": []}
    for i, (image, label) in enumerate(chosen):
        split = "test" if i % 4 == 0 else "train"
        rows = image[::-1, :, ::-1]
        ending, content = [
            ("png", tf.io.encode_png(image).numpy()),
            ("BMP", bmp(24, [row.tobytes() for row in rows], width=24)),
            ("JPG", tf.io.encode_jpeg(image, quality=100, chroma_downsampling=False).numpy()),
        ][i % 3]
        write(tmp_path, {f"{split}/{names[label]}/{i}.{ending}": content})
        (approximate if ending == "JPG" else expected)[split].append((image.tobytes(), label))
    splits = load(tmp_path)
    assert splits.info.class_names == tuple(names.values())
    assert splits.info.input_shape == (32, 24, 3)
    for split in ("train", "test"):
        found = [(image, (1, 5, 8)[label]) for image, label in contents(getattr(splits, split))]
        assert len(found) == len(expected[split]) + len(approximate[split])
        assert set(expected[split]) <= set(found)
        others = np.array([[*image] for image, _ in found], float)
        for image, _ in approximate[split]:
            assert np.abs(others - [*image]).mean(axis=1).min() < 8  # of 255: a fast decoder
    resized = load(tmp_path, image_size=(16, 12))
    halves = {image for image, _ in contents(resized.test)}
    for image, _ in expected["test"]:
        image = np.frombuffer(image, np.uint8).reshape(32, 24, 3)
        half = np.round(tf.image.resize(image, (16, 12), antialias=True)).astype(np.uint8)
        assert half.tobytes() in halves
