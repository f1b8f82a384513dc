"""Where a folder of images keeps its splits, its classes and their files."""

from __future__ import annotations

import pathlib
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from keras_ssd.data.image_files import ENDINGS, OTHER_ENDINGS, ending, files_below, is_hidden

_TRAINS = ("train", "training")
_TESTS = ("test", "testing", "validation", "valid", "val")  # the first that is there is used
_LIKE_A_SPLIT = re.compile(r"(?<![a-z])(train|test|valid|(val|eval|dev)(?![a-z]))", re.IGNORECASE)
_NAMED = 5  # files or classes that a message names in full


class ImageFile(NamedTuple):
    """A file that should be an image, its split (`train` or `test`) and the number of its class."""

    path: str
    split: str
    label: int


def find_splits(folder: pathlib.Path, name: str) -> dict[str, pathlib.Path]:
    """The folders `train` and, where there is one, `test` that hold the folders of the classes."""
    if not folder.exists():
        raise ValueError(f"The folder of images must exist, got {str(folder)!r}: check the path.")
    if not folder.is_dir():
        raise ValueError(
            f"Images are loaded from a folder, got the file {str(folder)!r}: unpack it, or give "
            "the folder that it lies in."
        )
    inside = _folders_in(folder)
    trains = [path for path in inside if path.name.lower() in _TRAINS]
    tests = [path for split in _TESTS for path in inside if path.name.lower() == split]
    if not trains or not (tests or any(map(_folders_in, trains))):  # a class may be called `train`
        _refuse_splits_as_classes(folder, inside)
        return {"train": folder}
    splits = {"train": _only(trains, folder)}
    if tests:
        splits["test"] = _only([path for path in tests if _same_name(path, tests[0])], folder)
    elif len(inside) > 1:
        raise ValueError(
            f"{str(folder)!r} must hold {_TESTS[0]!r} (or {', '.join(map(repr, _TESTS[1:]))}) "
            f"beside {trains[0].name!r}, got {listed(path.name for path in inside)}: rename the "
            f"folder of the test images, or give the folder {trains[0].name!r} itself and about a "
            "third of it is the test split."
        )
    _tell_unused(splits, folder, name)
    return splits


def _same_name(path: pathlib.Path, other: pathlib.Path) -> bool:
    return path.name.lower() == other.name.lower()


def _only(paths: list[pathlib.Path], folder: pathlib.Path) -> pathlib.Path:
    if len(paths) > 1:
        raise ValueError(
            f"{str(folder)!r} must hold one folder of each split, got "
            f"{listed(path.name for path in paths)}: merge or rename them."
        )
    return paths[0]


def _refuse_splits_as_classes(folder: pathlib.Path, inside: list[pathlib.Path]) -> None:
    """Raises where what would be classes are rather splits, called otherwise than they should."""
    held = {path.name: {below.name for below in _folders_in(path)} for path in inside}
    for name in filter(_LIKE_A_SPLIT.search, held):
        for other in held.keys() - {name}:
            shared = held[name] & held[other]
            if len(shared) > 1:
                raise ValueError(
                    f"The folders {listed((name, other))} in {str(folder)!r} both hold "
                    f"{listed(shared)}, so that they look like splits and would be taken for "
                    "classes: call them 'train' and 'test', or, where they are classes, rename "
                    f"{name!r}."
                )


def _tell_unused(splits: Mapping[str, pathlib.Path], folder: pathlib.Path, name: str) -> None:
    used = [path.name for path in splits.values()]
    beside = [path for path in folder.iterdir() if _is_folder(path) or _is_image(path)]
    unused = [repr(path.name) for path in beside if path.name not in used]
    if unused:
        print(f"{name}: not used beside {' and '.join(map(repr, used))}: {listed(unused)}.")


def find_classes(splits: Mapping[str, pathlib.Path], folder: pathlib.Path) -> tuple[str, ...]:
    """The names of the classes, sorted; raises unless they are two or more, the same in all."""
    names = {split: {path.name for path in _folders_in(at)} for split, at in splits.items()}
    train, test = names["train"], names.get("test", names["train"])
    if train != test:
        raise ValueError(
            f"The folders of training and test images in {str(folder)!r} must hold the same "
            f"classes, got {listed(test - train) or 'none'} missing in "
            f"{splits['train'].name!r} and {listed(train - test) or 'none'} missing in "
            f"{splits['test'].name!r}: add or rename folders."
        )
    if len(train) < 2:
        files = [path for path in files_below(splits["train"]) if ending(path) in ENDINGS]
        raise ValueError(
            f"{str(splits['train'])!r} must hold a folder of images for each of two classes or "
            f"more, got {listed(train) or 'no folder'} and {len(files):,} images: put the images "
            "of each class into a folder of its name."
        )
    return tuple(sorted(train))


def find_images(
    splits: Mapping[str, pathlib.Path], class_names: Sequence[str], folder: pathlib.Path
) -> list[ImageFile]:
    """The files that should be images; warns of the images that are left out."""
    images, other, stray = [], [], []
    for split, at in splits.items():
        stray += [str(path) for path in sorted(at.iterdir()) if _is_image(path)]
        for label, class_name in enumerate(class_names):
            files = files_below(at / class_name)
            images += [ImageFile(path, split, label) for path in files if ending(path) in ENDINGS]
            other += [path for path in files if ending(path) in OTHER_ENDINGS]
    for split, at in splits.items():
        if not any(file.split == split for file in images):
            raise ValueError(
                f"{str(at)!r} must hold JPEG, PNG, BMP or GIF images in the folders of its "
                f"classes, got {len(other):,} images of other kinds: check the path, or convert "
                "them."
            )
    for paths, reason in (
        (other, "are no JPEG, PNG, BMP or GIF files"),
        (stray, "lie outside the folders of the classes"),
    ):
        if paths:
            names = [relative(path, folder) for path in paths]
            warn_of(folder, reason, f"{len(names):,}", names)
    return images


def relative(path: str, folder: pathlib.Path) -> str:
    """The path of a file as seen from `folder`, with slashes."""
    return pathlib.Path(path).relative_to(folder).as_posix()


def listed(names: Iterable[str]) -> str:
    """The first names in full and how many more there are."""
    ordered = sorted(names)
    more = f" and {len(ordered) - _NAMED:,} more" if len(ordered) > _NAMED else ""
    return ", ".join(ordered[:_NAMED]) + more


def warn_of(folder: pathlib.Path, reason: str, count: str, names: Iterable[str]) -> None:
    """Warns, at the line that called `load`, of images that are left out."""
    warnings.warn(
        f"Images in {str(folder)!r} that {reason} are left out ({count}): {listed(names)}.",
        stacklevel=6,
    )


def _folders_in(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in folder.iterdir() if _is_folder(path))


def _is_folder(path: pathlib.Path) -> bool:
    leads_back = path.is_symlink() and path.resolve() in path.parent.resolve().joinpath("x").parents
    return path.is_dir() and not is_hidden(path.name) and not leads_back


def _is_image(path: pathlib.Path) -> bool:
    return path.is_file() and not is_hidden(path.name) and ending(path.name) in ENDINGS
