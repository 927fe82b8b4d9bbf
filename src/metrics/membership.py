"""Membership inference: do the forget rows still look like training data?

An attack gives each text a score, the larger the less the text looks like training data; its AUC
tells how well the scores set forget rows apart from retain rows.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wagle.catalogue import ATTACKS
from wagle.dataset.encoding import encode_text
from wagle.errors import WagleError
from wagle.metrics.likelihood import TokenScores, token_log_probs
from wagle.metrics.privacy import MIN_K_PERCENT, min_k_name

REFERENCE_DIGITS = 5  # decimals of a difference of two models' losses that mean something


def lowest_mean(values: np.ndarray, percent: int) -> float:
    """Mean of the lowest ``percent`` % of the values.

    ``int(k · T)`` of T values count, and at least one: in shorter texts the published code divides
    by zero. Of no values it is 0, as in open-unlearning.
    """
    if not len(values):
        return 0.0
    count = max(1, percent * len(values) // 100)
    return float(np.sort(values)[:count].mean(dtype=np.float64))


@dataclass(frozen=True)
class AttackedText:
    """What an attack knows of a text.

    Attributes:
        text: the text itself.
        tokens: scores of all its tokens but the first; ``standardized`` where an attack asks for
            them.
        loss: token-mean negative log-likelihood.
        reference_loss: that under the reference model, where an attack asks for it.
        gradient_norm: :func:`wagle.metrics.gradient_norms.gradient_norms`, where an attack asks for
            it.
    """

    text: str
    tokens: TokenScores
    loss: float
    reference_loss: float | None = None
    gradient_norm: float | None = None


def min_k(attacked: AttackedText) -> dict[str, float]:
    """−mean of the lowest k % of the log-probabilities (Shi et al. 2024, arXiv 2310.16789)."""
    log_probs = attacked.tokens.log_probs
    return {min_k_name(k): -lowest_mean(log_probs, k) for k in MIN_K_PERCENT}


def loss(attacked: AttackedText) -> dict[str, float]:
    """Token-mean negative log-likelihood (Yeom et al. 2018, arXiv 1709.01604)."""
    return {"LOSS": attacked.loss}


def zlib_loss(attacked: AttackedText) -> dict[str, float]:
    """Loss per byte of the zlib-compressed text (Carlini et al. 2021, arXiv 2012.07805)."""
    return {"zlib": attacked.loss / len(zlib.compress(attacked.text.encode()))}


def min_k_plus_plus(attacked: AttackedText) -> dict[str, float]:
    """Min-k% of standardised log-probabilities (Zhang et al. 2024, arXiv 2404.02936, eq. 3)."""
    values = attacked.tokens.standardized
    return {f"Min++_{k:.1f}% Prob": -lowest_mean(values, k) for k in MIN_K_PERCENT}


def excess_loss(attacked: AttackedText) -> dict[str, float]:
    """Loss minus that of a reference model (Carlini et al. 2021, arXiv 2012.07805).

    Rounded: where both models find a text equally likely, the last bits must not decide.
    """
    if attacked.reference_loss is None:
        raise ValueError("the attack needs the loss under a reference model")
    return {"reference": round(attacked.loss - attacked.reference_loss, REFERENCE_DIGITS)}


def gradient_norm(attacked: AttackedText) -> dict[str, float]:
    """How strongly training on the text would move the weights (as open-unlearning has it)."""
    if attacked.gradient_norm is None:
        raise ValueError("the attack needs norms of gradients")
    return {"gradnorm": attacked.gradient_norm}


def attack_scores(
    text: str,
    tokens: TokenScores,
    attacks: Collection[str] = (),
    reference_loss: float | None = None,
    *,
    loss: float | None = None,
    gradient_norm: float | None = None,
) -> dict[str, float]:
    """The scores of one text by the names of the attacks' columns.

    Args:
        tokens: of all tokens of the text but the first.
        attacks: names in :data:`wagle.catalogue.ATTACKS`, to run beside Min-k%.
        reference_loss, gradient_norm: for attacks that ask for them.
        loss: where it is not that of the ``tokens``.

    Raises:
        WagleError: two attacks have a column of the same name.
    """
    loss = tokens.loss if loss is None else loss
    attacked = AttackedText(text, tokens, loss, reference_loss, gradient_norm)
    scores = min_k(attacked)
    for entry in ATTACKS.values():
        if entry.name in attacks:
            found = entry.load()(attacked)
            if taken := sorted(set(found) & set(scores)):
                raise WagleError(f"the attack {entry.label} has the column {taken[0]} of another")
            scores |= found
    return scores


def text_losses(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    max_length: int,
    batch_size: int,
) -> list[float]:
    """Token-mean negative log-likelihood of each text, for the reference attack.

    Args:
        max_length: tokens of each text that are read.
    """
    scored = token_log_probs(
        model,
        [encode_text(tokenizer, text, max_length=max_length) for text in texts],
        batch_size=batch_size,
        pad_token_id=tokenizer.pad_token_id,
        description="reference model",
    )
    return [-float(log_probs.mean(dtype=np.float64)) for log_probs in scored]


def attack_aucs(
    forget: Sequence[Mapping[str, float]], retain: Sequence[Mapping[str, float]]
) -> dict[str, float]:
    """AUC of telling forget rows (1) from retain rows (0), for each attack.

    Args:
        forget, retain: per row, its scores by the names of the attacks.
    """
    from sklearn.metrics import roc_auc_score  # takes half a second to import

    labels = [1] * len(forget) + [0] * len(retain)
    return {
        name: float(roc_auc_score(labels, [row[name] for row in (*forget, *retain)]))
        for name in forget[0]
    }
