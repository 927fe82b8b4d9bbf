"""Evaluation during training: the same weights, entries that survive a kill, the best step."""

from __future__ import annotations

import json
import math
import random
from statistics import fmean

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.several import together
from tests.tiny import make_model
from tests.unlearning import ROWS, make_objective, make_rows, recipe
from wagle import shards
from wagle.commands import unlearn as unlearn_model
from wagle.dataset.sources import load_rows, row_encoder
from wagle.dataset.templates import TEMPLATES
from wagle.errors import ConfigError
from wagle.metrics.benchmark import Metric
from wagle.model.loading import load_model
from wagle.model.training_evaluation import Choice, TrainingEvaluation, spread_evenly
from wagle.training.checkpoint import Checkpoints
from wagle.training.schedule import Plan
from wagle.unlearn.training import unlearn


def forgets(model, watching=None, checkpoints=None):
    """Unlearn with dropout, which draws from the generators."""
    objective = make_objective("GA+FT")
    plan = Plan.make(
        ROWS, batch_size=2, accumulation=1, num_epochs=1, max_steps=6, whole_epochs=False
    )
    hook = {"after_step": watching.after_step} if watching else {}
    return unlearn(
        *(model, make_rows(objective, model), objective, None, None, plan, recipe(lr=1e-2)),
        seed=0,
        checkpoints=checkpoints,
        **hook,
    )


def measures(model):
    """A measurement that disturbs whatever it can."""

    def measure():
        random.random()
        np.random.rand()  # noqa: NPY002
        torch.rand(3)
        return {"known": float(model.lm_head.weight.detach().double().sum())}

    return measure


def measured(log):
    return [(e["step"], e["evaluation known"]) for e in log if "evaluation known" in e]


def test_the_weights_are_those_of_a_training_without_it(tmp_path):
    plain, watched, resumed = (make_model("gpt2") for _ in range(3))
    before = float(watched.lm_head.weight.detach().double().sum())
    forgets(plain)
    log = forgets(watched, TrainingEvaluation(2, watched, measures(watched)))
    for name, parameter in plain.state_dict().items():
        assert torch.equal(parameter, watched.state_dict()[name])
    assert [step for step, _ in measured(log)] == [0, 2, 4, 6]
    assert measured(log)[0][1] == before
    assert measured(log)[-1][1] == float(watched.lm_head.weight.detach().double().sum())

    class Killed(Checkpoints):
        def after_step(self, standing, *args, **options):
            super().after_step(standing, *args, **options)
            if standing.step == 5:
                raise InterruptedError

    model = make_model("gpt2")
    watching = TrainingEvaluation(2, model, measures(model))
    killed = Killed(tmp_path, {}, every=1, keeps_last=False)
    with pytest.raises(InterruptedError):
        forgets(model, watching, killed)
    watching = TrainingEvaluation(2, resumed, measures(resumed))
    again = forgets(resumed, watching, Checkpoints(tmp_path, {}, every=1, keeps_last=False))
    assert measured(again) == measured(log)
    assert torch.equal(resumed.lm_head.weight, watched.lm_head.weight)


def entries(*values):
    return [
        {"step": step, "evaluation a": a, "evaluation u": u} for step, (a, u) in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("better", "floor", "best"),
    [
        (-1, 0.0, 3),
        (-1, 0.5, 2),  # step 3 keeps 0.4 of 1.0
        (-1, 0.95, None),
        (1, 0.5, 1),
    ],
)
def test_the_best_step_keeps_the_utility(better, floor, best):
    log = [*entries((0.9, 1.0), (0.8, 0.9), (0.3, 0.6), (0.1, 0.4)), {"step": 3, "loss": 1.0}]
    choice = Choice(Metric("a", "", better), Metric("u", ""), floor)
    assert choice.best(log) == best


def test_of_a_perplexity_less_is_kept():
    choice = Choice(Metric("a", "", -1), Metric("u", "", -1), 0.5)
    assert choice.best(entries((0.9, 10.0), (0.5, 19.0), (0.1, 21.0))) == 1


def test_rows_are_spread_evenly():
    assert spread_evenly(list(range(10)), 3) == [0, 3, 6]
    assert spread_evenly([1, 2], 3) == [1, 2]


DURING = {
    **{"evaluation.every_steps": 2, "evaluation.during_rows": 3, "evaluation.batch_size": 4},
    **{"unlearn.max_steps": 6, "unlearn.task_name": "none", "unlearn.mask_path": None},
}


def test_a_run_measures_and_keeps_the_best_step(tmp_path, options, model_folder, capsys):
    wanted = {**DURING, "evaluation.keep_best": "forget loss", "evaluation.utility_floor": 0}
    assert unlearn_model.main(options(wanted)) == 0
    folder = tmp_path / "runs" / "a"
    assert (folder / "images" / "evaluations.png").is_file()
    log = json.loads((folder / "log.json").read_text())
    found = [entry for entry in log if "evaluation forget loss" in entry]
    assert [entry["step"] for entry in found] == [0, 2, 4, 6]

    def losses(place, name, role):
        model, tokenizer = load_model(
            str(place), dtype=torch.float32, device=torch.device("cpu"), cache_dir=tmp_path
        )
        encode = row_encoder(name, tokenizer, TEMPLATES["question_answer"], eos=False)
        rows = load_rows(name, data_dir=None, cache_dir=tmp_path, role=role)
        for row in spread_evenly(rows, 3):
            encoded = encode(row)
            with torch.no_grad():
                logits = model(torch.tensor([encoded.input_ids])).logits[0]
            table = logits.double().log_softmax(-1)
            places = [t for t, label in enumerate(encoded.labels) if label != -100]
            yield -fmean(float(table[t - 1, encoded.input_ids[t]]) for t in places)

    of_retain = list(losses(model_folder, "Demo_retain90", "retain"))
    assert found[0]["evaluation retain loss"] == pytest.approx(fmean(of_retain), rel=1e-4)
    probabilities = [math.exp(-loss) for loss in of_retain]
    assert found[0]["evaluation retain probability"] == pytest.approx(
        fmean(probabilities), rel=1e-4
    )
    best = max(found[1:], key=lambda entry: entry["evaluation forget loss"])["step"]
    assert f"step {best} of 6" in capsys.readouterr().out


def test_the_best_weights_come_back(tmp_path):
    model = make_model()
    values = iter([(0.9, 1.0), (0.2, 0.95), (0.5, 0.99), (0.0, 0.1)])
    choice = Choice(Metric("a", "", -1), Metric("u", ""), 0.9)
    watching = TrainingEvaluation(
        *(2, model, lambda: dict(zip("au", next(values), strict=True))),
        choice=choice,
        path=tmp_path / "training" / "best.safetensors",
    )
    model.model.norm.weight.requires_grad_(False)
    log, weights = [], []
    for step in range(7):
        with torch.no_grad():
            model.lm_head.weight.add_(1.0)
        weights.append(model.lm_head.weight.detach().clone())
        if entry := watching.after_step(step, log):
            log.append(entry)
    watching.restore_best(log)
    assert torch.equal(model.lm_head.weight, weights[2])
    assert "model.norm.weight" not in load_file(tmp_path / "training" / "best.safetensors")


def _keep_best(folder):
    """Weights that grow by 1 a step, and of which each process has a part; step 2 is the best."""
    model = make_model("llama_tied")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    shards.shard(model)
    known = iter([0.0, 1.0, 5.0, 2.0])
    metric = Metric("known", "Larger is better.", 1)
    watching = TrainingEvaluation(
        *(1, model, lambda: {"known": next(known), "kept": 1.0}),
        choice=Choice(metric, Metric("kept", "Utility.", 1), 0.5),
        path=folder / "training" / "best.safetensors",
    )
    log = []
    for step in range(4):
        log.append(watching.after_step(step, log))
        with torch.no_grad():
            for parameter in model.parameters():
                shards.local(parameter).add_(1)
    watching.restore_best(log)
    return {
        name: round(float((shards.whole(p) - before[name]).mean()), 3)
        for name, p in model.named_parameters()
    }


@pytest.mark.slow
def test_processes_that_hold_parts_keep_the_best_of_all(tmp_path):
    for grown in together(2, _keep_best, tmp_path):
        assert set(grown.values()) == {2.0}, grown


def test_what_cannot_be_the_best_is_said_before_training(options, monkeypatch):
    monkeypatch.setattr("wagle.model.unlearn.load_model", None)
    with pytest.raises(ConfigError, match="there are: forget loss, forget probability"):
        unlearn_model.main(options({**DURING, "evaluation.keep_best": "forgetting"}))
    with pytest.raises(ConfigError, match=r"needs evaluation\.every_steps"):
        unlearn_model.main(options({"evaluation.keep_best": "forget loss"}))
