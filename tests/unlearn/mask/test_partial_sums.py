"""An attribution that is broken off goes on from its partial sums, and from nothing else."""

from __future__ import annotations

import errno
import os
import signal

import pytest
import torch

from tests.gradient_sums import random_examples
from tests.tiny import make_model
from wagle.config.keys import UnlearnSection
from wagle.pace import Pace
from wagle.unlearn.mask import gradients
from wagle.unlearn.mask.gradients import cached_gradient_sums
from wagle.unlearn.mask.tensor_file import TensorFile

ROWS, TOGETHER = 8, 3  # summed in three steps
EXAMPLES = random_examples(ROWS, seed=4)


class Broken(Exception):
    pass


class Attribution:
    """Attributions in a folder, each by a process of its own as far as the cache can tell."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.monkeypatch = folder, monkeypatch
        self.partial = folder / "m.forget_gradients.safetensors.unfinished"
        self.resumed = []

    def sums(self, breaks_at=None, examples=EXAMPLES, **changes):
        """The sums; with ``breaks_at`` they are broken off in that step."""
        self.steps, self.resumed = 0, []
        token_losses = gradients.token_losses

        def counted(*args):
            self.steps += 1
            if self.steps == breaks_at:
                raise Broken
            return token_losses(*args)

        section = UnlearnSection(**{"attribution_batch_size": TOGETHER, **changes})
        with self.monkeypatch.context() as patched:
            patched.setattr(gradients, "token_losses", counted)
            return cached_gradient_sums(
                *(make_model(), {"forget": examples}, section, self.folder / "m"),
                batch_size=2,
                pad_token_id=2,
                on_resume=self.resumed.append,
            )["forget"]

    def break_off(self, step, **changes):
        with pytest.raises(Broken):
            self.sums(step, **changes)


@pytest.fixture
def attribution(tmp_path, monkeypatch):
    """Partial sums are kept after every step."""
    monkeypatch.setattr(Pace, "due", lambda self: True)
    return Attribution(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkeypatch:
        return Attribution(tmp_path_factory.mktemp("straight"), monkeypatch).sums()


def assert_same(found, expected):
    for name in expected.shapes:
        assert torch.equal(found.read(name), expected.read(name)), name


@pytest.mark.parametrize("offload", ["none", "cpu", "disk"])
def test_sums_that_go_on_are_those_of_an_undisturbed_attribution(
    attribution, straight, offload, capsys
):
    attribution.break_off(2, attribution_offload=offload)
    attribution.break_off(2, attribution_offload=offload)
    assert not attribution.partial.with_suffix("").exists()
    found = attribution.sums(attribution_offload=offload)
    assert attribution.steps == 1
    assert_same(found, straight)
    assert f"going on after 6 of {ROWS} rows, from {attribution.partial}" in capsys.readouterr().out
    assert [e["after"] for e in attribution.resumed] == [
        f"{n} rows of m.forget_gradients" for n in (3, 6)
    ]
    assert not attribution.partial.exists()


def test_they_go_on_in_another_place_and_with_fewer_rows_at_once(attribution, straight):
    """Memory ran out: what has been summed still counts."""
    attribution.break_off(2)
    found = attribution.sums(attribution_offload="disk", attribution_batch_size=1)
    assert attribution.steps == ROWS - TOGETHER
    for name in straight.shapes:
        torch.testing.assert_close(found.read(name), straight.read(name), rtol=1e-4, atol=1e-5)


def cut(path):
    os.truncate(path, path.stat().st_size - 1)


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-50] ^= 1
    path.write_bytes(content)


def seal(path, **metadata):
    """Sums that are whole, and say of themselves what is not so."""
    file = TensorFile(path)
    values = {"fingerprint": file.metadata["fingerprint"], "rows": "3", "resumed": "[]"}
    made = TensorFile.create(
        path.with_name("other"), file.shapes, torch.float32, {**values, **metadata}
    )
    made.seal()
    made.path.replace(path)


DAMAGES = {
    "cut short": (cut, "is damaged"),
    "flipped bit": (flip_a_bit, "its checksum is wrong"),
    "empty": (lambda path: path.write_bytes(b""), "is damaged"),
    "of others": (lambda path: seal(path, fingerprint="f"), "another model, data or settings"),
    "of more rows": (lambda path: seal(path, rows=str(ROWS + 1)), "other sums than it should"),
    "of no rows": (lambda path: seal(path, rows="none"), "does not say how far"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_partial_sums_that_are_damaged_or_of_others_are_not_used(
    attribution, straight, damage, capsys
):
    attribution.break_off(2)
    do, said = DAMAGES[damage]
    do(attribution.partial)
    assert_same(attribution.sums(), straight)
    assert (attribution.steps, attribution.resumed) == (3, [])
    assert said in (output := capsys.readouterr().out)
    assert "beginning with the first row" in output


def test_of_other_rows_they_are_not_used(attribution, straight, capsys):
    attribution.break_off(2, examples=random_examples(ROWS, seed=5))
    assert_same(attribution.sums(), straight)
    assert "belongs to another model, data or settings" in capsys.readouterr().out


def test_a_signal_ends_it_after_the_step_with_the_sums_kept(attribution, straight, handled, capfd):
    attribution.monkeypatch.setattr(Pace, "due", lambda self: False)
    token_losses = gradients.token_losses

    def interrupting(*args):
        os.kill(os.getpid(), signal.SIGINT)
        return token_losses(*args)

    with attribution.monkeypatch.context() as patched:
        patched.setattr(gradients, "token_losses", interrupting)
        with pytest.raises(KeyboardInterrupt):
            attribution.sums()
    said = capfd.readouterr()
    kept = f"the same command goes on after {TOGETHER} of {ROWS} rows: {attribution.partial}"
    assert kept in said.out
    assert "ending after these rows; once more: at once" in said.err
    assert_same(attribution.sums(), straight)
    assert attribution.steps == 2


def test_what_keeps_them_from_being_kept_is_only_said(attribution, straight, capsys):
    create = TensorFile.create

    def full(path, *args):
        if ".unfinished" in path.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return create(path, *args)

    with attribution.monkeypatch.context() as patched:
        patched.setattr(TensorFile, "create", full)
        assert_same(attribution.sums(), straight)
    assert "the sums so far are not kept" in capsys.readouterr().out
    names = {path.name for path in attribution.folder.iterdir() if path.suffix != ".lock"}
    assert names == {"m.forget_gradients.safetensors"}


def test_what_a_kill_left_beside_finished_sums_is_removed(attribution):
    attribution.sums()
    attribution.partial.write_bytes(b"left")
    attribution.sums()
    assert attribution.steps == 0
    assert not attribution.partial.exists()
