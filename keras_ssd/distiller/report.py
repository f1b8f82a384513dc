"""CheckReport: what `Distiller.check` found, and the table it prints."""

from __future__ import annotations

import dataclasses
import math
import textwrap
from collections.abc import Sequence

_WIDTH = 80


@dataclasses.dataclass(frozen=True)
class NetworkFacts:
    """A network, as one batch shows it.

    Attributes:
        part: `"teacher"`, `"stored teacher"` or `"student"`.
        name: The model's name; empty where there is no model.
        precisions: The dtypes that layers with weights compute in; empty where they are not known.
        expects: `"raw"` (0..255), `"normalised"`, `"preprocessing"` or `"unknown"`.
        standardizes: Whether it begins with a mean and a deviation for each channel.
        seen: Means and standard deviations of the images' channels behind the network's own
            normalisation; None without one.
        accuracy: Share of the labelled plain images that it puts into their class; None without
            labels, or where its classes are others than the student's.
        entropy: Mean entropy of its class distributions of plain images, in nats; None without
            logits.
        classes: Number of classes (the entropy is at most their logarithm), or None.
    """

    part: str
    name: str
    precisions: tuple[str, ...]
    expects: str
    standardizes: bool
    seen: tuple[tuple[float, ...], tuple[float, ...]] | None
    accuracy: float | None
    entropy: float | None
    classes: int | None


@dataclasses.dataclass(frozen=True)
class TermFacts:
    """A term of the student's loss, or of that of the teacher's head, on one batch.

    Attributes:
        name: The name under which it is shown, or `"student's own"` for regularisers, `add_loss`
            and `compile(loss=)`.
        value: The bare mean.
        weight: What it is multiplied by in the loss.
        rows: The weight of the rows that it counts; None for the student's own.
        gradient: Norm of the gradient of the weighted term on the variables of who learns.
        cosine: Cosine of that gradient with the gradient of the loss, in -1..1; 0 where it is 0.
    """

    name: str
    value: float
    weight: float
    rows: float | None
    gradient: float
    cosine: float


@dataclasses.dataclass(frozen=True, repr=False)
class CheckReport:
    """What `Distiller.check` found on one batch; `str` gives the table.

    Attributes:
        warnings: Sentences, each with what to do; empty where nothing was found.
        image_shape: Height, width and channels.
        image_range: The smallest and the largest value.
        images: Their number, B.
        rows: The number of rows that the views make of them.
        replicas: On how many the Distiller trains; the batch is that of all.
        steps_per_epoch: None where it is not known.
        learning_rate: That of the next step.
        networks: Teacher (if one ran) and student.
        agreement: Share of plain images that both put into one class; None without a teacher of the
            same classes.
        terms: One a term of the loss.
        loss: The loss.
        gradient: Norm of its gradient.
        head_terms: One a term that trains the teacher's head; empty where it does not learn.
    """

    warnings: tuple[str, ...]
    image_shape: tuple[int, ...]
    image_range: tuple[float, float]
    images: int
    rows: int
    replicas: int
    steps_per_epoch: int | None
    learning_rate: float
    networks: tuple[NetworkFacts, ...]
    agreement: float | None
    terms: tuple[TermFacts, ...]
    loss: float
    gradient: float
    head_terms: tuple[TermFacts, ...]

    def __str__(self) -> str:
        """The table, warnings first."""
        warnings = [
            textwrap.fill(warning, _WIDTH, initial_indent="! ", subsequent_indent="  ")
            for warning in self.warnings
        ]
        networks = _table(_NETWORK_COLUMNS, [_network_row(network) for network in self.networks])
        if self.agreement is not None:
            networks += f"\nteacher agreement {100 * self.agreement:.1f} %"
        terms = [
            *(_term_row(term) for term in self.terms),
            ("loss", f"{self.loss:.4g}", "", "", f"{self.gradient:.3g}", ""),
        ]
        blocks = [
            "\n".join(warnings) or "Nothing to warn of.",
            self._batch(),
            networks,
            _table(("term", *_TERM_COLUMNS), terms),
        ]
        if self.head_terms:
            of_head = [_term_row(term) for term in self.head_terms]
            blocks.append(_table(("term of the teacher's head", *_TERM_COLUMNS), of_head))
        return "\n\n".join(blocks)

    def _batch(self) -> str:
        """The batch, an epoch and the learning rate in a line."""
        low, high = self.image_range
        size = "x".join(map(str, self.image_shape))
        steps = "?" if self.steps_per_epoch is None else f"{self.steps_per_epoch:,}"
        return (
            f"{self.images} images {size} in {low:.4g}..{high:.4g}, "
            f"{self.rows} rows; {steps} steps an epoch, learning rate {self.learning_rate:.4g}"
            + (f", {self.replicas} replicas" if self.replicas > 1 else "")
        )

    def __repr__(self) -> str:
        """A short form: the table is `print(report)`."""
        return f"<CheckReport: {len(self.warnings)} warning(s)>"


_NETWORK_COLUMNS = (
    "network",
    "precision",
    "expects",
    "sees",
    "accuracy",
    "entropy",
)
_TERM_COLUMNS = ("value", "weight", "rows", "gradient", "cosine")


def _network_row(network: NetworkFacts) -> tuple[str, ...]:
    seen, accuracy = network.seen, network.accuracy
    return (
        f"{network.part} {network.name}".rstrip(),
        "/".join(network.precisions) or "unknown",
        network.expects,
        "" if seen is None else " +- ".join(f"{sum(x) / len(x):.2f}" for x in seen),
        "" if accuracy is None else f"{100 * accuracy:.1f} %",
        _entropy(network.entropy, network.classes),
    )


def _entropy(entropy: float | None, classes: int | None) -> str:
    if entropy is None or classes is None:
        return ""
    return f"{entropy:.2f} of {math.log(classes):.2f}"


def _term_row(term: TermFacts) -> tuple[str, ...]:
    rows = "" if term.rows is None else f"{term.rows:g}"
    numbers = f"{term.value:.4g}", f"{term.weight:g}", rows
    return (term.name, *numbers, f"{term.gradient:.3g}", f"{term.cosine:.2f}")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest entry, the first one left and the others right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return "\n".join(
        "  ".join(
            entry.ljust(width) if i == 0 else entry.rjust(width)
            for i, (entry, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (header, *rows)
    )
