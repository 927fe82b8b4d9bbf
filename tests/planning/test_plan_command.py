"""``--plan`` as a user gives it: a model's config.json is all there is, and nothing is made."""

from __future__ import annotations

import copy

import pytest

from tests.tiny import CONFIGS
from wagle.commands import fine_tune, mask, unlearn
from wagle.errors import ConfigError
from wagle.metrics import continuation, copyright, own, tofu, tofu_field, toxicity
from wagle.metrics.copyright import COPYRIGHT
from wagle.metrics.muse import MUSE
from wagle.metrics.own import OWN
from wagle.metrics.tofu_benchmark import OFFICIAL, TOFU
from wagle.metrics.toxicity import TOXICITY
from wagle.planning import jobs


@pytest.fixture
def options(tmp_path, monkeypatch):
    """Options of a small run in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    # This process has imported whatever other tests have needed.
    monkeypatch.setattr("wagle.planning.report.program_memory", lambda device: 0)
    config = copy.deepcopy(CONFIGS["llama"])
    config.num_hidden_layers = 1
    config.save_pretrained("model")
    return [
        *("--overall.model_name", "model", "--overall.device", "cpu", "--overall.dtype", "float32"),
    ]


def rows_of(text):
    """The lines of the table that end in numbers, by their names."""
    lines = [line.rsplit("  ", 1) for line in text.splitlines() if "  " in line]
    return {line[0].split("  ")[0]: line[1] for line in lines}


def left_behind(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def unlearning(*more):
    return [
        *("--unlearn.unlearn_method", "NPO", "--unlearn.task_name", "tofu"),
        *("--dataset.forget_dataset_name", "Demo_forget10"),
        *("--dataset.retain_dataset_name", "Demo_retain90"),
        *("--unlearn.mask_path", "mask/x_0.5.pt", "--dataset.batch_size", "2", *more),
    ]


def test_the_phases_of_a_run(options, capsys, tmp_path):
    assert unlearn.main([*options, *unlearning(), "--plan"]) == 0
    text = capsys.readouterr().out
    for phase in ("attribution", "reference losses", "training", "evaluation"):
        assert phase in text
    assert "forget texts of at most 512 tokens (the limit)" in text
    assert "It fits" in text
    assert {"weights", "moments", "activations", "in all"} <= rows_of(text).keys()
    assert left_behind(tmp_path) == ["config.json"]


def test_what_does_not_fit_is_said_with_what_would(options, capsys):
    assert unlearn.main([*options, *unlearning(), "--plan=11MB"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "It does not fit: 0.011 GB are given" in text
    assert "training fits with --unlearn.gradient_checkpointing true" in text
    assert "attribution fits with --unlearn.attribution_batch_size" in text


def test_several_devices_hold_parts_of_what_one_cannot(options, capsys):
    held = {}
    for size in ("2x8GB", "2x9MB"):
        assert unlearn.main([*options, *unlearning(), "--plan", size]) == 0
        text = capsys.readouterr().out
        held[size] = " ".join(text.split())
    assert "2 devices (cpu), each with all of the model (ddp)" in held["2x8GB"]
    assert "2 devices (cpu), each with a part of the model (fsdp)" in held["2x9MB"]
    assert "blocks put together" in held["2x9MB"]


def test_what_fits_nowhere_is_said(options, capsys):
    dense = ["--unlearn.mask_path", "null", "--unlearn.unlearn_method", "GradDiff"]
    assert unlearn.main([*options, *unlearning(*dense), "--plan", "1MB"]) == 0
    assert "training does not fit; the least is" in " ".join(capsys.readouterr().out.split())


def test_masks_and_fine_tuning(options, capsys, tmp_path):
    masks = ["make", "--ratios", "0.5,0.2", *options, *unlearning()]
    assert mask.main([*masks, "--plan", "8GB"]) == 0
    text = capsys.readouterr().out
    assert "attribution" in text
    assert "training" not in text
    tuning = ["--finetune.dataset_name", "Demo_full", "--finetune.output_dir", "out"]
    assert fine_tune.main([*options, *tuning, "--plan", "8GB"]) == 0
    assert "training" in capsys.readouterr().out
    assert left_behind(tmp_path) == ["config.json"]


def test_a_device_that_is_not_here_needs_a_size(options, capsys):
    elsewhere = [*options, *unlearning(), "--overall.device", "cuda", "--overall.dtype", "bfloat16"]
    assert unlearn.main([*elsewhere, "--plan", "24GB"]) == 0
    assert "in bfloat16 on cuda" in capsys.readouterr().out


def test_the_model_of_from_scratch_is_not_planned(options):
    tuning = ["--finetune.dataset_name", "Demo_full", "--finetune.output_dir", "out"]
    with pytest.raises(ConfigError, match="tiny model"):
        fine_tune.main([*options, *tuning, "--finetune.from_scratch", "true", "--plan"])


@pytest.mark.parametrize(
    ("task", "protocol", "tokens"),
    [
        ("tofu", "corrected", tofu.MAX_TOTAL_LENGTH),
        ("tofu", "official", 512 + tofu_field.NEW_TOKENS),
        ("own", "corrected", 512),
    ],
)
def test_answers_are_planned_at_their_longest(options, monkeypatch, task, protocol, tokens):
    """Of texts of up to 512 tokens, which is what is planned with where there are no rows."""
    planned = []
    phase = jobs.reading_phase
    monkeypatch.setattr(
        jobs,
        "reading_phase",
        lambda *args, **options: (
            planned.append(options.get("cached_tokens")) or phase(*args, **options)
        ),
    )
    asked = ["--evaluation.protocol", protocol, "--evaluation.batch_size", "4"]
    assert unlearn.main([*options, *unlearning(*asked, "--unlearn.task_name", task), "--plan"]) == 0
    assert 4 * (tokens + continuation.DRAFT) in planned


def test_limits_of_answers_are_those_that_are_planned():
    assert [benchmark.continued(120) for benchmark in (TOFU, OFFICIAL, COPYRIGHT, TOXICITY)] == [
        tofu.MAX_TOTAL_LENGTH,
        120 + tofu_field.NEW_TOKENS,
        copyright.MAX_TOTAL_LENGTH,
        toxicity.MAX_TOTAL_LENGTH,
    ]
    assert [OWN.continued(tokens) for tokens in (120, 300)] == [own.LEAST_TOTAL_LENGTH, 300]
    assert MUSE.continued(2048) == 2048  # a prompt leaves room for what follows
