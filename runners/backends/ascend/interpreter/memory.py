"""Host views of tensors on the stand-in's device, whose memory is the process's heap."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from graph_gemma.graph_model.ascend.ge_graph import GeGraphError


def host_view(tensor: Tensor) -> Tensor:
    """A CPU tensor over the same memory, without a copy; the tensor itself if it is on the CPU already.

    Valid only on the stand-in and as long as `tensor` lives. Raises GeGraphError unless it is contiguous.
    """
    if tensor.device.type == "cpu":
        return tensor
    if not tensor.is_contiguous():
        raise GeGraphError(f"an input of shape {tuple(tensor.shape)} is not contiguous")
    if tensor.numel() == 0:
        return torch.empty(tensor.shape, dtype=tensor.dtype)
    size = tensor.numel() * tensor.element_size()
    memory = (ctypes.c_char * size).from_address(tensor.data_ptr())
    return torch.frombuffer(memory, dtype=tensor.dtype).view(tensor.shape)
