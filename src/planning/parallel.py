"""Whether several processes each hold the whole model, or a part of it."""

from __future__ import annotations

import torch

from wagle import launch, ranks
from wagle.config import Config
from wagle.errors import ConfigError
from wagle.model.loading import resolve_device
from wagle.planning.jobs import Job
from wagle.planning.resources import free_memory, program_memory
from wagle.terminal import say

DDP, FSDP, NONE = "ddp", "fsdp", "none"


def join_processes(config: Config) -> tuple[torch.device, bool]:
    """Connect the processes that torchrun has started: this one's device, whether models are cut.

    Raises:
        ConfigError: as :func:`wagle.ranks.join` and :func:`choose_parallel`; or there is no such
            device.
    """
    device = ranks.join(resolve_device(config.overall.device))
    return device, choose_parallel(config, device) == FSDP


def choose_parallel(config: Config, device: torch.device) -> str:
    """How the processes share the model: ``none``, ``ddp`` or ``fsdp``, the same in all of them.

    Raises:
        ConfigError: ``overall.parallel`` is none, and there are several processes.
    """
    wanted = config.overall.parallel
    if launch.processes() == 1:
        return NONE
    if wanted == NONE:
        raise ConfigError(
            f"overall.parallel is none, and torchrun has started {launch.processes()} processes: "
            "give auto, ddp or fsdp, or start without torchrun"
        )
    chosen = ranks.first(lambda: _fitting(config, device)) if wanted == "auto" else wanted
    say(f"{launch.processes()} processes, overall.parallel {chosen}")
    return chosen


def _fitting(config: Config, device: torch.device) -> str:
    """``ddp`` where every process has room for everything, else ``fsdp``."""
    room = free_memory(device)
    if room is None or config.get("finetune.from_scratch"):
        return DDP
    needed = program_memory(device) + max(phase.total for phase in Job.of(config).phases())
    return DDP if needed <= room else FSDP
