"""The published PyTorch teachers reach their accuracy on the whole CIFAR-100 test split."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from keras_ssd import checkpoints, freeze, models

MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)


@pytest.fixture(scope="module")
def test_split(real_data):
    images = tfds.load("cifar100", split="test", data_dir=real_data / "tfds", download=False)
    pairs = [(example["image"], example["label"]) for example in tfds.as_numpy(images)]
    return tuple(np.stack(column) for column in zip(*pairs, strict=True))


def published(name, real_data):
    model = models.build(name, num_classes=100, input_shape=(32, 32, 3), mean=MEAN, std=STD)
    checkpoints.load_torch_weights(model, real_data / "teachers" / f"{name}.pth")
    return model


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "top_1"), [("resnet20", 69.62), ("resnet56", 73.42), ("wrn_16_2", 73.62)]
)
def test_top_1(real_data, test_split, name, top_1):
    images, labels = test_split
    assert len(images) == 10_000
    model = published(name, real_data)
    predicted = model.predict(images, batch_size=500, verbose=0).argmax(-1)
    assert abs(100 * np.mean(predicted == labels) - top_1) <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet20", "resnet56"])
def test_a_halved_teacher_is_as_good(real_data, test_split, name):
    images, labels = test_split
    model = published(name, real_data)
    frozen = {"float32": freeze(model), "bfloat16": freeze(model, dtype="bfloat16")}
    predicted = {}
    for dtype, teacher in frozen.items():
        answer = tf.function(teacher)
        logits = [answer(images[i : i + 500])["logits"] for i in range(0, len(images), 500)]
        predicted[dtype] = np.concatenate(logits).argmax(-1)
    right = {dtype: np.mean(classes == labels) for dtype, classes in predicted.items()}
    assert abs(100 * (right["bfloat16"] - right["float32"])) <= 0.1
    assert (predicted["bfloat16"] != predicted["float32"]).any()  # it is another computation
