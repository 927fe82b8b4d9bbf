"""``--plan``: the memory that a command will take, whether it fits, and what would make it fit."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from rich.box import SIMPLE_HEAD
from rich.table import Table

from wagle import launch
from wagle.config import Config
from wagle.errors import ConfigError
from wagle.planning.flag import Wanted
from wagle.planning.jobs import Job
from wagle.planning.memory import ATTRIBUTION, TRAINING, Phase
from wagle.planning.resources import free_memory, program_memory
from wagle.terminal import say, show_table

PROGRAM = "the program itself"

Rungs = Sequence[Mapping[str, object]]
"""Changes of keys, each stronger than the one before."""


def show_plan(config: Config, wanted: Wanted, *, only_mask: bool = False) -> None:
    """Print the plan of a configuration; nothing is loaded, nothing is written.

    Args:
        only_mask: the command makes masks and trains nothing.

    Raises:
        ConfigError: nothing says how much memory there is.
        WagleError: the model's configuration cannot be read.
    """
    devices = launch.processes() if wanted.devices is None else wanted.devices
    job = Job.of(config, only_mask=only_mask, devices=devices)
    room = free_memory(job.device) if wanted.size is None else wanted.size
    if room is None:
        raise ConfigError(f"how much is free on {job.device} is not known here: give --plan 24GB")
    program = program_memory(job.device)
    parallel = config["overall.parallel"] if devices > 1 else "none"
    job = replace(job, sharded=parallel == "fsdp")
    phases = job.phases()
    if parallel == "auto" and any(phase.total + program > room for phase in phases):
        job = replace(job, sharded=True)
        phases = job.phases()
    dtype = str(job.dtype).removeprefix("torch.")
    say(f"{config['overall.model_name']} in {dtype} on {_devices(job)}; {_texts(job)}")
    if not phases:
        say("nothing takes more than the model: there is nothing to plan")
        return
    show_table(_table(phases, program))
    largest = max(phase.total for phase in phases) + program
    place = "are free" if wanted.size is None else "are given"
    if largest <= room:
        say(f"It fits: {_size(room)} {place}, {_size(largest)} are needed at most.")
        return
    say(f"It does not fit: {_size(room)} {place}, {_size(largest)} are needed.")
    for phase in phases:
        if phase.total + program > room:
            say(_remedy(job, phase, room - program, program))


def _devices(job: Job) -> str:
    if job.devices == 1:
        return str(job.device)
    held = "a part of the model (fsdp)" if job.sharded else "all of the model (ddp)"
    return f"{job.devices} devices ({job.device}), each with {held}"


def _texts(job: Job) -> str:
    parts = [
        f"{role} texts of at most {text.tokens} tokens{'' if text.known else ' (the limit)'}"
        for role, text in job.texts.items()
    ]
    return ", ".join(parts)


def _table(phases: Sequence[Phase], program: int) -> Table:
    table = Table(
        title="peak memory of a device, GB of 10⁹ bytes",
        title_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
    )
    table.add_column(no_wrap=True)
    for phase in phases:
        table.add_column(phase.name, justify="right")
    parts = dict.fromkeys(part for phase in phases for part, size in phase.parts.items() if size)
    for part in parts:
        table.add_row(part, *(_shown(phase.parts[part]) for phase in phases))
    table.add_row(PROGRAM, *(_shown(program) for _ in phases))
    table.add_row("in all", *(_shown(phase.total + program) for phase in phases))
    return table


def _size(size: int) -> str:
    return f"{size / 1e9:.3g} GB"


def _shown(size: int) -> str:
    return f"{size / 1e9:.2f}" if size else ""


def _remedy(job: Job, phase: Phase, room: int, program: int) -> str:
    """The first of ever dearer changes, each on top of those before, that makes a phase fit."""
    made: dict[str, object] = {}
    least = phase.total
    for rungs in filter(None, _switches(job, phase.name)):
        changes, total = _first_enough(job, phase.name, made, rungs, room)
        if total < least:
            made, least = changes, total
        if least <= room:
            break
    options = " ".join(f"--{name} {_option(value)}" for name, value in made.items())
    reached = _size(least + program)
    if least <= room:
        return f"{phase.name} fits with {options}: {reached}"
    if not made:
        return f"{phase.name}: no switch makes it smaller"
    return f"{phase.name} does not fit; the least is {reached}, with {options}"


def _first_enough(
    job: Job, phase: str, made: Mapping[str, object], rungs: Rungs, room: int
) -> tuple[dict[str, object], int]:
    """The first of the rungs, on top of other changes, with which a phase fits, or else the last.

    Returns:
        All changes, and the bytes of the phase.
    """
    totals: dict[int, int] = {}

    def fits(rung: int) -> bool:
        totals[rung] = job.changed({**made, **rungs[rung]}).phase(phase).total
        return totals[rung] <= room

    rung = bisect_left(range(len(rungs) - 1), True, key=fits)
    if rung not in totals:
        fits(rung)
    return {**made, **rungs[rung]}, totals[rung]


def _option(value: object) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _switches(job: Job, phase: str) -> Iterator[Rungs]:
    """What makes a phase smaller: what changes no result first, then what costs least."""
    config = job.config
    if phase == ATTRIBUTION:
        key = "unlearn.attribution_batch_size"
        yield [{key: rows} for rows in _halves(config[key])]
        place = "disk" if job.device.type == "cpu" else "cpu"
        yield [{"unlearn.attribution_offload": place}]
    elif phase != TRAINING:
        yield [{"evaluation.batch_size": n} for n in _halves(config["evaluation.batch_size"])]
    elif "finetune.batch_size" in config:
        yield _smaller_batches(config, "finetune.batch_size", "finetune")
        yield [{"finetune.moments": "8bit"}]
        yield [{"finetune.master_weights": False}]
    else:
        yield [{"unlearn.gradient_checkpointing": True}]
        yield _smaller_batches(config, "dataset.batch_size", "unlearn")
        if config["unlearn.mask_path"] is not None:
            yield [{"unlearn.mask_enforcement": "optimizer", "unlearn.gradients": "packed"}]
        yield [{"unlearn.moments": "8bit"}]
        yield [{"unlearn.master_weights": False}]
        yield [{"unlearn.mask_path": None, "unlearn.use_lora": True}]


def _smaller_batches(config: Config, rows_key: str, section: str) -> Rungs:
    """Fewer rows at once, as many a step."""
    steps_key = f"{section}.gradient_accumulation_steps"
    rows, steps = config[rows_key], config[steps_key]
    return [
        {rows_key: fewer, steps_key: steps * (rows // fewer)}
        for fewer in _halves(rows)
        if rows % fewer == 0
    ]


def _halves(count: int) -> list[int]:
    """Half of it, half of that, and so on to 1."""
    return [count >> shift for shift in range(1, count.bit_length())]
