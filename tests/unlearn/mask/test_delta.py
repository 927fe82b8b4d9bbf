"""Deltas and certificates: undone bit for bit, and a single flipped bit is found."""

from __future__ import annotations

import copy
import hashlib
import shutil

import pytest
import torch

from tests.tiny import make_model
from wagle.commands import delta as command
from wagle.errors import WagleError
from wagle.model.stored_weights import StoredWeights
from wagle.optim.bitmask import BitMask
from wagle.unlearn.mask import certificate
from wagle.unlearn.mask.certificate import frozen_digest, model_bits, model_digest
from wagle.unlearn.mask.delta import (
    apply_delta,
    changed_outside,
    load_delta,
    make_delta,
    save_delta,
    shared,
)
from wagle.unlearn.mask.file import save_mask

DTYPES = [torch.float32, torch.bfloat16]


def split_masks(model):
    """Two disjoint masks that leave some weights to neither."""
    generator = torch.Generator().manual_seed(3)
    first, second = {}, {}
    for name, parameter in model.named_parameters():
        draw = torch.rand(parameter.shape, generator=generator)
        first[name] = BitMask.from_bool(draw < 0.3)
        second[name] = BitMask.from_bool((draw >= 0.3) & (draw < 0.5))
    return first, second


def changed(model, mask, seed):
    """A copy of the model with noise on the selected weights."""
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
            parameter[mask[name].to_bool()] += noise[mask[name].to_bool()]
    return model


@pytest.fixture(params=DTYPES, ids=str)
def folders(request, tmp_path):
    """A model, and what two requests with disjoint masks make of it."""
    model = make_model("llama_tied").to(request.param)
    masks = split_masks(model)
    model.save_pretrained(tmp_path / "base")
    for number, mask in enumerate(masks):
        changed(model, mask, number).save_pretrained(tmp_path / f"model{number}")
        save_mask(mask, tmp_path / f"mask{number}.safetensors")
    return tmp_path


def run(*words):
    return command.main([str(word) for word in words])


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


def test_a_request_is_undone_byte_for_byte(folders):
    for number in (0, 1):
        delta, mask = folders / f"d{number}.safetensors", folders / f"mask{number}.safetensors"
        run("make", folders / "base", folders / f"model{number}", "--mask", mask, "-o", delta)
    run("apply", folders / "base", folders / "d0.safetensors", "-o", folders / "applied")
    assert weights(folders / "applied") == weights(folders / "model0")
    run("revert", folders / "applied", folders / "d0.safetensors", "-o", folders / "back")
    assert weights(folders / "back") == weights(folders / "base")
    # One request of two is withdrawn, and the other stays as it is.
    deltas = [folders / f"d{number}.safetensors" for number in (0, 1)]
    run("stack", folders / "base", *deltas, "-o", folders / "both")
    run("stack", folders / "base", *deltas[::-1], "-o", folders / "other_order")
    assert weights(folders / "both") == weights(folders / "other_order")
    run("revert", folders / "both", deltas[0], "-o", folders / "second")
    assert weights(folders / "second") == weights(folders / "model1")
    with pytest.raises(WagleError, match="there is no model folder"):  # though none is written
        run("stack", folders / "nowhere", *deltas)


def test_requests_that_share_weights_keep_their_order(tmp_path):
    model = make_model()
    mask = split_masks(model)[0]
    after = changed(model, mask, 0)
    for name, state in {"a": model, "b": after, "c": changed(after, mask, 1)}.items():
        state.save_pretrained(tmp_path / name)
    a, b, c = (StoredWeights(tmp_path / name) for name in "abc")
    first, second = make_delta(a, b, mask, {}), make_delta(b, c, None, {"path": "second"})
    assert shared(first, second) == first.count == sum(m.count() for m in mask.values())
    with pytest.raises(WagleError, match=r"second cannot be put in: .* before its request"):
        apply_delta(second, a.writable)
    with pytest.raises(WagleError, match="take out first what was put in later"):
        apply_delta(first, c.writable, revert=True)
    bits = model_bits(model)  # in memory as in files
    for delta, back in ((first, False), (second, False), (second, True)):
        apply_delta(delta, bits, revert=back)
    for name, parameter in after.named_parameters():
        assert torch.equal(dict(model.named_parameters())[name], parameter)


@pytest.mark.parametrize("threads_used", [1, 3])
def test_a_flipped_frozen_bit_is_found(folders, threads_used, threads, capsys):
    threads(threads_used)
    words = ("verify", folders / "base", folders / "model0", folders / "mask0.safetensors")
    assert run(*words) == 0
    assert "unselected weights are bit for bit as before" in capsys.readouterr().out
    name = "model.layers.1.mlp.up_proj.weight"
    mask = split_masks(make_model("llama_tied"))[0]
    position = int((~mask[name].to_bool().view(-1)).nonzero()[0])
    StoredWeights(folders / "model0").writable(name)[position] ^= 1
    assert run(*words) == 1
    assert f"{name}: 1 unselected weights have changed" in capsys.readouterr().out
    with pytest.raises(WagleError, match="1 weights that the mask leaves out differ"):
        run("make", *words[1:3], "--mask", words[3], "-o", folders / "d.safetensors")


def test_the_digest_is_what_its_description_says(monkeypatch):
    monkeypatch.setattr(certificate, "CHUNK", 16)
    model = make_model().to(torch.bfloat16)
    mask = split_masks(model)[0]
    expected = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        shape = "×".join(map(str, weight.shape))
        expected.update(f"{name} bfloat16 {shape}\n".encode())
        zeroed = weight.detach().masked_fill(mask[name].to_bool(), 0).view(-1)
        content = bytes(zeroed.view(torch.uint8).tolist())
        for start in range(0, len(content), 32):
            expected.update(hashlib.sha256(content[start : start + 32]).digest())
    assert model_digest(model, mask) == expected.hexdigest()
    assert model_digest(changed(model, mask, 0), mask) == expected.hexdigest()


def test_what_verify_hashes_in_files_is_what_a_run_hashes_in_memory(folders):
    stored = StoredWeights(folders / "base")
    dtype = next(iter(stored.tensors.values())).dtype
    model = make_model("llama_tied").to(dtype)
    mask = split_masks(model)[0]
    dtypes = {name: tensor.dtype for name, tensor in stored.tensors.items()}
    assert frozen_digest(stored.bits, mask, dtypes) == model_digest(model, mask)


def test_deltas_of_other_models_and_damaged_ones_are_refused(folders):
    stored = [StoredWeights(folders / name) for name in ("base", "model0")]
    path = folders / "d.safetensors"
    save_delta(make_delta(*stored, None, {}), path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(WagleError, match="its checksum is wrong"):
        load_delta(path)
    path.write_bytes(content[:-9])
    with pytest.raises(WagleError, match="damaged or no delta"):
        load_delta(path)
    with pytest.raises(WagleError, match="no delta of this program"):
        load_delta(folders / "mask0.safetensors")
    with pytest.raises(WagleError, match="hold the same weights"):
        make_delta(stored[0], stored[0], None, {})
    make_model("gpt2").save_pretrained(folders / "gpt2")
    other = StoredWeights(folders / "gpt2")
    with pytest.raises(WagleError, match=r"are not of one form: .* not there"):
        list(changed_outside(stored[0], other, {}))
    with pytest.raises(WagleError, match="is of another model"):
        apply_delta(make_delta(*stored, None, {}), other.writable)
    shutil.rmtree(folders / "gpt2")


def test_nothing_is_left_where_a_delta_does_not_fit(folders):
    delta = folders / "d.safetensors"
    run("make", folders / "base", folders / "model0", "-o", delta)
    with pytest.raises(WagleError, match="cannot be put in"):
        run("apply", folders / "model0", delta, "-o", folders / "new")
    assert not [path for path in folders.iterdir() if "new" in path.name]
