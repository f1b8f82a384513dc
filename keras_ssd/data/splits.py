"""What `load` returns: the data sets and what is known of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from keras_ssd.data.few_shot import stratified_subset
from keras_ssd.data.label_noise import symmetric_noise
from keras_ssd.data.training import Training


@dataclass(frozen=True)
class DatasetInfo:
    """What a network and a report need to know of a data set.

    Attributes:
        name: The name given to `load`; of a manifest that of its file.
        class_names: One name a class, in the order of the labels; of a manifest those of the
            network that chose its images, or numbers.
        input_shape: Height, width and channels of an image.
        mean: Mean of each channel, of values scaled to 0..1.
        std: Standard deviation of each channel, of values scaled to 0..1.
        counts: Images in `train`, `validation` and `test`, and, after `with_unlabeled`, how many
            there are in `unlabeled`; `train` counts those with labels alone.
        fingerprint: SHA-256 of the images and labels as loaded, before anything is held out or
            changed; of a streamed set that of its name, version and sizes; of a folder beyond
            memory that of the names and sizes of its files and of their labels; of a manifest that
            of its bytes, which hold the SHA-256 of each image.
        changes: What was done to the training images since, in order, such as
            `("few_shot(0.25, seed=0)", "with_unlabeled('mined.jsonl', share=0.75)")`.
    """

    name: str
    class_names: tuple[str, ...]
    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    counts: Mapping[str, int]
    fingerprint: str
    changes: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)


@dataclass(frozen=True, eq=False)
class Splits:
    """Data sets of (uint8 images `[B, H, W, C]`, int32 labels `[B]`), and what they hold.

    Those of a manifest are images alone: `fit` takes them as they are.

    Attributes:
        train: Shuffled anew each epoch (`callbacks.FollowEpoch`), full batches only; its length
            `len(train)` is the number of steps in an epoch.
        validation: Held out of the training images, in fixed order; None for `validation=0` and
            for a manifest.
        test: In fixed order; None for a manifest.
        info: Names, shape, constants to normalise by, counts, fingerprint and changes.
    """

    train: tf.data.Dataset
    validation: tf.data.Dataset | None
    test: tf.data.Dataset | None
    info: DatasetInfo
    _training: Training = field(repr=False)

    def few_shot(self, fraction: float, seed: int = 0) -> Splits:
        """The same data sets with fewer training images, the same share of each class.

        After `with_unlabeled` the labelled images alone become fewer; a batch holds as many
        unlabeled ones as before. Validation and test stay as they are, and so do `info.mean` and
        `info.std`. An epoch has fewer steps. The choice depends on the labels, `fraction` and
        `seed` alone, so not on the seed of `load` where nothing is held out (`validation=0`);
        after `label_noise` it goes by the noisy labels. Labels of a streamed set are read from all
        its files first.

        Args:
            fraction: Share in (0, 1] of the images in `train`; 1 keeps all.
            seed: Integer in [0, 2^32).

        Returns:
            New `Splits` on the same images.

        Raises:
            ValueError: If an argument is out of range, a class would be left without an image,
                less than one batch would be left, or the images have no labels.

        Source: Yang et al. 2021, arXiv:2107.13715 (fractions 0.25, 0.5 and 0.75 of CIFAR-100, seed
        0). Their subset is this choice in the order of the original file; TFDS stores the images in
        another order, so that other images are chosen.
        """
        fraction, seed = _plain(fraction), _plain(seed)
        self._require_labels("few_shot", "mine fewer images (`k`)")
        training = self._training
        kept = stratified_subset(training.images.labels[training.rows], fraction, seed)
        if len(kept) < training.batch_size:
            raise ValueError(
                f"`fraction`={fraction} keeps {len(kept)} training images, less than one batch of "
                f"{training.batch_size}{' labelled ones' if training.unlabeled else ''}: give a "
                "larger fraction, or load with a smaller `batch_size`."
            )
        fewer = dataclasses.replace(training, rows=training.rows[kept])
        return self._with(fewer, f"few_shot({fraction}, {seed=})")

    def label_noise(self, rate: float, seed: int = 0) -> Splits:
        """The same data sets with some wrong training labels (symmetric noise).

        Exactly `round(rate * n)` of the n training images get another class, drawn uniformly from
        the other C - 1; validation and test keep the labels they have. Where the classes are drawn
        from all C, as other code does, a rate of r leaves r * (C - 1) / C of the labels wrong. A
        second call changes the noisy labels, with one seed those of the same images. What
        `with_unlabeled` added has no label and is not counted. Labels of a streamed set are read
        from all its files first.

        Args:
            rate: Share in [0, 1] of the images in `train`.
            seed: Integer in [0, 2^32): chooses the images and what their labels become.

        Returns:
            New `Splits` on the same images.

        Raises:
            ValueError: If an argument is out of range, or a training image has no label.
        """
        rate, seed = _plain(rate), _plain(seed)
        self._require_labels("label_noise", "leave it out")
        images, rows = self._training.images, self._training.rows
        labels = images.labels.copy()
        labels[rows] = symmetric_noise(labels[rows], self.info.num_classes, rate, seed)
        noisy = dataclasses.replace(self._training, images=images.relabeled(labels))
        return self._with(noisy, f"label_noise({rate}, {seed=})")

    def with_unlabeled(self, unlabeled: Splits, share: float | None = None) -> Splits:
        """The same data sets with unlabeled images between the labelled ones of each batch.

        A batch is as large as before. `round(share * batch_size)` of its images, the same number in
        each, are unlabeled: their label is -1, which no term and no metric that goes by labels
        counts. They are spread evenly over the batch, so that the parts of two replicas hold about
        as many.

        An epoch shows each labelled image once, so it has more steps than before. The unlabeled
        images go on from epoch to epoch through permutations of their own (by the seed of
        `unlabeled`): all are seen equally often, however many there are. What a step sees is a
        function of both seeds, the epoch and the step alone.

            labelled = data.load("cifar100", batch_size=64)
            mined = data.load("mined.jsonl", batch_size=64, data_dir="data")
            mixed = labelled.with_unlabeled(mined, share=0.75)  # 16 with a label, 48 without
            distiller.fit(mixed.train, epochs=100)

        Validation and test, `info.mean` and `info.std` stay those of the labelled images. Whether
        unlabeled images show what the test split shows is not looked at: mining does that.

        Args:
            unlabeled: The images in its `train` are added; its labels, if it has any, are dropped,
                and so are its validation and test. Its `batch_size` has no meaning here.
            share: Of the unlabeled images in a batch, in (0, 1); None for their share in all
                images together, so that both are seen equally often.

        Returns:
            New `Splits` on the same images. `info.counts["unlabeled"]` is how many there are.

        Raises:
            ValueError: If `share` leaves no labelled or no unlabeled image in a batch, the images
                differ in shape, these are unlabeled themselves, or unlabeled ones were added
                before, here or there.
            TypeError: If `unlabeled` is not what `data.load` returns.
        """
        share = _plain(share)
        self._check_added(unlabeled)
        training = self._training.with_unlabeled(unlabeled._training, share)
        total, size = self._training.batch_size, len(unlabeled._training.rows)
        count = total - training.batch_size
        share = count / total if share is None else share
        name = ".".join([repr(unlabeled.info.name), *unlabeled.info.changes])
        mixed = self._with(training, f"with_unlabeled({name}, {share=})")
        print(
            f"{self.info.name}: {count} of the {total} images of a batch are unlabeled ({size:,} "
            f"of {unlabeled.info.name}); an epoch has {training.steps:,} steps, which show each "
            f"labelled image once and each unlabeled one {training.steps * count / size:.2g} times."
        )
        return mixed

    def with_index(self) -> Splits:
        """The same data sets, each training image with its place: x is `{"image", "index"}`.

        The n labelled training images have the places 0 to n - 1, the same ones in every epoch and
        run; `labels` are in that order. Images of `with_unlabeled` have the place -1. What needs it
        is a memory of the training images, as `objectives.ContrastiveRepresentation` has. Choose
        fewer images (`few_shot`) before: that gives other places.

        Returns:
            New `Splits` on the same images; validation and test stay as they are.

        Raises:
            ValueError: If the images have no labels.
        """
        self._require_labels("with_index", "give `index` in a data set of your own")
        return self._with(dataclasses.replace(self._training, indexed=True), "with_index()")

    @property
    def labels(self) -> np.ndarray:
        """The int32 label of each training image, by its place (`with_index`)."""
        self._require_labels("labels", "leave them out")
        return self._training.images.labels[self._training.rows]

    def _check_added(self, unlabeled: Any) -> None:
        if not isinstance(unlabeled, Splits):
            raise TypeError(f"`unlabeled` must be what `data.load` returns, got {unlabeled!r}.")
        self._require_labels("with_unlabeled", "call it on labelled images and give these to it")
        if self._training.unlabeled is not None or unlabeled._training.unlabeled is not None:
            raise ValueError(
                "Unlabeled images are added once, and "
                f"{'these' if self._training.unlabeled else 'those of `unlabeled`'} hold some "
                "already: mine all pools into one manifest."
            )
        shapes = self.info.input_shape, unlabeled.info.input_shape
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"Labelled and unlabeled images must have one shape, got {shapes[0]} of "
                f"{self.info.name!r} and {shapes[1]} of {unlabeled.info.name!r}: load one of them "
                "with `image_size=`."
            )

    def _require_labels(self, method: str, advice: str) -> None:
        if not self._training.labeled:
            raise ValueError(
                f"`{method}` needs labels, and the images of {self.info.name!r} have none: "
                f"{advice}."
            )

    def _with(self, training: Training, change: str) -> Splits:
        counts = {**self.info.counts, "train": len(training.rows)}
        if training.unlabeled is not None:
            counts["unlabeled"] = len(training.unlabeled.rows)
        info = dataclasses.replace(self.info, counts=counts, changes=(*self.info.changes, change))
        return dataclasses.replace(self, train=training.dataset(), info=info, _training=training)


def _plain(number: Any) -> Any:
    """A NumPy number as one of Python, so that what is noted in `changes` gives the same again."""
    return number.item() if isinstance(number, np.generic) else number
