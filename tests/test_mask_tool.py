"""The mask tool, on files alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from src.errors import ConfigError, WagleError
from src.exec import mask as mask_tool
from src.optim.bitmask import BitMask
from src.unlearn.mask.file import load_mask, save_mask
from src.unlearn.mask.statistics import density_by, jaccard

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
    assert mask_tool.main(["inspect", str(paths[0])]) == 0
    assert "6 of 10 weights selected" in capsys.readouterr().out


def test_compare(paths, capsys):
    assert mask_tool.main(["compare", *map(str, paths), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["overall"] == 5 / 7
    assert mask_tool.main(["compare", *map(str, paths)]) == 0
    assert "0.7143" in capsys.readouterr().out


def test_convert_keeps_the_mask(paths, tmp_path):
    new = tmp_path / "c_0.6.pt"
    assert mask_tool.main(["convert", str(paths[1]), str(new)]) == 0
    assert load_mask(new) == make(SECOND)
    with pytest.raises(ConfigError, match="exists already"):
        mask_tool.main(["convert", str(paths[1]), str(new)])


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
