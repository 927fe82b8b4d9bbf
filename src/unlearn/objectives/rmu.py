"""RMU: what the model represents of the forget set is steered to nothing in particular."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from transformers import PreTrainedModel

from wagle.dataset.encoding import IGNORED
from wagle.dataset.pairing import FORGET, RETAIN
from wagle.errors import ConfigError, WagleError
from wagle.families import Family, steered_layer
from wagle.model.architecture import (
    FEED_FORWARD_KINDS,
    decoder_layers,
    layer_index,
    parameter_kind,
)
from wagle.model.head import widen
from wagle.unlearn.objectives.base import Batch, Objective, ReferenceModel, Terms
from wagle.unlearn.objectives.losses import (
    View,
    cross_entropy,
    kl_divergence,
    reference_logits,
)

UPDATED_LAYERS = 3  # the steered one and those right before it


@dataclass(frozen=True)
class Misdirection(Objective):
    """RMU: γ_f · MSE(h(forget), c · u) + alpha · MSE(h(retain), h_ref(retain)).

    Li et al. 2024 (arXiv 2403.03218, section 4). h is the output of decoder layer ``layer``, MSE
    the mean over its entries, then over tokens, then over examples; in the forget term over scored
    tokens, so that question and template are not steered, in the retain term over all. c is the
    steering coefficient and u a unit vector with entries drawn uniformly from [0, 1), a function of
    the seed that torch was given last.

    Attributes:
        layer: counted from 0; ``None`` until :meth:`fitted` has chosen it.
        forget_weight: γ_f.
        retain_loss: ``states``: as above; ``nll`` or ``kl``: as for other methods.
        labelled_retain: the retain term of states is about scored tokens too, as open-unlearning
            has it.
        updated: what changes without a mask: of three layers, the steered one and those before it,
            ``feed_forward``: all such weights, or ``down``: those of the output projection, as
            WMDP's authors have it; or ``all`` weights, as open-unlearning has it.
    """

    layer: int | None
    steering_coefficient: float
    alpha: float
    forget_weight: float
    retain_loss: Literal["states", "nll", "kl"]
    labelled_retain: bool
    updated: Literal["feed_forward", "down", "all"]
    views = (FORGET, RETAIN)
    needs_reference_model = True

    def fitted(self, family: Family | None, layers: int) -> Self:
        return replace(self, layer=steered_layer(family, layers)) if self.layer is None else self

    @property
    def _steered(self) -> int:
        assert self.layer is not None  # fitted() has chosen it
        return self.layer

    def terms(self, model: PreTrainedModel, batch: Batch, reference: ReferenceModel) -> Terms:
        target = self._retain_target(batch[RETAIN], reference)
        forget = hidden_states(model, batch[FORGET], self._steered)
        direction = _unit_vector(forget.shape[-1], torch.initial_seed()).to(forget.device)
        scored = batch[FORGET]["labels"] != IGNORED
        steered = _squared_error(forget, self.steering_coefficient * direction, scored)
        kept = self._retain_loss(model, batch[RETAIN], target)
        return {FORGET: self.forget_weight * steered, RETAIN: self.alpha * kept}

    def _retain_target(self, view: View, reference: ReferenceModel) -> torch.Tensor | None:
        """What the model before unlearning makes of the retain view, where the loss asks for it."""
        if self.retain_loss == "nll":
            return None
        if self.retain_loss == "kl":
            return reference_logits([view], reference)[0]
        with torch.no_grad(), reference() as original:
            return hidden_states(original, view, self._steered)

    def _retain_loss(
        self, model: PreTrainedModel, view: View, target: torch.Tensor | None
    ) -> torch.Tensor:
        if target is None:
            return cross_entropy(model, view)
        if self.retain_loss == "kl":
            return kl_divergence(model, view, target)
        counted = view["labels"] != IGNORED if self.labelled_retain else view["attention_mask"]
        return _squared_error(hidden_states(model, view, self._steered), target, counted)

    def trainable(self, model: PreTrainedModel) -> set[str] | None:
        count = len(decoder_layers(model)[1])
        if self._steered >= count:
            raise ConfigError(
                f"unlearn.RMU.layer is {self.layer}, but the model has {count} decoder layers; "
                f"give 0 to {count - 1}"
            )
        if self.updated == "all":
            return None
        kinds = ("down", "mlp") if self.updated == "down" else FEED_FORWARD_KINDS
        layers = range(self._steered + 1)[-UPDATED_LAYERS:]
        names = {
            name
            for name, _ in model.named_parameters()
            if layer_index(name) in layers and parameter_kind(name) in kinds
        }
        if not names:
            raise WagleError(
                f"RMU found no feed-forward weights in {type(model).__name__}'s layers {layers}; "
                "give a mask of the weights to update (unlearn.mask_path)"
            )
        return names


def hidden_states(model: PreTrainedModel, view: View, layer: int) -> torch.Tensor:
    """Output of a decoder layer, ``(B, T, hidden)`` in the model's dtype; later layers do not run.

    Raises:
        WagleError: the architecture has no list of decoder blocks.
    """
    name, layers = decoder_layers(model)
    parent, _, attribute = name.rpartition(".")
    decoder = model.get_submodule(parent)
    outputs = []
    handle = layers[layer].register_forward_hook(lambda *call: outputs.append(call[-1]))
    setattr(decoder, attribute, layers[: layer + 1])
    try:
        decoder(input_ids=view["input_ids"], attention_mask=view["attention_mask"], use_cache=False)
    finally:
        setattr(decoder, attribute, layers)
        handle.remove()
    (output,) = outputs
    return output[0] if isinstance(output, tuple) else output


def _unit_vector(size: int, seed: int) -> torch.Tensor:
    """Float32 ``(size,)``, the same on every device."""
    vector = torch.rand(size, generator=torch.Generator().manual_seed(seed))
    return vector / vector.norm()


def _squared_error(
    states: torch.Tensor, target: torch.Tensor, counted: torch.Tensor
) -> torch.Tensor:
    """Mean over entries, then over each example's counted tokens, then over examples (scalar).

    Args:
        states: ``(B, T, hidden)``.
        target: broadcast to ``states``.
        counted: bool or 0 and 1, ``(B, T)``.
    """
    errors = (widen(states) - widen(target)).square().mean(dim=-1)
    return ((errors * counted).sum(dim=1) / counted.sum(dim=1)).mean()
