"""Where what is done depends on the kind of device: one question, which tests answer either way."""

from __future__ import annotations

import random

import numpy as np
import torch


def on_cpu(where: torch.Tensor | torch.nn.Module | torch.device) -> bool:
    """Whether work on a tensor, on a model (with ``.device``) or on a device is the CPU's.

    Everything that has a way of its own on a CPU asks here, as ``devices.on_cpu(…)``. A test that
    puts ``lambda where: False`` in its place therefore sees what an accelerator would do.
    """
    return getattr(where, "device", where).type == "cpu"


def settle_attention() -> None:
    """Have torch compute attention in the plain way where its fused one does not work.

    That is so for 64 tokens and more in bfloat16, on CPUs with matrix instructions (AMX) whose
    vector instructions ATEN_CPU_CAPABILITY keeps torch from using: it raises "pack_vnni2 is only
    supported when avx512 is supported".
    """
    tokens = torch.zeros(1, 1, 64, 16, dtype=torch.bfloat16)
    try:
        torch.nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)
    except RuntimeError:
        torch.backends.cuda.enable_flash_sdp(False)  # the CPU's, too, in spite of the name


def seed_everything(seed: int) -> None:
    """Seed the generators of Python, numpy and torch, those of all its devices included.

    As transformers' function does, whose module takes a second to import.
    """
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - what libraries draw from
    torch.manual_seed(seed)
