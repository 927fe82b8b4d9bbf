"""Checkpoints of a training in progress, so that the same command goes on where it stopped.

Going on gives the weights, the log and the results of a training that was never interrupted, bit
for bit on a CPU. A checkpoint is a folder ``step-00000120`` of two files, which appears only
complete and is on the disk before it has its name:

- ``tensors.safetensors``: the weights that training changes (of a masked run the selected ones, of
  LoRA the adapters), packed as the optimizer's state is; that state (moments, masters, Sophia's
  Hessian); the losses since the last entry of the log; torch's generators.
- ``checkpoint.json``: what the training is made of (``origin``), steps done, log, the generators of
  Python and numpy, checksums.

Learning rates and the place in the data follow from the number of steps.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from safetensors import safe_open
from safetensors.torch import save_file

from wagle import devices, ranks, shards
from wagle.errors import WagleError
from wagle.loggers.files import (
    json_checksum,
    read_json,
    remove_dead_parts,
    replacing_folder,
    write_json,
)
from wagle.optim.eight_bit import EightBit
from wagle.optim.packed import PackedOptimizer
from wagle.pace import Pace
from wagle.terminal import say

FORMAT = 1  # of the two files; a checkpoint of another one is of another training
KEPT = 2  # checkpoints of a training, the newest ones
SECONDS_BETWEEN = 600.0  # where no number of steps is given
MOST_TIME = 0.05  # of a training, for writing checkpoints by time

_DOCUMENT, _TENSORS = "checkpoint.json", "tensors.safetensors"
_BLOCK = 1 << 24  # bytes read at once to be hashed


@dataclass
class Standing:
    """How far a training has come, beside its weights and its optimizer's state.

    Attributes:
        step: steps done.
        seconds: that they took.
        total: losses of the steps that the log has entries for, added up.
        recent: of those since, a scalar tensor where there is one.
        terms: the same for each term of the loss.
        log: entries so far.
    """

    step: int = 0
    seconds: float = 0.0
    total: float = 0.0
    recent: torch.Tensor | float = 0.0
    terms: defaultdict[str, torch.Tensor | float] = field(
        default_factory=partial(defaultdict, float)
    )
    log: list[dict[str, float]] = field(default_factory=list)

    def clear(self) -> None:
        """Begin anew with the losses since the last entry of the log."""
        self.recent = 0.0
        self.terms.clear()


@contextmanager
def kept_generators(device: torch.device) -> Iterator[None]:
    """Python's, numpy's and torch's generators are afterwards as they were before."""
    of_python, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    accelerators = [] if devices.on_cpu(device) else [device]
    try:
        with torch.random.fork_rng(accelerators, device_type=device.type):
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)  # noqa: NPY002


class Checkpoints:
    """The checkpoints of one training, in a folder that nobody else writes to.

    Several processes leave the same files as one, which any number of processes goes on from.

    Args:
        folder: for nothing else; made when it is needed.
        origin: everything that decides the trained weights, as JSON. Checkpoints of another origin
            are removed, never used.
        every: steps between two checkpoints; ``None``: ten minutes, or more where writing one takes
            so long that it would be more than a twentieth of the time.
        keeps_last: write one after the last step as well, for a model that is saved nowhere else.
        resumed: a list to go on with.

    Attributes:
        resumed: when training, or what came before, went on after what, over all attempts.
        beside: tensors that steps change in place and that are neither weights nor the optimizer's;
            those packed as the weights of parameter 3 are have ``.3`` in their names;
            they are kept, and put back in place.
    """

    def __init__(
        self,
        folder: Path,
        origin: Mapping[str, Any],
        *,
        every: int | None,
        keeps_last: bool,
        resumed: list[dict[str, str]] | None = None,
    ) -> None:
        self.folder = folder
        self.resumed = [] if resumed is None else resumed
        self.beside: Mapping[str, torch.Tensor] = {}
        self._origin = json.loads(json.dumps({"format": FORMAT, **origin}))
        self._every = every
        self._keeps_last = keeps_last
        self._pace = Pace(SECONDS_BETWEEN, MOST_TIME)

    @property
    def newest(self) -> Path | None:
        """The checkpoint after most steps."""
        return max(self._all(), default=None)

    def restore(self, optimizer: PackedOptimizer, device: torch.device) -> Standing:
        """Put weights, state and generators back to the newest checkpoint that can be used.

        Damaged ones are removed, with a message.

        Returns:
            How far training has come; at its start where there is no checkpoint.
        """
        found = ranks.first(self._find)
        if found is None:
            return Standing()
        path, content = found
        tensors = _load(path / _TENSORS, optimizer)
        standing = _unpack(content, tensors, optimizer, device)
        for name, tensor in self.beside.items():
            tensor.detach().copy_(tensors[f"beside.{name}"])
        say(f"going on after step {standing.step}, from the checkpoint of {content['written']}")
        self.resumed[:0] = content["resumed"]
        self.resumed.append(resumption(f"step {standing.step}"))
        return standing

    def _find(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest checkpoint of this training, and its document; others are removed."""
        remove_dead_parts(self.folder)
        while (path := self.newest) is not None:
            try:
                content = _read(path)
            except WagleError as error:
                say(f"warning: the checkpoint {path} is damaged ({error}): it is removed")
                shutil.rmtree(path)
                continue
            if content["origin"] == self._origin:
                return path, content
            say(f"{self.folder} holds checkpoints of another training: they are removed")
            self.remove()
        return None

    def after_step(
        self,
        standing: Standing,
        optimizer: PackedOptimizer,
        device: torch.device,
        *,
        steps: int,
        asked: bool,
    ) -> None:
        """Write a checkpoint if it is time for one; what keeps it from being written is only said.

        Args:
            standing: after the step.
            device: whose generator training draws from, beside the CPU's.
            steps: of the whole training; after the last the optimizer's state is left out.
            asked: write one in any case.
        """
        ended = standing.step == steps
        if not ranks.any_of(asked or (self._keeps_last if ended else self._due(standing.step))):
            return
        path = self.folder / f"step-{standing.step:08}"
        try:
            with self._pace.writing():
                self._write(path, standing, optimizer, device, with_state=not ended)
        except WagleError as error:
            say(f"warning: no checkpoint after step {standing.step}: {error}")
        else:
            for old in sorted(self._all())[:-KEPT] if ranks.is_first() else ():
                shutil.rmtree(old)
            if asked:
                say(f"the same command goes on after step {standing.step} of {steps}: {path}")

    def remove(self) -> None:
        """Remove them all, and the folder."""
        if ranks.is_first():
            shutil.rmtree(self.folder, ignore_errors=True)

    def _all(self) -> list[Path]:
        return list(self.folder.glob("step-" + "[0-9]" * 8))

    def _due(self, step: int) -> bool:
        if self._every is not None:
            return step % self._every == 0
        return self._pace.due()

    def _write(
        self,
        path: Path,
        standing: Standing,
        optimizer: PackedOptimizer,
        device: torch.device,
        *,
        with_state: bool,
    ) -> None:
        tensors, masks = _pack(
            standing, optimizer, device, beside=self.beside, with_state=with_state
        )
        if not ranks.is_first():
            return
        version, words, gauss = random.getstate()
        of_numpy: Any = np.random.get_state()  # noqa: NPY002 - what libraries draw from
        name, keys, *rest = of_numpy
        with replacing_folder(path) as part:
            save_file(tensors, part / _TENSORS)
            content = {
                "origin": self._origin,
                "written": _now(),
                "resumed": self.resumed,
                "step": standing.step,
                "seconds": standing.seconds,
                "total": standing.total,
                "log": standing.log,
                "masks": masks,
                "python": [version, list(words), gauss],
                "numpy": [name, keys.tolist(), *rest],
                "tensors": _digest(part / _TENSORS),
            }
            write_json(part / _DOCUMENT, {**content, "checksum": json_checksum(content)})


def _pack(
    standing: Standing,
    optimizer: PackedOptimizer,
    device: torch.device,
    *,
    beside: Mapping[str, torch.Tensor],
    with_state: bool,
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors of a checkpoint by name, and which mask each parameter's state is packed by."""
    weights, lengths, digests = zip(*optimizer.parts, strict=True)
    by_rank = ranks.everyone(lengths)

    def whole(index: int, part: torch.Tensor | EightBit) -> torch.Tensor:
        floats = part.whole() if isinstance(part, EightBit) else part
        joined = shards.join(weights[index], floats, [lengths[index] for lengths in by_rank])
        # beside moments in 8 bits there is no room for the floats of all at once
        return joined.to("cpu") if isinstance(part, EightBit) else joined

    vectors = enumerate(optimizer.packed_weights())
    tensors = {f"weights.{index}": whole(index, vector) for index, vector in vectors}
    masks = {}
    if with_state:
        states = optimizer.packed_state()
        done = (state.get("step") for state in states)
        steps = ranks.everyone([float(n) if isinstance(n, torch.Tensor) else None for n in done])
        for index, state in enumerate(states):
            step = next((own[index] for own in steps if own[index] is not None), None)
            if step is not None:
                masks[str(index)] = digests[index]
                tensors[f"state.{index}.step"] = torch.tensor(step)
                slots = (slot for slot in state if slot != "step")
                tensors |= {f"state.{index}.{slot}": whole(index, state[slot]) for slot in slots}
    for name, tensor in beside.items():
        number = _parameter(name)
        kept = tensor.detach()
        tensors[f"beside.{name}"] = kept if number is None else whole(number, kept)
    if isinstance(standing.recent, torch.Tensor):
        tensors["recent"] = standing.recent
    terms = standing.terms.items()
    tensors |= {f"terms.{k}": term for k, term in terms if isinstance(term, torch.Tensor)}
    generators = {"generator.cpu": torch.get_rng_state()}
    if not devices.on_cpu(device):
        generators["generator.device"] = torch.get_device_module(device).get_rng_state(device)
    for rank, own in enumerate(ranks.everyone(generators)):
        tensors |= {f"{name}.{rank}" if rank else name: state for name, state in own.items()}
    return tensors, masks


def _parameter(name: str) -> int | None:
    """The number of the parameter whose packed vector has this name, such as ``average.3``."""
    return next((int(part) for part in name.split(".") if part.isdecimal()), None)


def _load(path: Path, optimizer: PackedOptimizer) -> dict[str, torch.Tensor]:
    """The tensors that :func:`_pack` has named, of sharded weights this process's part."""
    before = [
        sum(lengths[: ranks.rank()])
        for lengths in zip(
            *ranks.everyone([length for _, length, _ in optimizer.parts]), strict=True
        )
    ]
    tensors = {}
    with safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118, it is no dict
            tensor, number = file.get_tensor(name), _parameter(name)
            if number is not None and tensor.dim() and not name.startswith("generator"):
                weight, length, _ = optimizer.parts[number]
                if shards.is_cut(weight):
                    tensor = tensor[before[number] :][:length].clone()
            tensors[name] = tensor
    own = f".{ranks.rank()}"
    generators = {name.removesuffix(own): t for name, t in tensors.items() if name.endswith(own)}
    return tensors | {name: t for name, t in generators.items() if name.startswith("generator")}


def _unpack(
    content: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    optimizer: PackedOptimizer,
    device: torch.device,
) -> Standing:
    """Undo :func:`_pack`, and put back the generators."""
    named: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        group, _, rest = name.partition(".")
        named.setdefault(group, {})[rest] = tensor
    state: dict[int, dict[str, Any]] = {
        int(index): {"mask": mask} for index, mask in content["masks"].items()
    }
    for name, tensor in named.get("state", {}).items():
        index, _, slot = name.partition(".")
        state[int(index)][slot] = tensor
    weights = named.get("weights", {})
    optimizer.load_packed_weights([weights[str(index)] for index in range(len(weights))])
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    version, words, gauss = content["python"]
    random.setstate((version, tuple(words), gauss))
    np.random.set_state(tuple(content["numpy"]))  # noqa: NPY002
    torch.set_rng_state(tensors["generator.cpu"])
    if not devices.on_cpu(device):
        torch.get_device_module(device).set_rng_state(tensors["generator.device"], device)
    terms = named.get("terms", {}).items()
    return Standing(
        step=content["step"],
        seconds=content["seconds"],
        total=content["total"],
        recent=tensors["recent"].to(device) if "recent" in tensors else 0.0,
        terms=defaultdict(float, {name: term.to(device) for name, term in terms}),
        log=content["log"],
    )


def _read(path: Path) -> dict[str, Any]:
    """The document of a checkpoint.

    Raises:
        WagleError: it or the tensors are not as they were written.
    """
    content = read_json(path / _DOCUMENT)
    if not isinstance(content, dict) or content.pop("checksum", None) != json_checksum(content):
        raise WagleError(f"the checksum of {_DOCUMENT} is wrong")
    if content["tensors"] != _digest(path / _TENSORS):
        raise WagleError(f"the checksum of {_TENSORS} is wrong")
    return content


def _digest(path: Path) -> str:
    """XXH3-128, in hex, of a file of any size.

    Raises:
        WagleError: it cannot be read.
    """
    digest = xxhash.xxh3_128()
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except OSError as error:
        raise WagleError(f"{path.name} cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def resumption(after: str) -> dict[str, str]:
    """What a manifest says about going on now with what there is after an interruption."""
    return {"at": _now(), "after": after}


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
