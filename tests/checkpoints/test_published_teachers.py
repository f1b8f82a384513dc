"""The published PyTorch teachers reach their accuracy on the whole CIFAR-100 test split."""

import numpy as np
import pytest
import tensorflow_datasets as tfds

from keras_ssd import checkpoints, models

MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)


@pytest.fixture(scope="module")
def test_split(real_data):
    images = tfds.load("cifar100", split="test", data_dir=real_data / "tfds", download=False)
    pairs = [(example["image"], example["label"]) for example in tfds.as_numpy(images)]
    return tuple(np.stack(column) for column in zip(*pairs, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "top_1"), [("resnet20", 69.62), ("resnet56", 73.42)])
def test_top_1(real_data, test_split, name, top_1):
    images, labels = test_split
    assert len(images) == 10_000
    model = models.build(name, num_classes=100, input_shape=(32, 32, 3), mean=MEAN, std=STD)
    checkpoints.load_torch_weights(model, real_data / "teachers" / f"{name}.pth")
    predicted = model.predict(images, batch_size=500, verbose=0).argmax(-1)
    assert abs(100 * np.mean(predicted == labels) - top_1) <= 0.05
