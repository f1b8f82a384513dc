"""How much the features of a network tell about other images: a dense layer on a frozen network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_ssd.arguments import check_count
from keras_ssd.data.order import check_seed
from keras_ssd.evaluation.features import Features
from keras_ssd.optimizers import SGD
from keras_ssd.schedules import steps_at

Vectors = tuple[np.ndarray, np.ndarray]  # features [N, width] and class numbers [N]

_DEVIATION = 0.01  # of the first weights of the layer, in HSAKD's code


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """What `linear_probe` found.

    Attributes:
        accuracy: Share of the test images that the layer of the **last** epoch classifies rightly.
        best_accuracy: The highest share of all epochs: chosen on the test images, so too high. What
            HSAKD's code reports.
        best_epoch: The first epoch that reached it, from 1.
        num_classes: Classes of the layer.
        feature_width: Length of a feature vector.
        train_images: Labelled training images.
        test_images: Labelled test images.
        history: A number an epoch under `loss` and `accuracy` (means over the training images,
            while the layer is trained) and `test_accuracy` (at the end of the epoch).
        kernel: The layer's weights, float32 `[feature_width, num_classes]`.
        bias: Its bias, float32 `[num_classes]`.
        model: From what the network takes to the new logits: a frozen copy of the network and the
            layer. `export_student` takes it.
    """

    accuracy: float
    best_accuracy: float
    best_epoch: int
    num_classes: int
    feature_width: int
    train_images: int
    test_images: int
    history: Mapping[str, tuple[float, ...]] = field(repr=False)
    kernel: np.ndarray = field(repr=False)
    bias: np.ndarray = field(repr=False)
    model: keras.Model = field(repr=False)


def linear_probe(
    network: Any,
    train: Any,
    test: Any,
    *,
    embedding: str | None = None,
    num_classes: int | None = None,
    epochs: int = 100,
    batch_size: int = 64,
    learning_rate: float = 0.1,
    drop_epochs: Sequence[int] = (30, 60, 90),
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    seed: int = 0,
) -> LinearProbe:
    """Trains a dense layer on a network's features of other images, and nothing else.

    The network runs in inference mode, once for each image, on copies of its weights: it stays bit
    for bit as it is. Heads and classifier are left out. Its features are kept as float32 vectors,
    `4 * width` bytes an image. Nothing is selected: `accuracy` is that of the last epoch.

    The images are seen as they are. Random crops would make the network run in every epoch, and
    features computed once are what makes the probe cheap. A network with its own normalisation
    takes raw images and normalises them as it did its training images.

    Args:
        network: Any built Keras model, with or without heads; a Distiller (its student); or a
            `FrozenTeacher`, which stands for the model that was frozen, in that model's precision.
            A subclassed model must return a dict with its features under `embedding`.
        train: A `tf.data.Dataset` of batches (images `[B, H, W, C]`, labels), such as the `train`
            of `data.load` (which leaves a last batch out that is not full), or a pair of arrays.
            Labels are integers or one-hot rows; images labelled -1 (a row of zeros) are left out.
        test: Likewise, the images that are counted.
        embedding: The layer whose output `(rows, width)` the features are, nested ones as
            `backbone/pool`; of a subclassed model the name of an output. By default the output
            named `embedding`, else the layer of that name, else what goes into the last Dense
            layer.
        num_classes: Int >= 2. By default the highest training label and one.
        epochs: Int >= 1. No epoch runs the network.
        batch_size: Int >= 1, feature vectors a step; the last batch may be smaller.
        learning_rate: Rate of epoch 0, a finite number >= 0.
        drop_epochs: Epochs, from 0, at whose start the rate is multiplied by 0.1.
        momentum: Number in 0..1 of Nesterov's momentum; 0 for none.
        weight_decay: Finite number >= 0, L2 on kernel and bias.
        seed: Integer in [0, 2^32). Chooses the first weights (normal, deviation 0.01; bias 0) and
            the orders: `numpy.random.default_rng([seed, epoch]).permutation(images)`.

    Returns:
        Accuracies, history, the layer's weights, and the network with the new layer.

    Raises:
        TypeError: If `network`, `train` or `test` is of the wrong kind.
        ValueError: If an argument is out of range; images, labels or features do not fit; the
            network was changed since it was frozen; or the training diverges.

    Source: linear evaluation of Yang et al. 2021, arXiv:2107.13715, with the numbers of the
    authors' code. It differs: its training images are random resized crops and flips, images are
    normalised by constants of the new data set, and the best epoch on the test images is reported.
    """
    check_seed(seed)
    check_count("epochs", epochs)
    check_count("batch_size", batch_size)
    if num_classes is not None:
        check_count("num_classes", num_classes, smallest=2)
    if tf.distribute.has_strategy():
        raise ValueError("Leave the scope of the tf.distribute strategy before probing.")

    def optimizer(steps_per_epoch: int) -> SGD:
        rate = steps_at(learning_rate, epochs=drop_epochs, steps_per_epoch=steps_per_epoch)
        return SGD(rate, momentum=momentum, weight_decay=weight_decay, nesterov=momentum > 0)

    optimizer(1)  # refuses what is out of range before the network runs
    features = Features(network, embedding)
    given = {"train": features.of(train, "train"), "test": features.of(test, "test")}
    classes = _checked_classes(given, num_classes)
    layer = _dense(given["train"][0].shape[1], classes, seed)
    history = _train(
        layer, optimizer, given, epochs=int(epochs), batch_size=int(batch_size), seed=seed
    )
    best = int(np.argmax(history["test_accuracy"]))
    kernel, bias = layer.get_weights()
    return LinearProbe(
        accuracy=history["test_accuracy"][-1],
        best_accuracy=history["test_accuracy"][best],
        best_epoch=best + 1,
        num_classes=classes,
        feature_width=len(kernel),
        train_images=len(given["train"][0]),
        test_images=len(given["test"][0]),
        history=history,
        kernel=kernel,
        bias=bias,
        model=features.classified_by(layer),
    )


def _checked_classes(given: Mapping[str, Vectors], num_classes: int | None) -> int:
    classes = int(given["train"][1].max()) + 1 if num_classes is None else int(num_classes)
    if classes < 2:
        raise ValueError("All training images have the label 0: a probe needs two classes.")
    for part, (_, labels) in given.items():
        if labels.max() >= classes:
            known = "that `train` has" if num_classes is None else "of `num_classes`"
            raise ValueError(
                f"`{part}` has the label {labels.max()}, beyond the {classes} classes {known}: "
                "count classes from 0, or pass `num_classes=`."
            )
    return classes


def _dense(width: int, classes: int, seed: int) -> keras.layers.Dense:
    normal = keras.initializers.RandomNormal(stddev=_DEVIATION, seed=int(seed))
    layer = keras.layers.Dense(classes, kernel_initializer=normal, dtype="float32", name="logits")
    layer.build((None, width))
    return layer


def _train(
    layer: keras.layers.Dense,
    optimizer: Callable[[int], SGD],
    given: Mapping[str, Vectors],
    *,
    epochs: int,
    batch_size: int,
    seed: int,
) -> dict[str, tuple[float, ...]]:
    """Trains the layer; returns its history."""
    test_features, test_labels = map(tf.constant, given["test"])
    images = len(given["train"][0])
    run_epoch = _epoch(layer, optimizer(-(-images // batch_size)), given["train"], batch_size)
    rows = []
    for epoch in range(epochs):
        order = np.random.default_rng([seed, epoch]).permutation(images)
        loss, right = run_epoch(tf.constant(order))
        if not np.isfinite(loss):
            raise ValueError(
                f"The loss is {float(loss)} in epoch {epoch}: lower `learning_rate`, "
                "the features are large."
            )
        test_right = np.mean(np.argmax(layer(test_features), axis=-1) == test_labels)
        rows.append((float(loss) / images, int(right) / images, float(test_right)))
    return dict(zip(("loss", "accuracy", "test_accuracy"), zip(*rows, strict=True), strict=True))


def _epoch(
    layer: keras.layers.Dense, optimizer: SGD, train: Vectors, batch_size: int
) -> Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]:
    """A compiled function from an order to the summed loss and the number of right answers."""
    features, labels = map(tf.constant, train)
    optimizer.build(layer.trainable_variables)
    weights = [variable.value for variable in layer.trainable_variables]

    def step(rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        wanted = tf.gather(labels, rows)
        with tf.GradientTape() as tape:
            logits = layer(tf.gather(features, rows))
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(wanted, logits)
            loss = tf.reduce_mean(losses)
        optimizer.apply(tape.gradient(loss, weights), layer.trainable_variables)
        right = tf.argmax(logits, axis=-1) == wanted
        return tf.reduce_sum(losses), tf.math.count_nonzero(right)

    def epoch(order: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        def body(start: tf.Tensor, *sums: tf.Tensor) -> tuple[tf.Tensor, ...]:
            more = step(order[start : start + batch_size])
            return start + batch_size, *(a + b for a, b in zip(sums, more, strict=True))

        first = tf.constant(0), tf.constant(0.0), tf.constant(0, tf.int64)
        size = tf.size(order)
        _, loss, right = tf.while_loop(
            lambda start, *_: start < size, body, first, parallel_iterations=1
        )
        return loss, right

    return tf.function(epoch, autograph=False)
