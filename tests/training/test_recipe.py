"""What a run means where nobody said otherwise: every default against the source it comes from."""

from __future__ import annotations

import math

import pytest
import torch

from tests.tiny import VOCABULARY
from wagle.config import load_config
from wagle.dataset.encoding import Encoded, pad_batch
from wagle.unlearn.objectives.losses import (
    answer_lengths,
    example_cross_entropy,
    soft_cross_entropy,
)

# The published program's configuration (OPTML-Group/WAGLE) unless another source is named.
SOURCES = {
    "overall.seed": 0,
    "unlearn.num_epochs": 1,
    "unlearn.lr": 1e-4,
    "unlearn.weight_decay": 0.0,
    "unlearn.gradient_accumulation_steps": 1,
    "unlearn.mu": 1e-3,
    "unlearn.mask_scope": "global",
    "unlearn.mask_exclude": [],
    "unlearn.mask_enforcement": "optimizer",
    "unlearn.sophia_params.betas_low": 0.9,
    "unlearn.sophia_params.betas_high": 0.95,
    "unlearn.sophia_params.rho": 0.03,
    "unlearn.NPO+FT.beta": 0.1,  # Zhang et al. 2024, section 5
    "unlearn.DPO+FT.beta": 0.1,  # Rafailov et al. 2023, appendix B
    "unlearn.CL+FT.gamma": 1.0,
    "unlearn.GA+FT.gamma": 0.0,
    "unlearn.SimNPO+FT.beta": 2.5,  # Fan et al. 2024, on TOFU
    "unlearn.SimNPO+FT.delta": 0.0,
    "unlearn.NPO+FT.length_normalised": True,
    "unlearn.NPO+FT.forget_weight": 1.0,
    "unlearn.NPO+FT.retain_loss": "nll",
    "unlearn.WGA+FT.beta": 1.0,  # Wang et al. 2025
    "unlearn.TNPO+FT.beta": 4.0,
    "unlearn.SatImp+FT.beta1": 5.0,  # Yang et al. 2025
    "unlearn.SatImp+FT.beta2": 1.0,
    "unlearn.SatImp+FT.forget_weight": 0.1,
    "unlearn.SatImp+FT.gamma": 1.0,
    "unlearn.UNDIAL.beta": 10.0,  # Dong et al. 2024
    "unlearn.UNDIAL.gamma": 0.0,
    "unlearn.UNDIAL.published": False,
    "unlearn.CE-U.skipped_tokens": 1,  # Yang 2025
    "unlearn.CE-U.gamma": 0.0,
    "unlearn.PDU.gamma": 1.0,  # Entesari et al. 2025
    "unlearn.PDU.epsilon": 0.3,
    "unlearn.PDU.step_size": 1.0,
    "unlearn.PDU.warmup_epochs": 5,
    "unlearn.RMU.layer": None,  # the model's family says: 7 of Zephyr-7B, Li et al. 2024
    "unlearn.RMU.steering_coefficient": 6.5,
    "unlearn.RMU.alpha": 1200.0,
    "dataset.dataset_seed": 0,
    "dataset.batch_size": 16,
}


@pytest.mark.parametrize("key", SOURCES)
def test_defaults_are_those_of_their_sources(key):
    argv = ["--overall.model_name", "x", "--dataset.forget_dataset_name", "Tofu_forget10"]
    config = load_config(argv, prog="p.py", description="d")
    assert config[key] == SOURCES[key]


def test_h_adds_1e_12_to_a_probability_of_nothing():
    """p = (1/2, 1/2, 0) against q = (1, 0, 0): H = ½ · 12 ln 10, which only the 1e-12 decides."""
    current = torch.tensor([[0.0, 0.0, -math.inf]])
    reference = torch.tensor([[0.0, -math.inf, -math.inf]])
    value = soft_cross_entropy(current, reference)
    assert value.tolist() == pytest.approx([0.5 * 12 * math.log(10)], rel=1e-6)


def test_the_first_token_of_a_running_text_is_no_prediction(model):
    """A text of 4 labelled tokens has 3 predictions; with uniform logits each costs ln V."""
    torch.nn.init.zeros_(model.lm_head.weight)
    view = pad_batch([Encoded([5, 6, 7, 8], [5, 6, 7, 8]), Encoded([5, 6], [5, 6])], pad_token_id=2)
    assert answer_lengths(view["labels"]).tolist() == [3, 1]
    losses = example_cross_entropy(model, view)
    assert losses.tolist() == pytest.approx([math.log(VOCABULARY)] * 2)
