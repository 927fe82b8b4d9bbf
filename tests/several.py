"""A function run by several processes that work as one, as torchrun would start them."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from tests.processes import PRELOADED


def together(size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What ``function(*arguments)`` returns in each of ``size`` processes, by rank.

    Args:
        function: of a module, so that the processes find it by its name; where it fails in one,
            the test fails with that one's traceback.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED, "tests.several"])
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / str(rank) for rank in range(size)]
        environment = {**os.environ, **addresses(size)}
        processes = [
            context.Process(target=_work, args=(rank, environment, file, function, arguments))
            for rank, file in enumerate(files)
        ]
        for process in processes:
            process.start()
        wait([process.sentinel for process in processes], 120)  # one that fails leaves others
        for process in processes:
            process.join(20)
            process.kill()
        outcomes = [pickle.loads(file.read_bytes()) for file in files if file.exists()]
    for failed, value in outcomes:
        assert not failed, value
    assert len(outcomes) == size, "a process ended without a word, or never"
    return [value for _, value in outcomes]


def addresses(size: int) -> dict[str, str]:
    """What torchrun puts into the environment of all processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def _work(
    rank: int,
    environment: dict[str, str],
    file: Path,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    import torch

    from wagle import ranks

    os.environ.update(environment, RANK=str(rank), LOCAL_RANK=str(rank))
    torch.set_num_threads(1)
    try:
        ranks.join(torch.device("cpu"))
        outcome = (False, function(*arguments))
    except BaseException:
        outcome = (True, f"process {rank}:\n{traceback.format_exc()}")
    part = file.with_suffix(".part")
    part.write_bytes(pickle.dumps(outcome))
    part.rename(file)
    ranks.leave()
