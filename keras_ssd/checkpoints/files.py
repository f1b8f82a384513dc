"""Arrays out of PyTorch and safetensors files, without running any code that a file may hold."""

from __future__ import annotations

import argparse
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

CONTAINER_KEYS = ("state_dict", "model", "net")  # SSKD; CRD; HSAKD


def read_state_dict(source: str | os.PathLike | Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Read the named arrays of a checkpoint.

    Args:
        source: Path of a file that `torch.save` wrote (in either layout, on any device) or of a
            `.safetensors` file, or a mapping from names to NumPy arrays or PyTorch tensors. The
            names may be one level down, under "state_dict", "model" or "net", and may all begin
            with "module." (data-parallel training), which is taken off.

    Returns:
        Dictionary from names to arrays.

    Raises:
        TypeError: If `source` is neither.
        ValueError: If the file cannot be read without running code, or holds no named arrays.
        ImportError: If the package that reads the file is not installed.
    """
    if not isinstance(source, (str, os.PathLike, Mapping)):
        raise TypeError(
            "`source` must be a path or a mapping from names to arrays, got a "
            f"{type(source).__name__}: of a PyTorch module give `module.state_dict()`."
        )
    content = source if isinstance(source, Mapping) else _read_file(pathlib.Path(source))
    for key in CONTAINER_KEYS:
        if isinstance(content, Mapping) and _is_state_dict(content.get(key)):
            content = content[key]
            break
    if not _is_state_dict(content):
        origin = "The mapping" if isinstance(source, Mapping) else f"The file {source}"
        raise ValueError(
            f"{origin} holds no dictionary from names to arrays, neither directly nor under "
            f"{', '.join(map(repr, CONTAINER_KEYS))}: save the network's `state_dict()`."
        )
    prefix = "module." if all(name.startswith("module.") for name in content) else ""
    return {name.removeprefix(prefix): _as_numpy(value) for name, value in content.items()}


def _read_file(path: pathlib.Path) -> Any:
    try:
        return _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    except ImportError as error:
        raise ImportError(
            f"Reading {path} needs a package that is not installed ({error}): "
            "pip install 'keras-ssd[checkpoints]'."
        ) from error
    except (FileNotFoundError, IsADirectoryError, PermissionError):
        raise
    except Exception as error:  # a damaged file can fail in any way
        raise ValueError(
            f"{path} is damaged, or holds Python objects that are not unpickled because they could "
            "run code; save the network's `state_dict()` with `torch.save` or safetensors."
        ) from error


def _read_safetensors(path: pathlib.Path) -> Any:
    import safetensors.numpy

    return safetensors.numpy.load_file(path)


def _read_torch(path: pathlib.Path) -> Any:
    import torch

    # CRD's `*_last.pth` holds the arguments of the run beside the weights.
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(key, str) and hasattr(value[key], "shape") for key in value)
    )


def _as_numpy(value: Any) -> np.ndarray:
    if not hasattr(value, "detach"):
        return np.asarray(value)
    tensor = value.detach().cpu()
    return (tensor.float() if "bfloat16" in str(tensor.dtype) else tensor).numpy()
