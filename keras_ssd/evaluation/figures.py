"""Pictures; they need the extra `keras-ssd[quickstart]` (matplotlib)."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping

import keras
import tensorflow as tf

from keras_ssd import losses
from keras_ssd.batch import Batch
from keras_ssd.teacher import named
from keras_ssd.views import Rotations


def similarity_matrices(
    networks: Mapping[str, keras.Model], images: tf.Tensor, path: str | os.PathLike
) -> pathlib.Path:
    """Draws the similarity matrices of several networks on one batch, side by side.

    Row j of a matrix is a quarter turn of an image, column k an upright image; a cell is the cosine
    of their projections. In a network that has learned the pretext, a view is nearest to its own
    image: three bright cells a column, on a steep diagonal.

    Args:
        networks: Networks with a `projection` output (`with_projection`), by the titles to show.
        images: `[B, side, side, channels]` as the networks take them, a dozen or so.
        path: Where the PNG is written.

    Returns:
        The path.

    Raises:
        ImportError: If matplotlib is missing.
        ValueError: If there is no network, or one without projection.

    Source: Xu et al. 2020 (arXiv:2006.07114), section 3.1: the matrix A.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError(
            "Pictures need matplotlib: pip install 'keras-ssd[quickstart]'."
        ) from error
    from matplotlib.figure import Figure

    if not networks:
        raise ValueError("There is no network to draw: give `networks` as {title: network}.")
    matrices = {title: _similarities(network, images) for title, network in networks.items()}
    figure = Figure(figsize=(4.2 * len(matrices) + 0.8, 6.4), layout="constrained")
    axes = figure.subplots(1, len(matrices), squeeze=False)[0]
    for axis, (title, matrix) in zip(axes, matrices.items(), strict=True):
        picture = axis.imshow(matrix, vmin=-1, vmax=1, cmap=matplotlib.colormaps["RdBu_r"])
        picture.axes.set_aspect("auto")
        axis.set(title=title, xlabel="upright image", ylabel="turned view (3 an image)")
    figure.colorbar(picture, ax=list(axes), label="cosine similarity", shrink=0.8)
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=120)
    return path


def _similarities(network: keras.Model, images: tf.Tensor) -> tf.Tensor:
    outputs = named(network(Rotations()(images), training=False), "network")
    if "projection" not in outputs:
        raise ValueError(
            f"The network {network.name!r} has no `projection` output, only {sorted(outputs)}: "
            "attach a head with `with_projection`."
        )
    projections = outputs["projection"]
    batch = Batch(None, None, None, {}, outputs, Rotations.num_views)
    turned, upright = (batch.select(projections, rows) for rows in ("transformed", "plain"))
    return losses.cosine_similarity(turned, upright)
