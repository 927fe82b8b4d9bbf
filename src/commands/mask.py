"""Make, inspect, compare and convert mask files.

python src/exec/mask.py make --ratios 0.8,0.4 [--figure NAME] --config_file CONFIG.json
    [--section.key value …]
python src/exec/mask.py inspect MASK [--json] [--figure NAME]
python src/exec/mask.py compare MASK MASK [--all] [--json] [--figure NAME]
python src/exec/mask.py convert MASK NEW_MASK
python src/exec/mask.py combine union|intersection|difference MASK MASK [MASK …] NEW_MASK
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from wagle.catalogue import SCORES
from wagle.cli import program
from wagle.commands.showing import print_table, write_figure
from wagle.config import load_config
from wagle.errors import ConfigError, WagleError
from wagle.planning.flag import split_plan
from wagle.terminal import say

COMBINATIONS = ("union", "intersection", "difference")
SHOWN_TENSORS = 5  # most and least alike tensors that ``compare`` shows


def main(argv: Sequence[str]) -> int:
    """Run one sub-command."""
    parser = argparse.ArgumentParser(
        prog=program("mask"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("make", help="masks of several ratios from one set of scores")
    make.add_argument("--ratios", required=True, help="for example 0.8,0.4")
    make.add_argument("--figure", type=Path, help="draw the scores: NAME.png and NAME.pdf")
    inspect = commands.add_parser("inspect", help="density per layer and kind, provenance")
    inspect.add_argument("mask", type=_existing)
    compare = commands.add_parser("compare", help="Jaccard similarity, overall and per tensor")
    compare.add_argument("masks", type=_existing, nargs=2)
    compare.add_argument("--all", action="store_true", help="show every tensor")
    for command in (inspect, compare):
        command.add_argument("--json", action="store_true", help="print JSON instead of tables")
        command.add_argument("--figure", type=Path, help="draw it too: NAME.png and NAME.pdf")
    convert = commands.add_parser("convert", help="between .pt and .safetensors")
    convert.add_argument("mask", type=_existing)
    convert.add_argument("new_mask", type=_absent)
    combine = commands.add_parser("combine", help="union, intersection or difference of masks")
    combine.add_argument("how", choices=COMBINATIONS)
    combine.add_argument("masks", type=_existing, nargs="+", metavar="MASK")
    combine.add_argument("new_mask", type=_absent)
    options, rest = parser.parse_known_args(argv)
    if rest and options.command != "make":
        parser.error(f"unknown arguments: {' '.join(rest)}")
    if options.command == "make":
        return _make(options.ratios, options.figure, rest)
    if options.command == "inspect":
        return _inspect(options.mask, options.json, options.figure)
    if options.command == "compare":
        return _compare(
            *options.masks, show_all=options.all, as_json=options.json, figure=options.figure
        )
    if options.command == "combine":
        return _combine(options.how, options.masks, options.new_mask)
    return _convert(options.mask, options.new_mask)


def _existing(text: str) -> Path:
    path = Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"there is no file {text}")
    return path


def _absent(text: str) -> Path:
    path = Path(text)
    if path.exists():
        raise argparse.ArgumentTypeError(f"{text} exists already")
    if path.suffix not in (".pt", ".safetensors"):
        raise argparse.ArgumentTypeError(f"{text} should end in .pt or .safetensors")
    return path


def _make(ratios: str, figure: Path | None, argv: Sequence[str]) -> int:
    plan, argv = split_plan(argv)
    config = load_config(
        argv, prog=f"{program('mask')} make --ratios LIST", description="Make masks."
    )
    try:
        wanted = [float(ratio) for ratio in ratios.split(",")]
    except ValueError as error:
        raise ConfigError(f"--ratios takes numbers like 0.8,0.4, not {ratios!r}") from error
    if not all(0 < ratio <= 1 for ratio in wanted):
        raise ConfigError(f"--ratios takes numbers above 0 and up to 1, not {ratios!r}")
    config.mask_file(wanted[0])  # before anything is loaded
    if plan is not None:
        from wagle.planning.report import show_plan

        show_plan(config, plan, only_mask=True)
        return 0
    score_type = config.unlearn.score_type
    if figure is not None and not SCORES[score_type].ranks:
        raise ConfigError(f"--figure draws scores of all weights, and {score_type} has none")
    from wagle.model.opened import OpenedRun

    run = OpenedRun(config)
    run.load()
    run.build_dataset()
    masks = run.mask_files()
    for path in masks.write(wanted):
        say(f"wrote {path}")
    if figure is not None:
        from wagle.reporting.mask_figures import draw_score_histogram

        histogram = masks.score_histogram()
        write_figure(
            figure, draw_score_histogram(histogram, ratios=wanted, label=f"{score_type} score")
        )
    return 0


def _inspect(path: Path, as_json: bool, figure: Path | None) -> int:
    from wagle.model.architecture import KINDS
    from wagle.unlearn.mask.file import load_mask, read_provenance
    from wagle.unlearn.mask.statistics import density, density_by, density_table

    mask = load_mask(path)
    weights = sum(bits.numel for bits in mask.values())
    selected = sum(bits.count() for bits in mask.values())
    overall, provenance = density(mask), read_provenance(path)
    by_kind, by_layer = density_by(mask, "kind"), density_by(mask, "layer")
    by_both = density_table(mask)
    if figure is not None:
        from wagle.reporting.mask_figures import draw_density

        write_figure(figure, draw_density(by_both, overall))
    if as_json:
        report = {
            "weights": weights,
            "selected": selected,
            "density": overall,
            "provenance": provenance,
            "by kind": by_kind,
            "by layer": by_layer,
            "by layer and kind": by_both,
        }
        print(json.dumps(report, indent=2))
        return 0
    print(f"{path}: {selected} of {weights} weights selected ({overall:.4%})")
    for key, value in provenance.items():
        say(f"  {key}: {value}")
    rows = {
        **{layer: {**shares, "all": by_layer[layer]} for layer, shares in by_both.items()},
        "all": {**by_kind, "all": overall},
    }
    kinds = [kind for kind in KINDS if kind in by_kind]
    title = "percent selected, per layer and kind"
    print_table(title, [*kinds, "all"], rows, lambda share: f"{share:.1%}"[:-1])
    return 0


def _compare(
    first: Path, second: Path, *, show_all: bool, as_json: bool, figure: Path | None
) -> int:
    from wagle.unlearn.mask.file import load_mask
    from wagle.unlearn.mask.statistics import chance_jaccard, jaccard, jaccard_table

    masks = load_mask(first), load_mask(second)
    overall, tensors = jaccard(*masks)
    if figure is not None:
        from wagle.reporting.mask_figures import draw_similarity

        table, chance = jaccard_table(*masks), chance_jaccard(*masks)
        write_figure(figure, draw_similarity(table, overall, chance))
    if as_json:
        print(json.dumps({"overall": overall, "tensors": tensors}, indent=2))
        return 0
    say(f"Jaccard similarity of {first} and {second}: {overall:.4f}")
    ordered = sorted(tensors, key=tensors.__getitem__)
    title = "similarity per tensor"
    if not show_all and len(ordered) > 2 * SHOWN_TENSORS:
        ordered = ordered[:SHOWN_TENSORS] + ordered[-SHOWN_TENSORS:]
        title += f", the {SHOWN_TENSORS} least and the {SHOWN_TENSORS} most alike"
    rows = {name: {"Jaccard": tensors[name]} for name in ordered}
    print_table(title, ["Jaccard"], rows, "{:.4f}".format)
    return 0


def _convert(path: Path, new_path: Path) -> int:
    from wagle.unlearn.mask.file import load_mask, read_provenance, save_mask

    mask = load_mask(path)
    if all(name.isdigit() for name in mask):
        raise WagleError(
            f"{path} numbers its layers (a published Wanda mask); only with the model do they have "
            "names. Give it to unlearn.mask_path as it is"
        )
    save_mask(mask, new_path, provenance=read_provenance(path))
    say(f"wrote {new_path}")
    return 0


def _combine(how: str, paths: Sequence[Path], new_path: Path) -> int:
    from wagle.unlearn.mask.file import load_mask, save_mask
    from wagle.unlearn.mask.statistics import combined, density

    if len(paths) < 2:
        raise ConfigError("mask combine takes two masks or more, and the name of a new one")
    mask = combined(how, [load_mask(path) for path in paths])
    save_mask(mask, new_path, provenance={how: ", ".join(map(str, paths))})
    say(f"wrote {new_path}: {density(mask):.4%} of the weights selected")
    return 0
