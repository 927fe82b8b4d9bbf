"""A model without weights: every tensor has a shape, a dtype and a device, and takes no memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from wagle.errors import WagleError
from wagle.hub import hub_options, loading
from wagle.model.architecture import adapted_modules, is_transposed
from wagle.model.head import widen
from wagle.model.loading import MODEL_HINT, find_gguf
from wagle.model.lora import ALPHA, DROPOUT, RANK


def read_configuration(name: str, cache_dir: Path) -> PretrainedConfig:
    """The configuration of a model that is named as for :func:`wagle.model.loading.load_model`.

    Of a GGUF file the header is read, of a hub's model ``config.json`` alone.

    Raises:
        WagleError: it cannot be found or read.
    """
    with loading("configuration of the model", name, MODEL_HINT):
        if (gguf := find_gguf(name)) is not None:
            config = AutoConfig.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
        else:
            config = AutoConfig.from_pretrained(name, **hub_options(name, cache_dir))
    return config


@contextmanager
def skeleton(config: PretrainedConfig, dtype: torch.dtype) -> Iterator[PreTrainedModel]:
    """The causal language model of a configuration, without memory, on a CPU that is not there.

    Within the context operations on its tensors compute shapes and nothing else. A 7B model is made
    in two seconds, and one forward and backward pass take as long.

    Raises:
        WagleError: the architecture is none of a causal language model.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        try:
            with torch.device("cpu"):
                model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        except ValueError as error:
            raise WagleError(f"{config.model_type} is no causal language model") from error
        yield model.eval()


class _Adapted(torch.nn.Module):
    """A linear layer with what peft puts beside it: an adapter that computes in float32."""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        outputs, inputs = layer.get_parameter("weight").shape
        if is_transposed(layer):
            outputs, inputs = inputs, outputs
        self.layer = layer
        self.down = torch.nn.Linear(inputs, RANK, bias=False)
        self.up = torch.nn.Linear(RANK, outputs, bias=False)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        dropped = F.dropout(widen(states), DROPOUT, self.training)
        added = self.up(self.down(dropped)) * (ALPHA / RANK)
        return (self.layer(states) + added).to(states.dtype)


def add_adapters(model: PreTrainedModel, targets: Sequence[str] | None = None) -> None:
    """What :func:`wagle.model.lora.add_lora` does to a model, for a skeleton (peft takes none)."""
    targets = adapted_modules(model, targets)
    model.requires_grad_(False)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if name in targets and not isinstance(parent, _Adapted):
                setattr(parent, name, _Adapted(child))
