"""What requests have changed of a model: put in, taken out and checked bit for bit.

python src/exec/delta.py make BEFORE AFTER [--mask MASK] -o DELTA.safetensors
python src/exec/delta.py apply MODEL DELTA -o FOLDER
python src/exec/delta.py revert MODEL DELTA -o FOLDER
python src/exec/delta.py stack MODEL DELTA [DELTA ...] [-o FOLDER]
    [--forget SET ... [--figure NAME] [--config_file CONFIG.json] [--section.key value ...]]
python src/exec/delta.py verify BEFORE AFTER MASK [--json]

BEFORE, AFTER and MODEL are model folders, or run folders that hold a model. With --forget, stack
asks the model for the answers of each set after each request, and shows how likely they are.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wagle.cli import program
from wagle.config import load_config
from wagle.errors import ConfigError, WagleError
from wagle.terminal import say

if TYPE_CHECKING:
    from wagle.model.stored_weights import StoredWeights
    from wagle.unlearn.mask.delta import Delta

APPLIED = "deltas.json"
"""Beside the weights: what has been put in and taken out."""


def main(argv: Sequence[str]) -> int:
    """Run one sub-command."""
    parser = argparse.ArgumentParser(
        prog=program("delta"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("make", help="the difference of two models")
    make.add_argument("before", type=Path)
    make.add_argument("after", type=Path)
    make.add_argument("--mask", type=Path, help="nothing else may have changed")
    make.add_argument("-o", dest="output", type=Path, required=True, help="DELTA.safetensors")
    for name, about in {"apply": "put a delta in", "revert": "take a delta out again"}.items():
        command = commands.add_parser(name, help=about)
        command.add_argument("model", type=Path)
        command.add_argument("deltas", type=Path, nargs=1, metavar="DELTA")
        command.add_argument("-o", dest="output", type=Path, required=True, help="new folder")
    stack = commands.add_parser("stack", help="put several in, and see how they meet")
    stack.add_argument("model", type=Path)
    stack.add_argument("deltas", type=Path, nargs="+", metavar="DELTA")
    stack.add_argument("-o", dest="output", type=Path, help="new folder")
    stack.add_argument("--forget", nargs="+", default=[], metavar="SET", help="of the requests")
    stack.add_argument("--figure", type=Path, help="draw the interference: NAME.png and NAME.pdf")
    verify = commands.add_parser("verify", help="has nothing changed outside a mask?")
    for name in ("before", "after", "mask"):
        verify.add_argument(name, type=Path)
    verify.add_argument("--json", action="store_true", help="print JSON")
    options, rest = parser.parse_known_args(argv)
    if rest and options.command != "stack":
        parser.error(f"unknown arguments: {' '.join(rest)}")
    if options.command == "make":
        return _make(options.before, options.after, options.mask, options.output)
    if options.command == "verify":
        return _verify(options.before, options.after, options.mask, options.json)
    if options.command == "stack":
        return _stack(options, rest)
    return _write(
        options.model, _load(options.deltas), options.output, revert=options.command == "revert"
    )


def _stored(folder: Path) -> StoredWeights:
    from wagle.model.record import find_saved_model
    from wagle.model.stored_weights import StoredWeights

    return StoredWeights(find_saved_model(folder))


def _load(paths: Sequence[Path]) -> list[Delta]:
    from wagle.unlearn.mask.delta import load_delta

    return [load_delta(path) for path in paths]


def _make(before: Path, after: Path, mask: Path | None, output: Path) -> int:
    from wagle.unlearn.mask.delta import make_delta, save_delta
    from wagle.unlearn.mask.file import load_mask

    if output.suffix != ".safetensors":
        raise ConfigError(f"-o {output} should end in .safetensors")
    about = {"before": str(before), "after": str(after), **({"mask": str(mask)} if mask else {})}
    delta = make_delta(_stored(before), _stored(after), load_mask(mask) if mask else None, about)
    save_delta(delta, output)
    size = output.stat().st_size
    say(f"wrote {output}: {delta.count:,} changed weights, {size / 2**20:,.1f} MiB")
    return 0


def _write(model: Path, deltas: Sequence[Delta], output: Path, *, revert: bool = False) -> int:
    """A copy of the model with deltas put in, or taken out."""
    from wagle.loggers.files import check_room, replacing_folder, write_json
    from wagle.model.record import RECORD
    from wagle.model.stored_weights import StoredWeights
    from wagle.unlearn.mask.delta import apply_delta

    if output.exists():
        raise ConfigError(f"-o {output} exists already")
    source = _stored(model).folder
    output.parent.mkdir(parents=True, exist_ok=True)
    files = [path for path in source.iterdir() if path.is_file() and path.name != RECORD]
    check_room(output.parent, sum(path.stat().st_size for path in files))
    with replacing_folder(output) as part:
        for path in files:
            shutil.copyfile(path, part / path.name)
        weights = StoredWeights(part)
        for delta in deltas:
            apply_delta(delta, weights.writable, revert=revert)
        done = [{**delta.about, "before": delta.before, "after": delta.after} for delta in deltas]
        history = json.loads((part / APPLIED).read_text()) if (part / APPLIED).exists() else []
        step = {"of": str(source), "taken out" if revert else "put in": done}
        write_json(part / APPLIED, [*history, step])
    say(f"wrote {output}")
    return 0


def _stack(options: argparse.Namespace, rest: Sequence[str]) -> int:
    _stored(options.model)  # is there, whatever is asked for
    deltas = _load(options.deltas)
    names = [path.stem for path in options.deltas]
    if (rest or options.figure) and not options.forget:
        raise ConfigError(f"{' '.join(rest) or '--figure'} has an effect with --forget only")
    _show_shared(names, deltas)
    if options.forget:
        _show_interference(options, names, deltas, rest)
    return _write(options.model, deltas, options.output) if options.output else 0


def _show_shared(names: Sequence[str], deltas: Sequence[Delta]) -> None:
    """A table of the weights that each two of the deltas change."""
    from wagle.commands.showing import print_table
    from wagle.unlearn.mask.delta import shared

    rows = {
        name: {other: shared(one, two) for other, two in zip(names, deltas, strict=True)}
        for name, one in zip(names, deltas, strict=True)
    }
    print_table("weights that both change", names, rows, "{:,}".format)


def _show_interference(
    options: argparse.Namespace, names: Sequence[str], deltas: Sequence[Delta], rest: Sequence[str]
) -> None:
    """How likely the answers of each set are after each request."""
    from wagle.commands.showing import print_table, write_figure
    from wagle.model.interference import interference
    from wagle.model.opened import OpenedRun

    config = load_config(
        [*rest, "--overall.model_name", str(_stored(options.model).folder)],
        prog=f"{program('delta')} stack MODEL DELTA ...",
        description="Sequential requests.",
    )
    run = OpenedRun(config)
    run.load()
    rows: Mapping[str, Mapping[str, float]] = interference(
        run, dict(zip(names, deltas, strict=True)), options.forget
    )
    columns = list(next(iter(rows.values())))
    print_table("probability of the answers (%)", columns, rows, lambda p: f"{100 * p:.1f}")
    if options.figure is not None:
        from wagle.reporting.mask_figures import draw_interference

        write_figure(options.figure, draw_interference(rows))


def _verify(before: Path, after: Path, mask_file: Path, as_json: bool) -> int:
    from wagle.unlearn.mask.certificate import Certificate, frozen_count, frozen_digest
    from wagle.unlearn.mask.delta import changed_outside
    from wagle.unlearn.mask.file import load_mask

    models, mask = [_stored(before), _stored(after)], load_mask(mask_file)
    outside = list(changed_outside(models[0], models[1], mask))
    digests = [
        frozen_digest(w.bits, mask, {name: t.dtype for name, t in w.tensors.items()})
        for w in models
    ]
    certificate = Certificate(frozen_count(mask), *digests)
    recorded = _recorded(after)
    if as_json:
        found = {**certificate.as_dict(), "changed": {t.name: t.changed for t in outside}}
        print(json.dumps({**found, "recorded": recorded}, indent=2))
    else:
        for name, digest in zip(("before", "after"), digests, strict=True):
            say(f"SHA-256 of the unselected weights {name}: {digest}")
        say(certificate.describe())
        for tensor in outside:
            say(f"  {tensor.name}: {tensor.changed:,} unselected weights have changed")
    if recorded is not None and digests != [recorded["before"], recorded["after"]]:
        raise WagleError(
            f"the run's own certificate in {after} says {recorded['before']} before and "
            f"{recorded['after']} after: it is of another mask, dtype or model"
        )
    return 1 if outside else 0


def _recorded(folder: Path) -> Mapping[str, str] | None:
    """The certificate in the manifest of a run folder, if that is one."""
    from wagle.loggers.run_folder import MANIFEST, read_manifest

    if not (folder / MANIFEST).is_file():
        return None
    found: Mapping[str, str] | None = read_manifest(folder).get("certificate")
    return found
