"""Folders of small images, and what `load` makes of them."""

from data.contents import contents
from data.image_bytes import png
from keras_ssd import data


def write(folder, files):
    """Writes files (path: bytes) into a folder and returns it."""
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


def numbered(classes="ab", count=6, start=0, prefix=""):
    """Files `CLASS/i.png` that hold the number i, `count` a class."""
    names = [name for name in classes for _ in range(count)]
    return {f"{prefix}{name}/{i}.png": png(i) for i, name in enumerate(names, start)}


def train_and_test(test="test", classes="ab"):
    return numbered(classes, prefix="train/") | numbered(classes, 2, 100, prefix=f"{test}/")


def load(folder, **arguments):
    return data.load(folder, **({"batch_size": 1, "validation": 0} | arguments))


def values(dataset):
    """Value of the first pixel and label of each image, sorted."""
    return sorted((image[0], label) for image, label in contents(dataset))
