"""Work that is broken off half-way goes on there, to the same bits as at once."""

from __future__ import annotations

import functools
import json
import os
import signal
from pathlib import Path

import pytest
import torch
from several import together

from tests.tiny import VOCABULARY, make_model
from wagle import ranks, shards, stopping
from wagle.dataset.demo_questions import FOLDER
from wagle.dataset.encoding import Encoded
from wagle.errors import Terminated
from wagle.metrics import continuation, generation, harness
from wagle.metrics.generation import generate_greedy
from wagle.metrics.gradient_norms import gradient_norms
from wagle.metrics.harness import run_task
from wagle.metrics.likelihood import score_tokens
from wagle.metrics.partial_work import keeping
from wagle.pace import Pace

ORIGIN = {"weights": "1f"}


class BrokenOff(Exception):
    pass


@pytest.fixture(autouse=True)
def _written_at_every_chance(monkeypatch):
    monkeypatch.setattr(Pace, "due", lambda self: True)


def end():
    raise BrokenOff


def ask_to_end(kind=signal.SIGTERM):
    os.kill(os.getpid(), kind)


class Passes:
    """The forward passes of a model: their inputs, and what happens before one of them."""

    def __init__(self, model):
        self.read = []
        self.most = None
        self.event = end
        model.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module, args, kwargs):
        if self.most is not None and len(self.read) == self.most:
            self.event()
        ids = kwargs.get("input_ids", args[0] if args else None)
        self.read.append(ids.tolist())

    def of(self, work):
        """What the work gives, and its passes."""
        self.read.clear()
        return work(), list(self.read)

    def broken(self, work, most, event=end, error=BrokenOff):
        """The work ends after something that happens before a pass."""
        self.most, self.event = most, event
        self.read.clear()
        with pytest.raises(error):
            work()
        self.most = None


def prompts_and_texts():
    generator = torch.Generator().manual_seed(5)
    lengths = torch.randint(1, 20, (13,), generator=generator).tolist()
    return [
        torch.randint(3, VOCABULARY, (length,), generator=generator).tolist() for length in lengths
    ]


def answers(model, limit=24):
    """Nine rows and more, in batches of two: the cache is filled anew after every fourth answer."""
    return generate_greedy(
        model,
        prompts_and_texts(),
        eos_token_ids={7, 50, 90, 200},
        pad_token_id=2,
        max_total_length=limit,
        batch_size=2,
        description="answers",
    )


def kept(model, folder, work, origin=ORIGIN):
    """What the work gives while it is kept, and after what it went on."""
    resumed = []
    with keeping(model, folder, origin, resumed.append):
        return work(), resumed


@pytest.mark.parametrize("way", ["CachedTexts", "PaddedTexts", "WholeTexts"])
def test_answers_go_on_where_they_were_broken_off(tmp_path, monkeypatch, way):
    monkeypatch.setattr(generation, "PIECE", 2)
    monkeypatch.setattr(generation, "_find_way", lambda *_: getattr(continuation, way))
    logits, most_likely = [], generation.most_likely

    def noted(values):
        logits.append(values.clone())
        return most_likely(values)

    monkeypatch.setattr(generation, "most_likely", noted)
    monkeypatch.setattr(continuation, "most_likely", noted)
    model = make_model()
    passes = Passes(model)
    work = functools.partial(answers, model)
    expected, straight = passes.of(work)
    assert len({len(answer) for answer in expected}) > 3
    all_logits = list(logits)
    for most in (len(straight) // 2, len(straight) - 1):
        again_kept = functools.partial(kept, model, tmp_path / str(most), work)
        passes.broken(again_kept, most)
        logits.clear()
        (found, (went_on,)), again = passes.of(again_kept)
        assert found == expected
        assert went_on.endswith(" of 13 rows: answers")
        assert 0 < int(went_on.split()[0]) < 13
        # Not a pass more than the last of an undisturbed run, nor another bit of what they give.
        assert again == straight[-len(again) :]
        assert len(again) < len(straight)
        assert len(straight) - len(again) > most // 3
        for own, same in zip(logits, all_logits[-len(logits) :], strict=True):
            assert torch.equal(own, same)


def likelihoods(model, standardize=False):
    texts = [Encoded(ids, ids) for ids in prompts_and_texts()]
    return score_tokens(
        model,
        texts,
        batch_size=2,
        pad_token_id=2,
        description="likelihoods",
        standardize=standardize,
    )


@pytest.mark.parametrize("standardize", [False, True])
def test_likelihoods_go_on_with_the_next_batch(tmp_path, standardize):
    model = make_model()
    passes = Passes(model.model)
    work = functools.partial(likelihoods, model, standardize)
    work()  # what the architecture can read is found out once
    expected, straight = passes.of(work)
    passes.broken(lambda: kept(model, tmp_path, work), len(straight) - 2)
    (found, (went_on,)), again = passes.of(lambda: kept(model, tmp_path, work))
    assert went_on == "10 of 13 rows: likelihoods"  # two of the others are read as one tree
    assert again == straight[-2:]
    for own, same in zip(found, expected, strict=True):
        for column in ("log_probs", "is_greedy", "standardized"):
            left, right = getattr(own, column), getattr(same, column)
            assert left.dtype == right.dtype
            assert (left == right).all()


def gradients(model):
    texts = [Encoded(ids, ids) for ids in prompts_and_texts() if len(ids) > 1]
    return gradient_norms(model, texts, pad_token_id=2)


def test_gradients_go_on_with_the_next_text(tmp_path):
    model = make_model()
    passes = Passes(model.model)
    work = functools.partial(gradients, model)
    expected, straight = passes.of(work)
    passes.broken(lambda: kept(model, tmp_path, work), 7)
    (found, (went_on,)), again = passes.of(lambda: kept(model, tmp_path, work))
    assert found == expected
    assert went_on == f"7 of {len(expected)} rows: gradients of texts"
    assert again == straight[-(len(expected) - 7) :]


@pytest.fixture
def seldom_written(monkeypatch):
    monkeypatch.setattr(Pace, "due", lambda self: False)


@pytest.mark.parametrize(
    ("work", "until"),
    [
        (answers, "at most 2 more answers"),
        (likelihoods, "this batch"),
        (gradients, "this text"),
    ],
)
def test_a_signal_ends_work_after_the_batch_and_only_the_rest_is_done_again(
    tmp_path, monkeypatch, seldom_written, handled, capfd, work, until
):
    monkeypatch.setattr(generation, "PIECE", 1)
    monkeypatch.setattr(generation, "_find_way", lambda *_: continuation.CachedTexts)
    model = make_model()
    passes = Passes(model.model)
    work = functools.partial(work, model)
    work()
    expected, straight = passes.of(work)
    asked = len(straight) // 2
    passes.broken(lambda: kept(model, tmp_path, work), asked, ask_to_end, Terminated)
    ended = list(passes.read)
    assert ended == straight[: len(ended)]
    assert asked < len(ended) < len(straight)
    said = capfd.readouterr()
    # Beside the progress that a slow machine shows.
    assert f"\nending after {until}; once more: at once\n" in said.err
    (found, (went_on,)), again = passes.of(lambda: kept(model, tmp_path, work))
    assert repr(found) == repr(expected)
    assert said.out == f"the same command goes on after {went_on}\n"
    left = len(straight) - len(ended)
    assert again[-left:] == straight[-left:]
    assert again[:-left] == straight[: len(again) - left]  # what the architecture can read
    assert len(again) - left <= 3


@pytest.mark.parametrize("why", ["the second", "nothing is kept"])
def test_a_signal_ends_work_at_once(tmp_path, seldom_written, handled, why):
    model = make_model()
    passes = Passes(model.model)

    def ask():
        ask_to_end(signal.SIGHUP)
        ask_to_end()

    if why == "the second":
        passes.broken(lambda: kept(model, tmp_path, lambda: likelihoods(model)), 5, ask, Terminated)
    else:
        passes.broken(lambda: likelihoods(model), 5, ask_to_end, Terminated)
    assert len(passes.read) == 5
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change", ["another model", "another origin", "another limit", "damaged", "empty", "nothing"]
)
def test_only_what_is_of_the_same_is_gone_on_with(tmp_path, monkeypatch, change):
    monkeypatch.setattr(generation, "PIECE", 1)
    monkeypatch.setattr(generation, "_find_way", lambda *_: generation.CachedTexts)
    model, other = make_model(), make_model(seed=1)
    passes = Passes(model)
    passes.broken(lambda: kept(model, tmp_path, lambda: answers(model)), 60)
    (file,) = tmp_path.iterdir()
    if change == "damaged":
        content = json.loads(file.read_text())
        content["content"]["new"][0] = [5, 5]
        file.write_text(json.dumps(content))
    if change == "empty":
        file.write_text("")
    asked = other if change == "another model" else model
    origin = {"weights": "2f"} if change == "another origin" else ORIGIN
    work = functools.partial(answers, asked, limit=23 if change == "another limit" else 24)
    found, resumed = kept(model, tmp_path, work, origin)
    assert found == work()
    assert bool(resumed) == (change == "nothing")


def test_what_is_asked_twice_is_not_gone_on_with(tmp_path):
    model = make_model()
    texts = [Encoded(ids, ids) for ids in prompts_and_texts()]

    def twice():
        for _ in range(2):
            score_tokens(model, texts, batch_size=2, pad_token_id=2, description="likelihoods")

    assert kept(model, tmp_path, twice)[1] == []
    assert len(list(tmp_path.iterdir())) == 1


def test_what_cannot_be_kept_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(generation, "PIECE", 1)
    (tmp_path / "file").touch()
    model = make_model()
    found, _ = kept(model, tmp_path / "file" / "folder", lambda: answers(model))
    assert found == answers(model)
    assert " of 13 rows: answers are done and not kept: " in capsys.readouterr().out


GENERATED = """
task: generated
dataset_path: json
dataset_kwargs:
  data_files: {{test: {file}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{text[:40]}}}}"
doc_to_target: " a"
generation_kwargs:
  max_gen_toks: 6
metric_list:
  - metric: exact_match
"""


def lm_eval_work(model, tokenizer, task, folder):
    """A task's name or file, and what runs it row by row; ``generated`` is written to a folder."""
    if task == "generated":
        task = str(folder / "task.yaml")
        Path(task).write_text(GENERATED.format(file=FOLDER / "demo_text.jsonl"))
    return task, functools.partial(run_task, model, tokenizer, task, batch_size=1, limit=5)


@pytest.mark.parametrize(
    ("task", "after", "left"),
    [
        ("demo_wmdp", "52 of 60 requests", 2),
        ("demo_text", "2 windows", 2),
        ("generated", "3 of 4 requests", 6),
    ],
)
def test_lm_eval_goes_on_with_the_next_batch(tmp_path, tokenizer, monkeypatch, task, after, left):
    model = make_model()
    passes = Passes(model)
    task, work = lm_eval_work(model, tokenizer, task, tmp_path)
    expected, straight = passes.of(work)
    folder = tmp_path / "kept"
    monkeypatch.setattr(harness, "WagleError", BrokenOff)  # what run_task makes of anything
    passes.broken(lambda: kept(model, folder, work), len(straight) - 2)
    (found, (went_on,)), again = passes.of(lambda: kept(model, folder, work))
    assert found == expected
    assert went_on == f"{after}: {task}"
    assert again == straight[-left:]


@pytest.mark.parametrize(
    ("task", "after"), [("demo_text", "4 windows"), ("generated", "4 of 4 requests")]
)
def test_a_signal_in_the_last_batch_of_lm_eval_loses_nothing(
    tmp_path, tokenizer, seldom_written, handled, task, after
):
    model = make_model()
    passes = Passes(model)
    task, work = lm_eval_work(model, tokenizer, task, tmp_path)
    expected, straight = passes.of(work)
    folder = tmp_path / "kept"
    last = len(straight) - 1
    passes.broken(lambda: kept(model, folder, work), last, ask_to_end, Terminated)
    (found, resumed), again = passes.of(lambda: kept(model, folder, work))
    assert found == expected
    assert (resumed, again) == ([f"{after}: {task}"], [])


def _signalled_and_again(folder, cut):
    """Of one of several processes: are answers the same, how many passes, and what went on."""

    def started():
        model = make_model()
        if cut:
            shards.shard(model)
        return Passes(model), functools.partial(answers, model), model

    Pace.due = lambda self: False
    generation.PIECE = 1
    stopping.install()
    passes, work, _ = started()
    expected, straight = passes.of(work)
    passes, work, model = started()
    if not cut or ranks.is_first():  # what they do together they end together
        passes.most, passes.event = len(straight) // 2, ask_to_end
    with pytest.raises(KeyboardInterrupt):
        kept(model, folder, work)
    ended = len(passes.read)
    passes, work, model = started()
    (found, resumed), again = passes.of(lambda: kept(model, folder, work))
    return found == expected, len(straight), ended, len(again), resumed


@pytest.mark.parametrize("cut", [False, True])
def test_several_processes_go_on_with_their_own_rows_or_together(tmp_path, cut):
    for same, straight, ended, again, resumed in together(2, _signalled_and_again, tmp_path, cut):
        assert same
        assert straight // 2 < ended < straight
        assert again - (straight - ended) < 12  # passes that tell how the model can read
        assert len(resumed) == 1
    assert len(list(tmp_path.iterdir())) == (1 if cut else 2)
