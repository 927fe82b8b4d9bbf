"""The mask tool, on files alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from wagle.commands import mask as mask_tool
from wagle.errors import ConfigError, WagleError
from wagle.optim.bitmask import BitMask
from wagle.unlearn.mask.file import load_mask, read_provenance, save_mask
from wagle.unlearn.mask.statistics import density_by, jaccard

EMBEDDING, QUERY = "model.embed_tokens.weight", "model.layers.1.self_attn.q_proj.weight"
FIRST = {EMBEDDING: [1, 1, 0, 0], QUERY: [1, 0, 1, 1, 1, 0]}
SECOND = {EMBEDDING: [0, 1, 1, 0], QUERY: [1, 0, 1, 1, 1, 0]}


def make(bits) -> dict[str, BitMask]:
    return {n: BitMask.from_bool(torch.tensor(b, dtype=torch.bool)) for n, b in bits.items()}


@pytest.fixture
def paths(tmp_path) -> tuple[Path, Path]:
    paths = tmp_path / "a_0.6.pt", tmp_path / "b_0.6.safetensors"
    save_mask(make(FIRST), paths[0])
    save_mask(make(SECOND), paths[1], provenance={"ratio": "0.6"})
    return paths


def test_density_by_hand():
    assert density_by(make(FIRST), "kind") == {"embedding": 0.5, "q": 4 / 6}
    assert density_by(make(FIRST), "layer") == {"outside": 0.5, "1": 4 / 6}
    assert density_by(make(FIRST), "tensor") == {EMBEDDING: 0.5, QUERY: 4 / 6}


def test_jaccard_by_hand():
    overall, tensors = jaccard(make(FIRST), make(SECOND))
    assert tensors == {EMBEDDING: 1 / 3, QUERY: 1.0}
    assert overall == 5 / 7
    nothing = make({"w": [0, 0]})
    assert jaccard(nothing, nothing) == (1.0, {"w": 1.0})
    with pytest.raises(WagleError, match="different models"):
        jaccard(make(FIRST), nothing)


def test_inspect(paths, capsys):
    assert mask_tool.main(["inspect", str(paths[1]), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["weights"], report["selected"]) == (10, 6)
    assert report["provenance"] == {"ratio": "0.6"}
    assert report["by layer and kind"] == {"outside": {"embedding": 0.5}, "1": {"q": 4 / 6}}
    assert mask_tool.main(["inspect", str(paths[0])]) == 0
    printed = capsys.readouterr().out
    assert "6 of 10 weights selected" in printed
    rows = [line.split() for line in printed.splitlines()]
    assert ["outside", "50.0", "50.0"] in rows
    assert ["1", "66.7", "66.7"] in rows
    assert ["all", "50.0", "66.7", "60.0"] in rows


def test_compare(paths, capsys):
    assert mask_tool.main(["compare", *map(str, paths), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["overall"] == 5 / 7
    assert mask_tool.main(["compare", *map(str, paths)]) == 0
    assert "0.7143" in capsys.readouterr().out


def test_compare_shows_the_extremes_or_every_tensor(tmp_path, capsys):
    """Twelve tensors, the i-th of which shares i of 12 weights."""
    ones = [1] * 12
    for name, counts in (("a", [12] * 12), ("b", range(12))):
        bits = {f"t{i:02}": ones[:n] + [0] * (12 - n) for i, n in enumerate(counts)}
        save_mask(make(bits), tmp_path / f"{name}.pt")
    argv = ["compare", str(tmp_path / "a.pt"), str(tmp_path / "b.pt")]
    for options, shown in (
        ([], [0, 1, 2, 3, 4, 7, 8, 9, 10, 11]),
        (["--all"], range(12)),
    ):
        assert mask_tool.main([*argv, *options]) == 0
        rows = [line.split() for line in capsys.readouterr().out.splitlines()]
        tensors = [row for row in rows if len(row) == 2 and row[0].startswith("t")]
        assert tensors == [[f"t{i:02}", f"{i / 12:.4f}"] for i in shown]


def test_convert_keeps_the_mask(paths, tmp_path):
    new = tmp_path / "c_0.6.pt"
    assert mask_tool.main(["convert", str(paths[1]), str(new)]) == 0
    assert load_mask(new) == make(SECOND)
    assert read_provenance(new) == {"ratio": "0.6"}


@pytest.mark.parametrize("new", ["b_0.6.safetensors", "new.bin"])
def test_convert_refuses_names_before_it_reads(paths, tmp_path, new, capsys):
    with pytest.raises(SystemExit) as caught:
        mask_tool.main(["convert", str(paths[0]), str(tmp_path / new)])
    assert caught.value.code == 2
    assert "exists already" in (message := capsys.readouterr().err) or "should end in" in message
    assert load_mask(paths[1]) == make(SECOND)


def test_numbered_layers_can_be_looked_at_but_not_converted(tmp_path, capsys):
    path = tmp_path / "wanda.pt"
    torch.save({i: torch.ones(4, dtype=torch.bool) for i in range(3)}, path)
    assert mask_tool.main(["inspect", str(path)]) == 0
    assert "12 of 12 weights selected" in capsys.readouterr().out
    with pytest.raises(WagleError, match="numbers its layers"):
        mask_tool.main(["convert", str(path), str(tmp_path / "new.safetensors")])
    assert not (tmp_path / "new.safetensors").exists()


@pytest.mark.parametrize(
    "argv", [[], ["inspect"], ["inspect", "missing.pt"], ["inspect", "--bad"], ["unknown"]]
)
def test_bad_command_lines(argv):
    with pytest.raises(SystemExit) as caught:
        mask_tool.main(argv)
    assert caught.value.code == 2


def test_bad_ratios():
    options = ["--overall.model_name", "m", "--unlearn.mask_path", "mask/a_0.5.pt"]
    for ratios in ("high", "0.5,2"):
        with pytest.raises(ConfigError, match="--ratios"):
            mask_tool.main(["make", "--ratios", ratios, *options])
    with pytest.raises(ConfigError, match=r"mask_path should name"):
        mask_tool.main(["make", "--ratios", "0.5", *options[:2]])


@pytest.mark.parametrize(
    ("how", "bits"),
    [
        ("union", {EMBEDDING: [1, 1, 1, 0], QUERY: [1, 0, 1, 1, 1, 0]}),
        ("intersection", {EMBEDDING: [0, 1, 0, 0], QUERY: [1, 0, 1, 1, 1, 0]}),
        ("difference", {EMBEDDING: [1, 0, 0, 0], QUERY: [0] * 6}),
    ],
)
def test_combine(paths, tmp_path, how, bits):
    new = tmp_path / "new.safetensors"
    assert mask_tool.main(["combine", how, *map(str, paths), str(new)]) == 0
    assert load_mask(new) == make(bits)
    assert read_provenance(new) == {how: f"{paths[0]}, {paths[1]}"}
