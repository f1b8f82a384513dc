"""What the gathered similarity of SSKD costs at scale, on paper: bytes a replica and a step.

    python benchmarks/memory_of_scale.py --width 2048

With N replicas, a global batch of G images of V = 4 views (3 of them transformed), projections of
width D (the student's; the teacher's are taken to be as wide) and b bytes a number (4):

    rows of a replica           R         = 3 G / N
    plain projections, all      gathered  = G D b            (the teacher as many again)
    similarity matrix           matrix    = R G b            (one of each network)
    in blocks of C columns      block     = R C b            (one of each network)
    ring all-gather             sent      = received = (N - 1) / N x gathered, teacher and student
    its gradient, all-reduced   sent      = received = 2 (N - 1) / N x gathered, student alone
    all-reduce of P weights     sent      = received = 2 (N - 1) / N x P b

The gradient of `tf.distribute`'s all-gather is an all-reduce of the whole `[G, D]`, of which every
replica keeps its own rows: a reduce-scatter would send half as much. A forward and backward pass
holds a few matrices of that size at a time (cosines, log-probabilities, probabilities and the
gradient of each side); the table counts one a side.
"""

from __future__ import annotations

import argparse
import dataclasses

MIB = 2**20
RESNET50_WEIGHTS = 25_557_032  # with its classifier of 1,000 classes
TRANSFORMED = 3  # views of an image that are compared with the plain ones
TABLE = ((8192, 8), (16384, 16), (16384, 64), (32768, 64), (32768, 128), (65536, 128), (65536, 256))


@dataclasses.dataclass(frozen=True)
class Scale:
    """Bytes on a replica, and over its link in one step.

    Args:
        batch: G, images of the global batch.
        replicas: N.
        width: D of the projections.
        columns: Columns of a block.
        weights: Trainable numbers of the student.
        bytes_each: Of a number.
    """

    batch: int
    replicas: int
    width: int = 2048
    columns: int = 4096
    weights: int = RESNET50_WEIGHTS
    bytes_each: int = 4

    @property
    def rows(self) -> int:
        """Rows of the similarity matrix on a replica."""
        return TRANSFORMED * self.batch // self.replicas

    @property
    def gathered(self) -> int:
        """The plain projections of all replicas, of one network."""
        return self.batch * self.width * self.bytes_each

    @property
    def matrix(self) -> int:
        """One similarity matrix."""
        return self.rows * self.batch * self.bytes_each

    @property
    def block(self) -> int:
        """One block of it."""
        return self.rows * min(self.columns, self.batch) * self.bytes_each

    @property
    def gather_traffic(self) -> int:
        """Sent, and received, to gather the projections of both networks."""
        return 2 * self.gathered * (self.replicas - 1) // self.replicas

    @property
    def gradient_traffic(self) -> int:
        """Sent, and received, to add up the gradients of the student's gathered projections."""
        return 2 * self.gathered * (self.replicas - 1) // self.replicas

    @property
    def weights_traffic(self) -> int:
        """Sent, and received, to add up the gradients of the student's weights."""
        return 2 * self.weights * self.bytes_each * (self.replicas - 1) // self.replicas


def table(width: int, columns: int, sizes: tuple[tuple[int, int], ...] = TABLE) -> str:
    """The figures of several scales as a Markdown table, in MiB."""
    lines = [
        f"| G | N | gathered, both | matrix, both | in blocks of {columns:,}, both "
        "| all-gather | its gradient | gradient of ResNet-50 |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for batch, replicas in sizes:
        scale = Scale(batch, replicas, width, columns)
        figures = (
            2 * scale.gathered,
            2 * scale.matrix,
            2 * scale.block,
            scale.gather_traffic,
            scale.gradient_traffic,
            scale.weights_traffic,
        )
        cells = [f"{batch:,}", str(replicas), *(f"{figure / MIB:,.0f}" for figure in figures)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=2048, help="of the projections")
    parser.add_argument("--columns", type=int, default=4096, help="of a block")
    parser.add_argument("--batch", type=int, help="one global batch instead of the table")
    parser.add_argument("--replicas", type=int, default=256, help="of that batch")
    arguments = parser.parse_args()
    sizes = ((arguments.batch, arguments.replicas),) if arguments.batch else TABLE
    print(table(arguments.width, arguments.columns, sizes))


if __name__ == "__main__":
    main()
