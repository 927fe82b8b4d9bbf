"""Mask files: round trips, and everything that must be refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.tiny import make_model
from wagle.errors import WagleError
from wagle.model.architecture import block_linears
from wagle.optim.bitmask import BitMask
from wagle.unlearn.mask import file as mask_file
from wagle.unlearn.mask.file import load_mask, read_provenance, save_mask

SUFFIXES = [".pt", ".safetensors"]


def random_mask(shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: BitMask.from_bool(torch.rand(shape, generator=generator) < 0.4)
        for name, shape in shapes.items()
    }


SHAPES = {"a.weight": torch.Size((5, 7)), "a.bias": torch.Size((5,)), "s": torch.Size(())}


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shapes=st.dictionaries(
        st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1),
        st.lists(st.integers(0, 9), max_size=3).map(torch.Size),
        min_size=1,
        max_size=4,
    )
)
def test_round_trip(tmp_path, suffix, shapes):
    path = tmp_path / f"m{suffix}"
    mask = random_mask(shapes)
    save_mask(mask, path)
    assert load_mask(path, shapes) == mask
    assert list(tmp_path.glob("*partial*")) == []


def test_long_tensors_are_written_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(mask_file, "_BLOCK", 64)
    shapes = {"w": torch.Size((29, 31)), "exact": torch.Size((2, 64))}
    mask = random_mask(shapes)
    save_mask(mask, tmp_path / "m.pt")
    assert load_mask(tmp_path / "m.pt", shapes) == mask


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_failed_write_leaves_the_old_file_alone(tmp_path, suffix, monkeypatch):
    path = tmp_path / f"m{suffix}"
    save_mask(random_mask(SHAPES), path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(WagleError, match="cannot be written: disk full"):
        save_mask(random_mask(SHAPES, seed=1), path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == before


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_same_mask_gives_the_same_file(tmp_path, suffix):
    paths = [tmp_path / f"{name}{suffix}" for name in "abcdef"]
    for path in paths:
        save_mask(random_mask(SHAPES), path, provenance={"ratio": "0.4"})
    assert len({path.read_bytes() for path in paths}) == 1


def test_files_saved_by_torch_are_read(tmp_path):
    """Views of one long tensor too, and tensors of other strides."""
    long = torch.rand(60) < 0.5
    content = {"a": long[:20].view(4, 5), "b": long[20:40].view(4, 5).T, "c": long[40:41]}
    torch.save(content, tmp_path / "m.pt")
    mask = load_mask(tmp_path / "m.pt", {name: t.shape for name, t in content.items()})
    assert all(torch.equal(mask[name].to_bool(), t) for name, t in content.items())
    assert read_provenance(tmp_path / "m.pt") == {}


def test_published_form_is_a_plain_dict_of_bool_tensors(tmp_path):
    mask = random_mask(SHAPES)
    save_mask(mask, tmp_path / "m.pt")
    content = torch.load(tmp_path / "m.pt", weights_only=True)
    assert {name: t.shape for name, t in content.items()} == SHAPES
    assert all(t.dtype == torch.bool for t in content.values())
    assert all(torch.equal(content[name], mask[name].to_bool()) for name in SHAPES)


def test_packed_form_is_small(tmp_path):
    shapes = {"w": torch.Size((1000, 1000))}
    save_mask(random_mask(shapes), tmp_path / "m.safetensors")
    assert (tmp_path / "m.safetensors").stat().st_size < 1000 * 1000 / 8 + 1000


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_files_remember_where_they_come_from(tmp_path, suffix):
    save_mask(random_mask(SHAPES), tmp_path / f"m{suffix}", provenance={"ratio": "0.4"})
    assert read_provenance(tmp_path / f"m{suffix}") == {"ratio": "0.4"}
    with pytest.raises(WagleError, match="there is no mask file"):
        read_provenance(tmp_path / f"missing{suffix}")


def refused(path, pattern, shapes=SHAPES, **options):
    with pytest.raises(WagleError, match=pattern):
        load_mask(path, shapes, **options)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_masks_of_another_model_are_refused(tmp_path, suffix):
    path = tmp_path / f"m{suffix}"
    save_mask(random_mask(SHAPES), path)
    refused(path, r"1 parameters of the model are missing: b", {**SHAPES, "b": torch.Size((2,))})
    fewer = {name: SHAPES[name] for name in ("a.weight", "a.bias")}
    refused(path, "1 entries are no parameters of the model: s", fewer)
    refused(
        path, r"a\.bias is \(5,\), the model's is \(6,\)", {**SHAPES, "a.bias": torch.Size((6,))}
    )


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    """A file of each form, and one that torch itself saved, with what is in them."""
    folder = tmp_path_factory.mktemp("intact")
    mask = random_mask({"w": torch.Size((40, 50)), "b": torch.Size((5,))})
    for suffix in SUFFIXES:
        save_mask(mask, folder / f"ours{suffix}", provenance={"ratio": "0.4"})
    torch.save({name: bits.to_bool() for name, bits in mask.items()}, folder / "torch.pt")
    return mask, {path.name: path.read_bytes() for path in folder.iterdir()}


def shapes_of(mask):
    return {name: bits.shape for name, bits in mask.items()}


def hurt(tmp_path, name, content):
    path = tmp_path / f"hurt{name[name.index('.') :]}"
    path.write_bytes(content)
    return path


FILES = ["ours.pt", "ours.safetensors", "torch.pt"]


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True))
def test_truncated_files_are_refused(tmp_path, intact, name, share):
    mask, contents = intact
    content = contents[name]
    refused(hurt(tmp_path, name, content[: int(share * len(content))]), "hurt", shapes_of(mask))


@pytest.mark.parametrize("name", ["ours.pt", "ours.safetensors"])
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_refused(tmp_path, intact, name, place, bit):
    mask, contents = intact
    content = bytearray(contents[name])
    content[int(place * len(content))] ^= 1 << bit
    refused(hurt(tmp_path, name, content), "hurt", shapes_of(mask))


@pytest.mark.parametrize("name", FILES)
def test_every_part_of_a_file_is_protected(tmp_path, intact, name):
    """The ends of a file, where its headers are, bit by bit.

    A few bits of torch's own files are protected by nothing; they hold nothing of the mask.
    """
    mask, contents = intact
    content = contents[name]
    size, accepted = len(content), 0
    for place in (*range(200), *range(size - 200, size)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        try:
            assert load_mask(hurt(tmp_path, name, flipped)) == mask
            accepted += 1
        except WagleError:
            pass
    assert accepted == 0 or (name == "torch.pt" and accepted < 200)


@pytest.mark.parametrize(
    ("content", "pattern"),
    [
        (
            {"a.weight": torch.ones(5, 7)},
            r"'a\.weight' should be a bool tensor, found torch.float32",
        ),
        ({"a.weight": [True]}, r"'a\.weight' should be a bool tensor, found list"),
        (torch.ones(3, dtype=torch.bool), "expected a dict"),
        ({}, "expected a dict"),
        ({("a", 1): torch.ones(3, dtype=torch.bool)}, "not the name of a parameter"),
    ],
)
def test_other_content_is_refused(tmp_path, content, pattern):
    torch.save(content, tmp_path / "m.pt")
    refused(tmp_path / "m.pt", pattern)


class Payload:
    def __reduce__(self):
        return (print, ("this must never be printed",))


def test_pickled_code_is_never_run(tmp_path, capsys):
    torch.save({"a.weight": Payload()}, tmp_path / "m.pt")
    refused(tmp_path / "m.pt", "arbitrary code")
    assert "never" not in capsys.readouterr().out


def test_other_safetensors_files_are_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"w": torch.ones(3)}, tmp_path / "m.safetensors")
    refused(tmp_path / "m.safetensors", "no mask of this program")
    save_file({"w": torch.ones(3)}, tmp_path / "m.safetensors", {"format": "wagle mask 2"})
    refused(tmp_path / "m.safetensors", "its format is 'wagle mask 2'")
    (tmp_path / "m.pt").write_text("no archive")
    refused(tmp_path / "m.pt", r"m\.pt is damaged or no mask file")
    refused(tmp_path / "missing.pt", "there is no mask file")
    refused(tmp_path / "m.bin", r"ends in \.pt or \.safetensors")


def test_published_wanda_masks_select_everything_outside_the_blocks(tmp_path):
    model = make_model()
    shapes = {name: p.shape for name, p in model.named_parameters()}
    names = list(block_linears(model))
    inside = random_mask({name: shapes[name] for name in names})
    numbered = {i: inside[name].to_bool() for i, name in enumerate(names)}
    torch.save(numbered, tmp_path / "m.pt")
    mask = load_mask(tmp_path / "m.pt", shapes, names)
    assert list(mask) == list(shapes)
    for name, shape in shapes.items():
        assert mask[name] == (inside[name] if name in inside else BitMask.full(shape, True))
    unnamed = load_mask(tmp_path / "m.pt")
    assert unnamed == {str(i): inside[name] for i, name in enumerate(names)}
    numbered.pop(0)
    torch.save(numbered, tmp_path / "m.pt")
    refused(tmp_path / "m.pt", "14 linear layers", shapes, linear_names=names)


def test_a_tied_head_may_be_listed_if_it_agrees(tmp_path):
    embedding = BitMask.from_bool(torch.rand(4, 3) < 0.5)
    flipped = BitMask.from_bool(~embedding.to_bool())
    shapes = {"model.embed_tokens.weight": torch.Size((4, 3))}
    path = tmp_path / "m.pt"
    save_mask({"model.embed_tokens.weight": embedding, "lm_head.weight": embedding}, path)
    assert load_mask(path, shapes) == {"model.embed_tokens.weight": embedding}
    save_mask({"model.embed_tokens.weight": embedding, "lm_head.weight": flipped}, path)
    refused(path, "masks differ", shapes)
