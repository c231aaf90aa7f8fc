# SPDX-License-Identifier: Apache-2.0
"""Checks of arguments, shared by the public functions, the modules and the fake kernels.

Every message names the argument, what it must be and what it was.  Wrong types and dtypes are
TypeError, everything else is ValueError.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

NORMS = ("none", "layer_norm", "rms_norm")
BLOCKS = ("dense", "diagonal", "scalar", "identity")
_BLOCK_LETTERS = {"dense": "LBww", "diagonal": "LBw", "scalar": "LB1"}
#: What stands for Jacobians.
STRUCTURES = ("dense", "diagonal", "scalar", "identity", "zero")

_DTYPES = frozenset({torch.float32, torch.float64, torch.float16, torch.bfloat16})


def real_tensor(name: str, value: object) -> Tensor:
    """``value``, a tensor of real floating-point numbers."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if value.dtype not in _DTYPES:
        raise TypeError(
            f"{name} must be float32, float64, float16 or bfloat16, got {_dtype(value.dtype)}"
        )
    return value


def like(name: str, value: object, model_name: str, model: Tensor) -> Tensor:
    """``value``, a tensor of the dtype and on the device of ``model``."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if value.dtype != model.dtype:
        raise TypeError(
            f"{name} must have the dtype of {model_name}, {_dtype(model.dtype)}, "
            f"got {_dtype(value.dtype)}"
        )
    if value.device != model.device:
        raise ValueError(
            f"{name} must be on the device of {model_name}, {model.device}, got {value.device}"
        )
    return value


def shape(name: str, value: Tensor, letters: str, sizes: dict[str, int]) -> None:
    """Checks a shape written in letters, "Lww", and binds the letters that ``sizes`` lacks."""
    actual = value.shape
    if len(actual) == len(letters):
        for letter, size in zip(letters, actual, strict=True):
            if sizes.setdefault(letter, size) != size:
                break
        else:
            return
    expected = ", ".join(str(sizes.get(letter, letter)) for letter in letters)
    raise ValueError(
        f"{name} must have shape ({', '.join(letters)}) = ({expected}), got {tuple(actual)}"
    )


def parameters(
    shapes: Mapping[str, tuple[str, bool]],
    values: Sequence[object],
    input_name: str,
    state: Tensor,
) -> dict[str, int]:
    """Checks the stacked parameters of a chain against its input (..., w) and each other.

    shapes: name -> (letters, whether it must be there).  Returns the sizes of the letters.
    """
    if state.dim() == 0:
        raise ValueError(f"{input_name} must have shape (..., w), got a tensor without dimensions")
    sizes = {"w": state.shape[-1], "2": 2}
    if state.dim() == 2:
        sizes["B"] = state.shape[0]
    dtype, device = state.dtype, state.device
    for (name, (letters, required)), value in zip(shapes.items(), values, strict=True):
        if value is None and not required:
            continue
        # What `like` asks, asked here at once: it is a good part of a short call.
        if not isinstance(value, Tensor) or value.dtype != dtype or value.device != device:
            value = like(name, value, input_name, state)
        shape(name, value, letters, sizes)
    return sizes


def recurrence(A: object, b: Tensor, x0: object, blocks: str, b_name: str = "b") -> dict[str, int]:
    """Checks the operands of the raw linear_recurrence; returns the sizes L, B, w."""
    sizes: dict[str, int] = {}
    choice("blocks", blocks, BLOCKS)
    shape(b_name, b, "LBw", sizes)
    if x0 is not None:
        shape("x0", like("x0", x0, b_name, b), "Bw", sizes)
    if blocks == "identity":
        if A is not None:
            raise ValueError('A must be None with blocks="identity"')
        return sizes
    _blocks("A", A, b_name, b, blocks, sizes)
    return sizes


def _blocks(
    name: str, value: object, model_name: str, model: Tensor, kind: str, sizes: dict[str, int]
) -> None:
    """Blocks for every step, and every sample or all of them."""
    block = like(name, value, model_name, model)
    letters = _BLOCK_LETTERS[kind]
    if block.dim() == len(letters) and block.shape[1] == 1:  # shared by the samples
        letters = letters.replace("B", "1")
    shape(name, block, letters, {"1": 1, **sizes})


def update(
    states: Tensor,
    ends: object,
    jacobian: object,
    structure: str,
    tolerance: object,
    rtol: object,
    segments: object,
) -> None:
    """Checks the operands of newton_update; of states dtype and device are what the others have."""
    choice("structure", structure, STRUCTURES)
    ends = like("ends", ends, "states", states)
    sizes: dict[str, int] = {}
    shape("ends", ends, "LBw", sizes)
    shape("states", states, "WBw", {"W": sizes["L"] + 1, **sizes})
    if structure not in ("identity", "zero"):
        _blocks("jacobian", jacobian, "states", states, structure, sizes)
    elif jacobian is not None:
        raise ValueError(f'jacobian must be None with structure="{structure}"')
    if not isinstance(tolerance, Tensor) or tolerance.dtype != torch.float64:
        got = _dtype(tolerance.dtype) if isinstance(tolerance, Tensor) else type(tolerance).__name__
        raise TypeError(f"tolerance must be a float64 tensor, got {got}")
    if tolerance.device != states.device:
        raise ValueError(
            f"tolerance must be on the device of states, {states.device}, got {tolerance.device}"
        )
    shape("tolerance", tolerance, "L", sizes)
    epsilon("rtol", rtol)
    if isinstance(segments, bool) or not isinstance(segments, int | torch.SymInt):
        raise TypeError(f"segments must be an int, got {segments!r}")
    if segments < 0 or (sizes["L"] and segments > sizes["L"]):
        raise ValueError(f"segments must be in 1..L = 1..{sizes['L']}, or 0, got {segments}")


def segments(value: object, length: int | None = None) -> Any:
    """``value``, an int in 1..L; where L = 0, or is not known yet, anything from 1 on."""
    if isinstance(value, str):
        raise ValueError(f'segments must be "auto" or an int, got {value!r}')
    if isinstance(value, bool) or not isinstance(value, int | torch.SymInt):
        raise TypeError(f'segments must be "auto" or an int, got {value!r}')
    if value < 1 or (length and value > length):
        known = f" = 1..{length}" if length else ""
        raise ValueError(f"segments must be in 1..L{known}, got {value}")
    return value


def frozen(flags: Sequence[bool], length: int) -> None:
    if flags and len(flags) != length:
        raise ValueError(
            f"frozen must be empty or hold {length} flags, one for each step, got {len(flags)}"
        )


def sublayers(weight: object) -> None:
    """A weight of four dimensions has layers in its steps; other shapes are somebody else's."""
    if isinstance(weight, Tensor) and weight.dim() == 4 and weight.shape[1] < 1:
        raise ValueError("weight must have shape (L, M, w, w) with M >= 1")


def hidden_layers(bias: object, weight_hidden: object) -> None:
    """Biases (L, M + 1, h) are for M hidden layers; other shapes are somebody else's."""
    if not isinstance(bias, Tensor) or bias.dim() != 3:
        return
    if weight_hidden is None:
        layers = 0
    elif isinstance(weight_hidden, Tensor) and weight_hidden.dim() == 3:
        layers = weight_hidden.shape[0]
    else:
        return
    if bias.shape[1] != layers + 1:
        raise ValueError(
            f"bias must have shape (L, M + 1, h) with the M = {layers} of weight_hidden, "
            f"got {tuple(bias.shape)}"
        )


def norm_parameters(norm: str, norm_weight: object, norm_bias: object) -> None:
    """The parameters that a normalisation has no use for must be None."""
    if norm_weight is not None and norm == "none":
        raise ValueError("norm_weight must be None without a norm")
    if norm_bias is not None and norm != "layer_norm":
        raise ValueError('norm_bias must be None without norm="layer_norm"')


def choice(name: str, value: object, choices: Sequence[str | None]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def size(name: str, value: object) -> int:
    """``value``, a Python int >= 0."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < 0:
        raise ValueError(f"{name} must be at least 0, got {value}")
    return value


def flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return value


def finite(name: str, value: object) -> float:
    """``value``, a finite Python number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not -math.inf < value < math.inf:  # math.isfinite is opaque to torch.compile
        raise ValueError(f"{name} must be finite, got {value}")
    return float(value)


def epsilon(name: str, value: object) -> float:
    """``value``, a finite Python number >= 0."""
    number = finite(name, value)
    if number < 0:
        raise ValueError(f"{name} must be at least 0, got {value}")
    return number


def positive(name: str, value: object) -> float:
    """``value``, a finite Python number > 0."""
    number = finite(name, value)
    if number <= 0:
        raise ValueError(f"{name} must be greater than 0, got {value}")
    return number


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
