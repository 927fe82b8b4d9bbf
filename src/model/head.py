"""The output head, applied to the tokens that are asked about, a chunk of them at a time.

Logits are as wide as the vocabulary: for 2048 tokens and 128,256 entries a gigabyte in float32, of
which a loss and its gradient hold several. A batch of questions and answers asks about its answers
alone. So the backbone's hidden states are kept for all tokens, which is cheap, and the head is
applied to labelled ones; where these are many, to one chunk after another, and again in the
backward pass (Chen et al. 2016, arXiv 1604.06174).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from wagle import ranks
from wagle.dataset.encoding import predicted_from
from wagle.model.reading import evaluating, succeeds

# Of the float32 logits of a chunk, a quarter of a gibibyte. A cross-entropy with its gradient holds
# three times as much, little beside a model with so wide a vocabulary, and for 128,256 entries a
# chunk still has 523 tokens, enough for a matrix product to run at full speed.
CHUNK_BYTES = 1 << 28

_separate: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


class Predictions(NamedTuple):
    """The ``M`` labelled tokens of a batch, row by row.

    Attributes:
        states: what predicts each, :meth:`Head.states` of the token before it, ``(M, width)``.
        targets: their ids, int64 ``(M,)``.
        rows: the row of each, int64 ``(M,)``.
    """

    states: torch.Tensor
    targets: torch.Tensor
    rows: torch.Tensor


@dataclass(frozen=True)
class Head:
    """What makes logits of a model's states.

    Attributes:
        model: a causal language model.
        separate: whether its logits are the output head applied to the backbone's last hidden
            states. Some architectures scale or cap them afterwards (Cohere, Gemma 2): there the
            states are the logits themselves.
    """

    model: PreTrainedModel
    separate: bool

    @classmethod
    def of(cls, model: PreTrainedModel) -> Head:
        """The head of a model, or of the model that adapters have been added to.

        Which kind it is, is found by trying, once for each model.
        """
        unwrap = getattr(model, "get_base_model", None)  # peft's wrapper has it
        if unwrap is not None:
            model = unwrap()
        if model not in _separate:
            _separate[model] = _stands_apart(model)
        return cls(model, _separate[model])

    def states(self, **inputs: Any) -> torch.Tensor:
        """Of every token, ``(B, T, width)`` in the model's dtype.

        Args:
            inputs: of a forward pass, such as ``input_ids`` and ``attention_mask``.
        """
        if self.separate:
            return self.model.base_model(**inputs, use_cache=False).last_hidden_state
        return self.model(**inputs, use_cache=False).logits

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Of the token after each: ``(N, width)`` to ``(N, V)``, in the model's dtype."""
        return self.model.get_output_embeddings()(states) if self.separate else states

    def predictions(self, view: Mapping[str, torch.Tensor]) -> Predictions:
        """The labelled tokens of a padded batch (:func:`wagle.dataset.encoding.pad_batch`).

        The first token of a row is never predicted, labelled or not. Of a batch made otherwise,
        which does not say what is ``predicted``, that is found out.
        """
        labels = view["labels"]
        places = view["predicted"] if "predicted" in view else predicted_from(labels)
        states = self.states(input_ids=view["input_ids"], attention_mask=view["attention_mask"])
        chosen = states.flatten(0, 1).index_select(0, places)
        return Predictions(chosen, labels.take(places + 1), places // labels.shape[1])

    def measure(
        self,
        function: Callable[..., torch.Tensor],
        states: torch.Tensor,
        *others: torch.Tensor,
    ) -> torch.Tensor:
        """``function(logits, *others)`` of every state, with few logits at once.

        Where the states are more than a chunk, each chunk's logits are made, measured and dropped,
        and made again when the backward pass comes to it. The chunks' gradients are then summed in
        the weights' dtype, as those of a window's batches are.

        Args:
            function: takes the logits ``(n, V)`` of some of the states and the same rows of
                ``others``, and returns ``(n,)``; each row's value depends on that row alone.
            states: ``(N, width)``.
            others: each ``(N, …)``.

        Returns:
            ``(N,)``.
        """

        def measured(states: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
            return function(self.logits(states), *others)

        chunks = list(
            zip(*(torch.split(part, self.chunk) for part in (states, *others)), strict=True)
        )
        if self.separate and isinstance(self.model.get_output_embeddings().weight, DTensor):
            # Each use puts the whole head together, in all processes: they use it equally often.
            most = max(ranks.everyone(len(chunks)))
            chunks += [tuple(part[:0] for part in (states, *others))] * (most - len(chunks))
        if len(chunks) == 1:
            return measured(states, *others)
        return torch.cat([checkpoint(measured, *chunk, use_reentrant=False) for chunk in chunks])

    @property
    def chunk(self) -> int:
        """The number of tokens whose float32 logits take :data:`CHUNK_BYTES`, at least one."""
        return max(1, CHUNK_BYTES // (4 * self.model.config.get_text_config().vocab_size))


def token_losses(
    model: PreTrainedModel, view: Mapping[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Negative log-likelihood of every labelled token of a batch.

    Args:
        view: int64 ``input_ids``, ``attention_mask`` and ``labels``, each ``(B, T)``, padded on the
            right; position ``t`` predicts token ``t + 1``.

    Returns:
        Losses ``(M,)`` of the ``M`` labelled tokens, row by row, in float32 or the model's dtype
        where that is wider, and the row of each.
    """
    head = Head.of(model)
    states, targets, rows = head.predictions(view)
    return head.measure(negative_log_likelihood, states, targets), rows


def negative_log_likelihood(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Of each target ``(N,)`` under its logits ``(N, V)``; ``(N,)``, at least float32."""
    return F.cross_entropy(widen(logits), targets, reduction="none")


def widen(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in float32, or in its own dtype where that is wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _stands_apart(model: PreTrainedModel) -> bool:
    """Whether the logits are just the output head applied to the backbone's last hidden states."""
    head, backbone = model.get_output_embeddings(), model.base_model
    if head is None or backbone is model:
        return False
    probe = torch.arange(4, device=model.device)[None]

    def equal() -> bool:
        states = backbone(input_ids=probe, use_cache=False).last_hidden_state
        return torch.equal(head(states), model(input_ids=probe, use_cache=False).logits)

    with evaluating(model):
        return succeeds(equal)
