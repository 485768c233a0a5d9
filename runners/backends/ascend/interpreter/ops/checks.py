"""Checks of inputs and attributes that op functions share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from graph_gemma.graph_model.ascend.ge_graph import GE_DTYPES, GeGraphError

FLOATS = (torch.float16, torch.bfloat16, torch.float32)
HALVES = (torch.float16, torch.bfloat16)


def require(condition: bool, message: str) -> None:
    if not condition:
        raise GeGraphError(message)


def require_value(attribute: str, value: object, *known: object) -> None:
    """For attributes whose other values give results that are not modelled here."""
    if value not in known:
        raise GeGraphError(f"{attribute} {value!r}; the interpreter knows {' and '.join(map(repr, known))}")


def require_dtype(name: str, tensor: Tensor, *dtypes: torch.dtype) -> None:
    if tensor.dtype not in dtypes:
        legal = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise GeGraphError(f"{name} is {tensor.dtype}; the op takes {legal}")


def require_same_dtype(**tensors: Tensor | None) -> None:
    """GE's binary ops do not promote: their prototypes give all inputs one type."""
    present = {name: tensor.dtype for name, tensor in tensors.items() if tensor is not None}
    if len(set(present.values())) > 1:
        raise GeGraphError(f"inputs must have one dtype, they have {present}")


def require_indices(name: str, indices: Tensor, size: int) -> None:
    """An index outside its dimension is undefined on the chip (it reads or writes foreign memory)."""
    if indices.numel():
        low, high = torch.aminmax(indices)
        if low < 0 or high >= size:
            raise GeGraphError(
                f"{name} holds values from {int(low)} to {int(high)}; legal are 0 to {size - 1}, anything else is "
                "undefined on the chip"
            )


def ge_dtype(number: int) -> torch.dtype:
    """The torch dtype of a GE DataType number, as attributes carry it."""
    if number not in GE_DTYPES:
        raise GeGraphError(f"GE dtype {number} is not known to the interpreter")
    return GE_DTYPES[number]


def ints(tensor: Tensor) -> list[int]:
    """The values of a constant input such as a shape or an axis."""
    return tensor.reshape(-1).tolist()


def one_int(tensor: Tensor) -> int:
    values = ints(tensor)
    require(len(values) == 1, f"expected one value, got {values}")
    return values[0]


def normal_dim(dim: int, rank: int) -> int:
    require(-rank <= dim < rank, f"dimension {dim} of a tensor of rank {rank}")
    return dim % rank


def normal_dims(dims: Sequence[int], rank: int) -> list[int]:
    return [normal_dim(dim, rank) for dim in dims]
