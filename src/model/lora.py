"""Low-rank adaptation as an alternative to a weight mask."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import PreTrainedModel

from wagle import ranks, shards
from wagle.model.architecture import adapted_modules, is_transposed

if TYPE_CHECKING:  # four seconds of imports, for those who use adapters
    from peft import PeftModel

RANK, ALPHA, DROPOUT = 8, 32, 0.05  # as published


def add_lora(model: PreTrainedModel, targets: Sequence[str] | None = None) -> PeftModel:
    """Freeze the model and add adapters to some of its layers.

    Args:
        targets: last names of the layers; not given: query and value projections. Architectures
            that fuse these get one adapter on the fused layer.

    Raises:
        ConfigError: the architecture has no such layers.
    """
    from peft import LoraConfig, get_peft_model

    targets = adapted_modules(model, targets)
    adapted_layers = [m for n, m in model.named_modules() if n.rpartition(".")[2] in targets]
    config = LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        lora_dropout=DROPOUT,
        target_modules=targets,
        task_type="CAUSAL_LM",
        fan_in_fan_out=any(map(is_transposed, adapted_layers)),
    )
    adapted = get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            ranks.spread(parameter.data)  # they begin at random, and everywhere alike
    return adapted


def adapted_share(model: PeftModel) -> float:
    """Share of the plain model's weights that change when the adapters are added to them."""
    from peft.tuners.lora import LoraLayer

    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    adapted = sum(layer.get_base_layer().get_parameter("weight").numel() for layer in layers)
    own = sum(p.numel() for name, p in model.named_parameters() if "lora_" not in name)
    return adapted / own


@contextmanager
def without_lora(model: PeftModel) -> Iterator[PreTrainedModel]:
    """Run the model as it is without its adapters, in eval mode."""
    was_training = model.training
    model.eval()
    try:
        with model.disable_adapter():
            yield cast("PreTrainedModel", model)  # has all that a model has
    finally:
        model.train(was_training)


@torch.no_grad()
def merge_lora(model: PeftModel) -> PreTrainedModel:
    """The plain model with the adapters added to its weights."""
    from peft.tuners.lora import LoraLayer

    if not shards.is_sharded(model):
        return model.merge_and_unload()
    for module in model.modules():  # peft cannot add a whole matrix to parts of one
        if isinstance(module, LoraLayer):
            weight = module.get_base_layer().get_parameter("weight").detach()
            own = shards.span(weight)
            for adapter in module.active_adapters:
                added: torch.Tensor = cast("Any", module).get_delta_weight(adapter)
                shards.local(weight).view(-1).add_(added.reshape(-1)[own.start : own.stop])
    return model.unload()
