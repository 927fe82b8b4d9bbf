"""How much memory there is, and how much this program itself takes."""

from __future__ import annotations

from pathlib import Path

import torch

from wagle import launch

CUDA_CONTEXT = 500_000_000  # bytes that a process takes on a GPU before any tensor; about so many


def resident(field: str) -> int:
    """Resident memory of this process, ``VmRSS``, or its peak, ``VmHWM``, in bytes.

    Raises:
        OSError: the system does not say (only Linux does).
    """
    return _entry(Path("/proc/self/status"), field)


def free_memory(device: torch.device) -> int | None:
    """Bytes that a new process may take on a device; ``None`` where that cannot be known.

    Of a CPU's memory each of several processes of one command has its share.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    try:
        return _entry(Path("/proc/meminfo"), "MemAvailable") // launch.processes_here()
    except OSError:
        return None


def program_memory(device: torch.device) -> int:
    """Bytes on a device that a command takes beside its tensors: libraries, or a context.

    This process has loaded the same libraries, so it is its own measure.
    """
    if device.type == "cuda":
        return CUDA_CONTEXT
    try:
        return resident("VmRSS") if device.type == "cpu" else 0
    except OSError:
        return 0


def _entry(path: Path, field: str) -> int:
    for line in path.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise OSError(f"{path} has no {field}")
