"""Weights of the papers' PyTorch code, in and out."""

from keras_ssd.checkpoints.torch_weights import load_torch_weights, to_torch_state_dict

__all__ = ["load_torch_weights", "to_torch_state_dict"]
