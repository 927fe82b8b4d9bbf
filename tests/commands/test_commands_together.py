"""Commands that are started as several processes, as by torchrun."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed import TCPStore

from tests.processes import Running
from tests.several import addresses
from wagle.commands import unlearn as unlearn_model


def start(options, folder, size, **changes):
    """``wagle unlearn`` as several processes; their exit statuses and what each has said.

    As with torchrun's agent, what they meet in is held by a process that outlives them.
    """
    shared = {**addresses(size), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    store = TCPStore(
        shared["MASTER_ADDR"], int(shared["MASTER_PORT"]), is_master=True, wait_for_workers=False
    )
    running = [
        Running(
            "unlearn",
            options(changes),
            folder,
            {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(size)
    ]
    ended = [process.end() for process in running]
    del store
    return ended


def read(path):
    return json.loads(path.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["fsdp", "ddp"])
def test_they_leave_what_one_process_leaves(tmp_path, options, parallel):
    # Of the score the order hangs on no accumulation.
    score = {"unlearn.score_type": "gradient", "evaluation.limit": 2}
    two = {"logger.name": "two", "unlearn.mask_path": tmp_path / "two_0.4.pt"}
    ended = start(options, tmp_path, 2, **score, **two, **{"overall.parallel": parallel})
    assert [status for status, _ in ended] == [0, 0], ended
    assert "2 processes" in ended[0][1]
    said = [line for line in ended[1][1].splitlines() if "Loading weights" not in line]
    assert not "".join(said)  # the first one speaks, libraries aside that have been imported before
    assert unlearn_model.main(options({**score, "unlearn.gradient_accumulation_steps": 2})) == 0
    masks = [torch.load(path) for path in (tmp_path / "two_0.4.pt", tmp_path / "mask/tiny_0.4.pt")]
    found, expected = (tmp_path / "runs" / name for name in ("two", "a"))
    assert {p.name for p in found.iterdir()} == {p.name for p in expected.iterdir()}
    numbers, ours = read(expected / "results.json"), read(found / "results.json")
    assert ours.keys() == numbers.keys()
    for name, value in numbers.items():
        if isinstance(value, float):
            assert ours[name] == pytest.approx(value, abs=1e-5), name
    assert read(found / "manifest.json")["certificate"]["holds"]
    weights, own = (load_file(f / "checkpoints" / "model.safetensors") for f in (expected, found))
    assert own.keys() == weights.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(own[name], weight, rtol=0, atol=1e-5)
        if name in masks[0]:
            assert torch.equal(masks[0][name], masks[1][name])


def test_one_says_why_all_end(tmp_path, options):
    ended = start(options, tmp_path, 2, **{"overall.parallel": "none"})
    statuses = {status for status, _ in ended}
    assert 2 in statuses <= {1, 2}  # 1 of one that only misses the other
    said = [line for _, text in ended for line in text.splitlines() if line.startswith("error: ")]
    assert len(said) == 1, ended
    assert said[0].startswith("error: overall.parallel is none, and torchrun has started 2")
