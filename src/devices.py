"""Where what is done depends on the kind of device: one question, which tests answer either way."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch

Result = TypeVar("Result")


def on_cpu(where: torch.Tensor | torch.nn.Module | torch.device) -> bool:
    """Whether work on a tensor, on a model (with ``.device``) or on a device is the CPU's.

    Everything that has a way of its own on a CPU asks here, as ``devices.on_cpu(…)``. A test that
    puts ``lambda where: False`` in its place therefore sees what an accelerator would do.
    """
    return getattr(where, "device", where).type == "cpu"


def can_record(where: torch.nn.Module | torch.device) -> bool:
    """Whether a :class:`Recorder` works on a device, or on that of a model (with ``.device``)."""
    return getattr(where, "device", where).type == "cuda"


class Recorder:
    """Records what is computed on a CUDA device, to be started again as a whole (a CUDA graph).

    A forward pass of a 1B model is some 600 kernels, each started by the host; where they are
    small, as those of one token are, the device waits for the host. A recording is started at once.

    What is recorded together shares memory, and is to be done one at a time.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, work: Callable[[], Result]) -> Callable[[], Result]:
        """Record work, which is not done meanwhile but has been done once before.

        Args:
            work: reads and writes tensors that stay where they are, and asks for no value of any.

        Returns:
            What does the work. It returns the same tensors each time, with new values.

        Raises:
            RuntimeError: the work cannot be recorded.
        """
        graph = torch.cuda.CUDAGraph()
        # If recording fails, torch.cuda.graph leaves its stream as the current one.
        with torch.cuda.device(self._device), torch.cuda.stream(torch.cuda.current_stream()):
            recording = torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            )
            with recording:
                result = work()

        def replay() -> Result:
            graph.replay()
            return result

        return replay


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
