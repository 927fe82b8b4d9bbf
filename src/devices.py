"""Where what is done depends on the kind of device: one question, which tests answer either way."""

from __future__ import annotations

import torch


def on_cpu(where: torch.Tensor | torch.nn.Module | torch.device) -> bool:
    """Whether work on a tensor, on a model (with ``.device``) or on a device is the CPU's.

    Everything that has a way of its own on a CPU asks here, as ``devices.on_cpu(…)``. A test that
    puts ``lambda where: False`` in its place therefore sees what an accelerator would do.
    """
    return getattr(where, "device", where).type == "cpu"
