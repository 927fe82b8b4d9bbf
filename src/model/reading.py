"""How an architecture may be read: found by trying it, never assumed.

Texts can be read as trees, in padded batches, from a cache of keys and values, or alone and whole.
The last is what the others have to agree with. Some architectures cannot do the others, or do them
wrongly without a word: local attention counts columns, a state is not where a cache looks for it.
So each way is tried before it is used, on texts as long and as unequal as those that it is for.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from wagle import ranks
from wagle.dataset.encoding import Encoded, pad_batch
from wagle.errors import WagleError

_tried: WeakKeyDictionary[torch.nn.Module, dict[str, list[tuple[range, ...]]]]
_tried = WeakKeyDictionary()


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Eval mode, without gradients; the mode is restored afterwards."""
    was_training = model.training
    model.eval()
    try:
        # What FSDP gathers in inference mode could not be gathered for training any more.
        with torch.inference_mode() if ranks.size() == 1 else torch.no_grad():
            yield
    finally:
        model.train(was_training)


def succeeds(trial: Callable[[], bool]) -> bool:
    """Whether a way of reading gives what it should; not, if the architecture's code raises.

    What it raised goes to the log at level debug; with the next way nothing is lost but time.
    """
    try:
        return trial()
    except torch.OutOfMemoryError:  # says nothing about the architecture
        raise
    except Exception:
        logging.getLogger(__name__).debug("a way to read texts raises", exc_info=True)
        return False


def reads_right(
    model: torch.nn.Module, way: str, trial: Callable[[], bool], *lengths: range
) -> bool:
    """As :func:`succeeds`, of a way to read texts.

    A way that has read as short and as long ones is not tried again: training changes weights, and
    not what an architecture can read. An evaluation after every ten steps tries its ways once.

    Args:
        lengths: from the shortest to the longest, of the texts and of whatever else decides.
    """
    known = _tried.setdefault(model, {}).setdefault(way, [])
    if any(all(map(_within, lengths, tried)) for tried in known):
        return True
    right = succeeds(trial)
    if right:
        known.append(lengths)
    return right


def _within(lengths: range, others: range) -> bool:
    return lengths.start >= others.start and lengths.stop <= others.stop


def agree(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether two ways of computing the same differ by rounding only."""
    tolerance = torch.finfo(expected.dtype).eps ** 0.5 * expected.abs().max()
    return bool((found - expected).abs().max() <= tolerance)


def read_alone(model: PreTrainedModel, tokens: Sequence[int]) -> torch.Tensor:
    """Logits ``(tokens, vocabulary)`` of one text, read whole and without a cache."""
    ids = torch.tensor([list(tokens)], device=model.device)
    return model(input_ids=ids, use_cache=False).logits[0]


def trial_tokens(model: PreTrainedModel, count: int) -> list[int]:
    """Tokens from all over the vocabulary, always the same, as many as there may be."""
    vocabulary = model.get_input_embeddings().get_parameter("weight").shape[0]
    return [(7919 * (i + 1)) % vocabulary for i in range(min(count, most_positions(model)))]


def most_positions(model: PreTrainedModel) -> int:
    """How long a text the model can read; as good as endless where it does not say."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or 1 << 30


def additive_mask(hidden: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``(rows, 1, queries, keys)`` of ``dtype`` to be added to attention scores.

    Args:
        hidden: which keys each query must not see, bool ``(rows, queries, keys)``.
    """
    mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
    return mask.masked_fill_(hidden, torch.finfo(dtype).min)[:, None]


def takes_own_masks(model: PreTrainedModel, longest: int) -> bool:
    """Whether the model is told positions, and masks of our making hide all that is to be hidden.

    Only some ways to compute attention take them. A layer whose window is smaller than the
    ``longest`` sequence would lose it, and others keep more than keys and values.
    """
    return (
        "position_ids" in inspect.signature(model.forward).parameters
        and model.config._attn_implementation in ("sdpa", "eager")  # noqa: SLF001, it has no other name
        and all(
            type(layer) is DynamicLayer
            or (type(layer) is DynamicSlidingWindowLayer and layer.sliding_window >= longest)
            for layer in DynamicCache(config=model.config).layers
        )
    )


def learned_positions(model: PreTrainedModel, longest: float = math.inf) -> int | None:
    """How many positions the model has a learned vector for.

    GPT-2 and OPT look positions up in a table, and cannot read a text that is longer than it.

    Returns:
        ``None`` where positions are computed, or enough are learned for ``longest`` tokens.
    """
    count: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    words = model.get_input_embeddings()
    tables = (m for m in model.modules() if isinstance(m, torch.nn.Embedding) and m is not words)
    # OPT's table has two rows more than there are positions.
    if count is None or count >= longest:
        return None
    return count if any(count <= table.num_embeddings <= count + 2 for table in tables) else None


def check_readable(
    model: PreTrainedModel, longest: int, pad_token_id: int, *, in_batches: bool
) -> None:
    """Find out whether what is computed from the model's texts means what it is called.

    Args:
        longest: tokens of the longest text.
        in_batches: whether texts of different lengths are trained on, or attributed to, together.

    Raises:
        WagleError: a text cannot be read alone; a token's prediction depends on what follows it, or
            on padding.
    """
    name = type(model).__name__
    tokens = trial_tokens(model, longest)
    half = tokens[: len(tokens) // 2 + 1]
    with evaluating(model):
        try:
            whole, expected = read_alone(model, tokens), read_alone(model, half)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise WagleError(
                f"{name} cannot read a text of {len(tokens)} tokens by itself: "
                f"{type(error).__name__}: {error}"
            ) from error
        if not whole.isfinite().all():
            raise WagleError(
                f"{name} gives logits that are no finite numbers; look at its weights and at "
                "overall.dtype"
            )
        if not agree(whole[: len(half)], expected):
            raise WagleError(
                f"what {name} predicts changes with the tokens that follow; it does not read from "
                "left to right, as everything here takes for granted"
            )
        if in_batches and not succeeds(lambda: _pads(model, tokens, half, expected, pad_token_id)):
            raise WagleError(
                f"{name} reads a text in a padded batch otherwise than alone, so that losses would "
                "depend on what else is in the batch; set dataset.batch_size and "
                "unlearn.attribution_batch_size to 1"
            )


def reads_padded(model: PreTrainedModel, longest: int, pad_token_id: int) -> bool:
    """Whether a text padded on its right, in a batch, is read as it is alone.

    Args:
        longest: tokens of the longest text.
    """
    tokens = trial_tokens(model, longest)
    half = tokens[: len(tokens) // 2 + 1]
    with evaluating(model):
        return succeeds(lambda: _pads(model, tokens, half, read_alone(model, half), pad_token_id))


def _pads(
    model: PreTrainedModel,
    longer: Sequence[int],
    shorter: Sequence[int],
    expected: torch.Tensor,
    pad_token_id: int,
) -> bool:
    """Whether a text padded on its right, beside a longer one, is read as it is alone."""
    texts = [Encoded(list(tokens), list(tokens)) for tokens in (shorter, longer)]
    batch = {k: part.to(model.device) for k, part in pad_batch(texts, pad_token_id).items()}
    ids, mask = batch["input_ids"], batch["attention_mask"]
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return agree(logits[0, : len(shorter)], expected)
