"""A model without weights: every tensor has a shape, a dtype and a device, and takes no memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from wagle.errors import WagleError
from wagle.hub import hub_options, loading
from wagle.model.loading import MODEL_HINT, find_gguf


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
