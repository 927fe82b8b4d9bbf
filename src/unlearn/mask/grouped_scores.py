"""Scores of rows, neurons or whole tensors, whose weights are selected together or not at all.

Of the scores 3, 2, 2, 2 and 1 of rows of 8 weights, a mask of 16 of the 40 weights takes the first
row alone: the three equal ones do not fit, and none is cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedModel

from wagle import ranks
from wagle.dataset.encoding import Encoded
from wagle.errors import WagleError
from wagle.model.architecture import (
    FEED_FORWARD_KINDS,
    block_linears,
    is_transposed,
    parameter_kind,
    stacked_experts,
)
from wagle.unlearn.mask.fingerprints import examples_fingerprint, model_fingerprint
from wagle.unlearn.mask.parts import part
from wagle.unlearn.mask.scores import ScoreStream, chunks_of
from wagle.unlearn.mask.structure import input_shapes, sum_over_inputs
from wagle.unlearn.mask.tensor_file import TensorFile, cached_tensors

MEMFLEX_ALIKE = 0.92  # cosine from which on a tensor is shared by what is forgotten and retained
ACTIVATION_FLOOR = 1e-5


@dataclass(frozen=True)
class WholeTensor:
    """A parameter of which a grouped score is formed.

    Attributes:
        name: as in ``named_parameters()``.
        shape: of all of it, however many processes hold it.
        transposed: whether it is stored ``(in, out)``, as GPT-2's linear layers are.
        files: sums of gradients by kind, a tensor for each parameter; and
            :func:`cached_activations`, by kind.
    """

    name: str
    shape: torch.Size
    transposed: bool
    files: Mapping[str, TensorFile]


GroupedScore = Callable[[WholeTensor], torch.Tensor]
"""Gives scores that can be expanded to the tensor's shape: ``(out, 1)`` scores rows."""


def neuron(tensor: WholeTensor) -> torch.Tensor:
    """The L2 norm of a neuron's forget gradient (SURE, arXiv 2410.16454).

    A neuron is the row of a weight that makes an output; in ``down`` projections the column that
    reads a feed-forward neuron. Of a vector each element is one.
    """
    gradient = tensor.files["forget"].read(tensor.name)
    if gradient.dim() < 2:
        return gradient.abs()
    reads = parameter_kind(tensor.name) == "down"
    along = -2 if reads != tensor.transposed else -1
    return torch.linalg.vector_norm(gradient, dim=along, keepdim=True)


def activation_ratio(tensor: WholeTensor) -> torch.Tensor:
    """mean|a| on forget tokens / (mean|a| on retain tokens + 1e-5), of feed-forward neurons.

    Pochinkov and Schoots 2024 (arXiv 2403.01267). All else has 0.
    """
    forget, retain = (tensor.files[f"{kind}_activations"] for kind in ("forget", "retain"))
    ratios = {n: forget.read(n) / (retain.read(n) + ACTIVATION_FLOOR) for n in forget.shapes}
    return of_neurons(ratios, tensor.name, tensor.shape, transposed=tensor.transposed)


def of_neurons(
    values: Mapping[str, torch.Tensor], name: str, shape: torch.Size, *, transposed: bool
) -> torch.Tensor:
    """What a parameter's weights have of the feed-forward neurons that they belong to.

    A neuron has a row of ``up``, one of ``gate`` and a column of the ``down`` projection.

    Args:
        values: ``(neurons,)`` by the name of the feed-forward module.
        name, shape, transposed: of the parameter.

    Returns:
        What can be expanded to the parameter's shape; 0 for weights of no neuron.
    """
    kind, module = parameter_kind(name), _feed_forward(name)
    none = torch.zeros([1] * len(shape), dtype=next(iter(values.values())).dtype)
    if module not in values or kind not in FEED_FORWARD_KINDS:
        return none
    value = values[module]
    if len(shape) == 1:  # a bias; that of the down projection is no neuron's
        return none if kind == "down" else value.repeat(shape[0] // len(value))
    across = (kind == "down") != transposed  # whether neurons lie along the last dimension
    value = value.repeat(shape[-1 if across else 0] // len(value))  # fused: gate and up of each
    return value.view(1, -1) if across else value.view(-1, 1)


def memflex(tensor: WholeTensor) -> torch.Tensor:
    """A tensor's mean |g_f|, 0 where the cosine of g_f and g_r is 0.92 or more.

    KnowUnDo (Tian et al. 2024, arXiv 2407.01920): they select what exceeds a threshold,
    here ρ says how many of the first.
    """
    forget, retain = (
        tensor.files[kind].read(tensor.name).flatten() for kind in ("forget", "retain")
    )
    norms = forget.norm() * retain.norm()
    alike = bool(forget @ retain >= MEMFLEX_ALIKE * norms) and bool(norms > 0)
    mean = torch.zeros(()) if alike or not len(forget) else forget.abs().mean()
    return mean.view([1] * len(tensor.shape))


def grouped_stream(
    model: torch.nn.Module, function: GroupedScore, files: Mapping[str, TensorFile]
) -> ScoreStream:
    """Scores of this process's part of a model, as those of single weights are streamed.

    Each process looks at whole parameters, in the files of sums.
    """
    transposed = transposed_weights(model)

    def form(scores: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        width = scores.shape[-1] if scores.dim() else 1
        first = start // width
        rows = scores.reshape(-1, width)[first : -(-stop // width)].reshape(-1)
        return rows[start - first * width : stop - first * width]

    def chunks() -> Iterator[tuple[str, int, Callable[[], torch.Tensor]]]:
        for name, parameter in model.named_parameters():
            mine = part(parameter)
            if not mine:
                continue
            whole = WholeTensor(name, parameter.shape, name in transposed, files)
            scores = function(whole).expand(parameter.shape)
            for chunk in chunks_of(mine):
                start, stop = mine.start + chunk.start, mine.start + chunk.stop
                yield name, start, partial(form, scores, start, stop)

    return chunks


def cached_activations(
    model: PreTrainedModel,
    examples_by_kind: Mapping[str, Sequence[Encoded]],
    prefix: Path,
    *,
    rows: int,
    pad_token_id: int,
    lock_timeout: float | None = None,
) -> dict[str, TensorFile]:
    """Mean |a| of every feed-forward neuron over the tokens of each kind of examples.

    Args:
        prefix: the files are ``{prefix}.{kind}_activations.safetensors``, with a vector
            ``(neurons,)`` for each feed-forward module, by its name.
        rows: examples that are run together.

    Returns:
        By kind and ``_activations``, as grouped scores read it.

    Raises:
        WagleError: the model has no feed-forward neurons of a known form.
    """
    downs = down_projections(model)
    files, model_hash = {}, model_fingerprint(model)
    for kind, examples in examples_by_kind.items():

        def fill(file: TensorFile, examples: Sequence[Encoded] = examples) -> None:
            totals, tokens = sum_over_inputs(
                *(model, downs, examples, torch.abs), rows=rows, pad_token_id=pad_token_id
            )
            for name, total in totals.items() if ranks.is_first() else ():
                file.write(name, total / tokens)

        files[f"{kind}_activations"] = cached_tensors(
            prefix.with_name(f"{prefix.name}.{kind}_activations.safetensors"),
            f"1 {model_hash} {examples_fingerprint(examples)}",
            input_shapes(downs),
            torch.float32,
            fill,
            lock_timeout,
        )
    return files


def down_projections(model: PreTrainedModel) -> dict[str, torch.nn.Module]:
    """The layers that read feed-forward neurons, by the name of the module that they are in.

    Raises:
        WagleError: there are none, or experts lie together in one tensor.
    """
    downs = {
        _feed_forward(name): module
        for name, module in block_linears(model).items()
        if parameter_kind(name) == "down"
    }
    if not downs or stacked_experts(model):
        raise WagleError(
            f"in {type(model).__name__} no feed-forward neurons are found that lie each in layers "
            "of its own"
        )
    return downs


def transposed_weights(model: torch.nn.Module) -> set[str]:
    """Names of weights that are stored ``(in, out)``."""
    return {f"{name}.weight" for name, module in model.named_modules() if is_transposed(module)}


def _feed_forward(name: str) -> str:
    """The module that a linear layer's parameter lies in: its neighbours have the same."""
    return name.rpartition(".")[0].rpartition(".")[0]
