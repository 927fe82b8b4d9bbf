"""A tiny unlearning: objectives with hyper-parameters, pairs of rows, a mask, a recipe."""

from __future__ import annotations

from dataclasses import fields

import torch

from tests.tiny import VOCABULARY, make_model
from wagle.catalogue import METHODS
from wagle.config.keys import UnlearnSection
from wagle.dataset.encoding import IGNORED, Encoded
from wagle.dataset.pairing import PairCollator, UnlearnDataset
from wagle.optim.bitmask import BitMask
from wagle.training.loop import TrainingData
from wagle.unlearn.reference import reference_losses

ROWS = 7


def recipe(**changes) -> UnlearnSection:
    """A resolved section of the configuration, as `unlearn` takes it."""
    return UnlearnSection(**{"lr": 1e-2, "weight_decay": 0.1, "master_weights": False, **changes})


def make_rows(objective, model, num_workers=0) -> TrainingData:
    """What training reads."""
    dataset = make_dataset(objective, model)
    return TrainingData(dataset, dataset.order, PairCollator(dataset, 2), num_workers)


def encode(row: int, shift: int = 0) -> Encoded:
    generator = torch.Generator().manual_seed(100 * shift + row)
    ids = torch.randint(3, VOCABULARY, (5 + row % 4,), generator=generator).tolist()
    return Encoded(ids, [IGNORED] * 2 + ids[2:])


def make_dataset(objective, model) -> UnlearnDataset:
    dataset = UnlearnDataset(
        range(ROWS),
        range(9),
        encode_forget=encode,
        encode_retain=lambda row: encode(row, shift=1),
        encode_refusal=lambda row, refusal: encode(row, shift=2),
        refusals=["no"],
        alternates=["another"] * ROWS,
        views=objective.views,
    )
    for view in objective.reference_losses:
        dataset.reference_losses[view] = reference_losses(
            model, dataset, view, batch_size=3, pad_token_id=2
        )
    return dataset


def make_mask(model, density=0.3):
    generator = torch.Generator().manual_seed(1)
    mask = {
        name: BitMask.from_bool(torch.rand(p.shape, generator=generator) < density)
        for name, p in model.named_parameters()
    }
    mask["model.layers.1.mlp.up_proj.weight"] = BitMask.full((24, 16), False)
    mask["model.norm.weight"] = BitMask.full((16,), True)
    return mask


def make_objective(method):
    values = {"gamma": 0.5, "alpha": 0.01, "layer": 1, "delta": 0.0, "steering_coefficient": 6.5}
    values["beta"] = 2.5 if method == "SimNPO+FT" else 0.1
    values = {option.name: option.default for option in METHODS[method].options} | values
    objective = METHODS[method].load()
    return objective(**{field.name: values[field.name] for field in fields(objective)})


def batches(objective):
    """The batches of the first epoch, put together by hand."""
    dataset = make_dataset(objective, make_model())
    collate, keys = PairCollator(dataset, 2), dataset.order(0)
    return [collate([dataset[key] for key in keys[i : i + 2]]) for i in range(0, ROWS, 2)]
