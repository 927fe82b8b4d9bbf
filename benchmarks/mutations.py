"""Do the tests hold the recipe? One fault at a time is put into a copy of the program.

    python benchmarks/mutations.py [--only NAME [NAME ...]] [--jobs 2]

Every line of ``MUTATIONS`` is a fault that would make a number wrong without a word: a constant of a
recipe, a sign, a bound. The tests of that module must find it. Prints one line for each, and how
many survived; exits with 1 if any did, or if a line no longer fits the code.
"""

# ruff: noqa: E501 - code is quoted as it stands
from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COPIED = (
    "src",
    "tests",
    "configs",
    "files/data",
    "lm-evaluation-harness",
    "docs",
    "pyproject.toml",
)
PATIENCE = 600  # seconds; a fault that makes the tests hang is found, too


@dataclass(frozen=True)
class Mutation:
    """A fault: in ``file``, ``before`` (which stands there once) becomes ``after``."""

    name: str
    file: str
    before: str
    after: str
    tests: tuple[str, ...]


def _of(file: str, tests: str, *faults: tuple[str, str, str]) -> tuple[Mutation, ...]:
    paths = tuple(
        str(next((ROOT / "tests").rglob(f"{name}.py")).relative_to(ROOT)) for name in tests.split()
    )
    return tuple(Mutation(name, f"src/{file}.py", old, new, paths) for name, old, new in faults)


MUTATIONS = (
    *_of(
        "families",
        "test_templates",
        (
            "default: RMU's layer of Zephyr",
            '"<|user|>", 0, system_prompt=_HELPFUL, steered_layer=7',
            '"<|user|>", 0, system_prompt=_HELPFUL, steered_layer=6',
        ),
    ),
    *_of(
        "unlearn/window_loss",
        "test_window_loss",
        ("smoothing: draws", "SMOOTHING_DRAWS = 3", "SMOOTHING_DRAWS = 2"),
        ("SAM: which way", "scale = self.sam_rho /", "scale = -self.sam_rho /"),
        ("average: from the step after", "done < self.start", "done <= self.start"),
    ),
    *_of(
        "unlearn/objectives/pdu",
        "test_objectives",
        ("objective: PDU's warm-up", "epoch >= self.warmup_epochs", "epoch > self.warmup_epochs"),
        ("objective: PDU's bound", ".clamp_(min=0)", ""),
    ),
    *_of(
        "catalogue",
        "test_recipe",
        ("default: NPO's beta", 'Option("beta", float, 0.1', 'Option("beta", float, 0.2'),
        ("default: SimNPO's beta", 'Option("beta", float, 2.5', 'Option("beta", float, 4.5'),
        (
            "default: gamma of PO",
            'aliases=("PO",),\n        options=_with_retain(gamma=1.0)',
            'aliases=("PO",),\n        options=_with_retain(gamma=0.0)',
        ),
        ("default: TNPO's beta", 'Option("beta", float, 4.0', 'Option("beta", float, 1.0'),
        ("default: SatImp's powers", 'Option("beta1", float, 5.0', 'Option("beta1", float, 1.0'),
        ("default: UNDIAL's beta", 'Option("beta", float, 10.0', 'Option("beta", float, 1.0'),
        (
            "default: sums of NPO",
            "                bool,\n                True,",
            "                bool,\n                False,",
        ),
        ("default: RMU's alpha", 'Option("alpha", float, 1200.0', 'Option("alpha", float, 100.0'),
    ),
    *_of(
        "config/keys",
        "test_recipe",
        ("default: mu", "mu: float = key(1e-3,", "mu: float = key(1e-2,"),
        ("default: Sophia's betas", "high: float = key(0.95,", "high: float = key(0.99,"),
        ("default: Sophia's rho", "rho: float = key(0.03,", "rho: float = key(0.04,"),
    ),
    *_of(
        "unlearn/mask/scores",
        "test_attribution test_make_masks",
        (
            "score: sign of the correction",
            "weight - retain / mu",
            "weight + retain / mu",
        ),
        ("score: without mu", "retain / mu", "retain"),
        ("score: floor of H", "HESSIAN_FLOOR = 1e-12", "HESSIAN_FLOOR = 1e-7"),
        (
            "score: without 1/A",
            "if kind.endswith(SQUARES) else inputs.accumulation_steps",
            "if kind.endswith(SQUARES) else 1",
        ),
        (
            "score: sum in H, no mean",
            "mean = retain * (inputs.accumulation_steps / inputs.batches)",
            "mean = retain * inputs.accumulation_steps",
        ),
        ("score: signed gradient", 'gradients["forget"].abs()', 'gradients["forget"]'),
        ("score: seed of random scores", "repr((inputs.seed, (position", "repr((0, (position"),
    ),
    *_of(
        "unlearn/mask/selection",
        "test_selection",
        ("selection: rounded up", "int(size * r)", "math.ceil(size * r)"),
        ("selection: last equals first", '"little"))[count:]', '"little"))[: ones - count]'),
        ("selection: infinity passes", "patterns.max() < _INFINITY", "patterns.max() <= _INFINITY"),
        ("selection: excluded kinds counted", "if parameter_kind(n) not in exclude", "if n"),
    ),
    *_of(
        "unlearn/mask/selection",
        "test_masks_together",
        ("selection: equals of earlier processes", "sum(counts[: ranks.rank()])", "0"),
        ("selection: bytes of two processes", "if start % 8:", "if False:"),
    ),
    *_of(
        "unlearn/mask/sums",
        "test_masks_together",
        ("sums: batches that do not count", "pieces[: self.present]", "pieces"),
    ),
    *_of(
        "model/head",
        "test_head",
        ("head: taken for all of the logits", "return succeeds(equal)", "return True"),
        ("head: labels not shifted", "labels.take(places + 1)", "labels.take(places)"),
        ("head: tried in every step", "if model not in _separate", "if True"),
        ("head: all logits at once", "if len(chunks) == 1", "if True"),
        (
            "head: chunks kept for the backward pass",
            "checkpoint(measured, *chunk, use_reentrant=False)",
            "measured(*chunk)",
        ),
    ),
    *_of(
        "unlearn/objectives/token_weights",
        "test_objectives",
        ("WGA: gradients through weights", "(-losses.detach()).exp()", "(-losses).exp()"),
        ("TNPO: factor 2", "return 2 * now", "return now"),
        ("SatImp: saturation", "(1 - probability) ** self.beta2", "probability**self.beta2"),
    ),
    *_of(
        "unlearn/objectives/undial",
        "test_objectives",
        ("UNDIAL: sign of beta", "-self.beta, dtype", "self.beta, dtype"),
        ("UNDIAL: published positions", "if not self.published", "if True"),
    ),
    *_of(
        "unlearn/objectives/distribution",
        "test_objectives",
        ("CE-U: gradients through targets", "logits.detach().scatter", "logits.scatter"),
        (
            "CE-U: first tokens",
            "position + never_predicted >= self.skipped_tokens",
            "position >= 0",
        ),
        (
            "IHL: the largest of all",
            "probabilities.scatter(1, targets[:, None], -math.inf)",
            "probabilities",
        ),
    ),
    *_of(
        "unlearn/objectives/with_retain",
        "test_objectives",
        (
            "forget weight",
            "forget = self.forget_weight * self.forget_loss",
            "forget = self.forget_loss",
        ),
    ),
    *_of(
        "unlearn/objectives/losses",
        "test_objectives test_recipe",
        ("loss: 1e-12 in H", "(q + 1e-12)", "(q + 1e-7)"),
        ("loss: H over padding", ".index_select(0, places)", ""),
        (
            "loss: labels not shifted",
            "return (labels[:, 1:] != IGNORED)",
            "return (labels != IGNORED)",
        ),
        ("loss: p and q exchanged", "-(p * (q + 1e-12).log())", "-(q * (p + 1e-12).log())"),
    ),
    *_of(
        "unlearn/objectives/published",
        "test_objectives",
        ("objective: NPO's 2/beta", "-2 / self.beta", "-1 / self.beta"),
        (
            "objective: sign of GA",
            "return {FORGET: -cross_entropy(model, batch[FORGET])}",
            "return {FORGET: cross_entropy(model, batch[FORGET])}",
        ),
        ("objective: 1 - gamma of GA+KL", "(1 - self.gamma) * retain", "self.gamma * retain"),
        (
            "objective: sign of KL",
            "RETAIN: retain, FORGET: -self.gamma",
            "RETAIN: retain, FORGET: self.gamma",
        ),
        ("objective: l1 of nothing", "self.alpha * norm", "self.alpha"),
    ),
    *_of(
        "unlearn/objectives/simnpo",
        "test_objectives",
        ("objective: SimNPO's delta", "- self.delta", "+ self.delta"),
    ),
    *_of(
        "unlearn/objectives/dpo",
        "test_objectives",
        ("objective: DPO's order", "(preferred - forget)", "(forget - preferred)"),
        ("objective: DPO by lengths", ' * answer_lengths(batch[view]["labels"])', ""),
    ),
    *_of(
        "unlearn/objectives/rmu",
        "test_objectives test_model_functions",
        ("objective: RMU's layers", "UPDATED_LAYERS = 3", "UPDATED_LAYERS = 2"),
        (
            "objective: RMU steers the question",
            "_squared_error(forget, self.steering_coefficient * direction, scored)",
            "_squared_error(forget, self.steering_coefficient * direction, torch.ones_like(scored))",
        ),
    ),
    *_of(
        "optim/sophia",
        "test_optimizers",
        ("Sophia: clip", "clamp_(-1, 1)", "clamp_(-2, 2)"),
        ("Sophia: without B", "value=(1 - decay) * batch_size", "value=1 - decay"),
    ),
    *_of(
        "optim/masked_adamw",
        "test_optimizers",
        ("AdamW: epsilon", "eps: float = 1e-8", "eps: float = 1e-6"),
        ("AdamW: beta", "(0.9, 0.999)", "(0.9, 0.95)"),
    ),
    *_of(
        "dataset/encoding",
        "test_dataset",
        (
            "encoding: EOS left out",
            "if eos and len(ids) < max_length:\n        ids = [*ids, tokenizer.eos_token_id]\n    if question_length",
            "if question_length",
        ),
        (
            "encoding: question labelled",
            "[IGNORED] * question_length + ids[question_length:]",
            "ids",
        ),
        ("encoding: padding seen", "attention_mask[row, :length] = 1", "attention_mask[row] = 1"),
    ),
    *_of(
        "dataset/templates",
        "test_templates test_dataset",
        ("template: published slash", r'r" [\INST]"', '" [/INST]"'),
        (
            "template: second BOS",
            "rendered.removeprefix(bos) if adds_bos else rendered",
            "rendered",
        ),
    ),
    *_of(
        "dataset/pairing",
        "test_dataset",
        (
            "pairing: partner whatever the epoch",
            '{self.seed} {epoch} {index}").randrange',
            '{self.seed} {index}").randrange',
        ),
        (
            "pairing: first rows drawn",
            "random.Random(seed).sample(range(count), wanted)",
            "list(range(wanted))",
        ),
    ),
    *_of(
        "dataset/chunks",
        "test_offline_tasks test_sources test_dataset",
        ("copyright: tokens of a chunk", "CHUNK_TOKENS = 512", "CHUNK_TOKENS = 500"),
        ("copyright: prompts", "(50, 100, 200, 300)", "(50, 100, 200, 250)"),
    ),
    *_of(
        "metrics/replay",
        "test_generation",
        (
            "answers: a recorded step reads the tokens of the first",
            "        self._inputs.copy_(inputs)\n",
            "",
        ),
        (
            "answers: the cache moves under a recorded step",
            "least=self._columns",
            "least=LEAST_COLUMNS",
        ),
        (
            "answers: a recorded step is given too few columns",
            "while end < max(starts) + width:",
            "while end < max(starts):",
        ),
    ),
    *_of(
        "metrics/continuation",
        "test_generation",
        (
            "answers: a moved row loses its end",
            "buffer[targets] = buffer[sources]",
            "buffer[targets, :, : self._end - 1] = buffer[sources, :, : self._end - 1]",
        ),
    ),
    *_of(
        "metrics/copyright",
        "test_evaluation_recipe",
        ("copyright: tokens in all", "MAX_TOTAL_LENGTH = 600", "MAX_TOTAL_LENGTH = 300"),
    ),
    *_of(
        "metrics/toxicity",
        "test_evaluation_recipe",
        ("toxicity: at the threshold", "score > THRESHOLD", "score >= THRESHOLD"),
        ("toxicity: threshold", "THRESHOLD = 0.5", "THRESHOLD = 0.6"),
        ("toxicity: tokens in all", "MAX_TOTAL_LENGTH = 200", "MAX_TOTAL_LENGTH = 100"),
    ),
    *_of(
        "metrics/utility",
        "test_benchmark",
        ("perplexity: more is better", '-1,\n    group="UT"', '1,\n    group="UT"'),
    ),
    *_of(
        "metrics/wmdp",
        "test_evaluations",
        ("WMDP: right answers for wrong ones", "1 - float(results", "float(results"),
    ),
    *_of(
        "metrics/harness",
        "test_evaluation_recipe",
        ("lm-eval: seed of the examples", "task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)", "pass"),
        ("lm-eval: examples by default", "value=0)", "value=1)"),
    ),
    *_of(
        "metrics/text",
        "test_text_metrics",
        ("ROUGE: without stems", "use_stemmer=stems, tok", "use_stemmer=False, tok"),
        ("ROUGE: F1 for recall", '["rougeL"].recall', '["rougeL"].fmeasure'),
    ),
    *_of(
        "metrics/memorization",
        "test_tofu_metrics",
        ("ES: one token off", "wrong[-1] + 1 if", "wrong[-1] if"),
    ),
    *_of(
        "metrics/membership",
        "test_text_metrics test_tofu_metrics",
        (
            "MIA: orientation",
            "labels = [1] * len(forget) + [0] * len(retain)",
            "labels = [0] * len(forget) + [1] * len(retain)",
        ),
    ),
    *_of(
        "metrics/tofu",
        "test_tofu_metrics test_evaluation_recipe",
        ("TOFU: tokens in all", "MAX_TOTAL_LENGTH = 200", "MAX_TOTAL_LENGTH = 100"),
        ("TOFU: tokens of a text", "MAX_TEXT_LENGTH = 512", "MAX_TEXT_LENGTH = 256"),
        (
            "TOFU: truth ratio of sums",
            "np.mean(np.exp(-np.array(loss.perturbed)))",
            "np.exp(-np.mean(np.array(loss.perturbed)))",
        ),
        ("TOFU: 1e-12 in the truth ratio", "(paraphrase + 1e-12)", "(paraphrase + 1e-7)"),
    ),
    *_of(
        "metrics/tofu_benchmark",
        "test_tofu_metrics",
        ("TOFU: UE of accuracy", '1 - acc["forget"]', 'acc["forget"]'),
    ),
    *_of(
        "metrics/tofu_results",
        "test_evaluation_recipe",
        ("official: epsilon", "EPSILON = 1e-10", "EPSILON = 1e-12"),
    ),
    *_of(
        "metrics/tofu_field",
        "test_tofu_field test_evaluation_recipe",
        ("official: new tokens", "NEW_TOKENS = 200", "NEW_TOKENS = 100"),
        ("official: EOS memorised", "is_greedy[:-1]", "is_greedy"),
        ("official: ES of what is unknown", "1 / len(known)) if", "0.0) if"),
    ),
    *_of(
        "metrics/tofu_official",
        "test_tofu_official test_evaluation_recipe",
        (
            "official: mean of probabilities",
            "np.mean(np.array(loss.perturbed))",
            "-np.log(np.mean(np.exp(-np.array(loss.perturbed))))",
        ),
        ("official: utility", "return harmonic_mean([scores", "return statistics.fmean([scores"),
        ("official: shares", "*-np.array(loss.perturbed)]", "-np.mean(loss.perturbed)]"),
    ),
    *_of(
        "dataset/encoding",
        "test_tofu_field",
        ("official: a second EOS", "if ids[-1] != tokenizer.eos_token_id:", "if True:"),
        (
            "official: special tokens of a chat",
            "add_special_tokens=False",
            "add_special_tokens=True",
        ),
    ),
    *_of(
        "metrics/sentence",
        "test_tofu_metrics",
        (
            "closest: of equals the last",
            "int(similarities.argmax())",
            "int(similarities.argsort(stable=True)[-1])",
        ),
    ),
    *_of(
        "training/schedule",
        "test_training_loop",
        ("schedule: warm-up", "PUBLISHED_WARMUP = 0.1", "PUBLISHED_WARMUP = 0.05"),
        ("schedule: no step of warm-up", "max(1, int(warmup * steps))", "int(warmup * steps)"),
        (
            "schedule: constant rate",
            "return (self.steps - step) / max(1, self.steps - self.warmup)",
            "return 1.0",
        ),
        ("schedule: first rate", "return step / self.warmup", "return (step + 1) / self.warmup"),
        (
            "schedule: steps of whole epochs",
            "num_epochs * rows // (batch_size * accumulation)",
            "num_epochs * (rows // (batch_size * accumulation))",
        ),
        ("schedule: entries of the log", "LOG_ENTRIES = 20", "LOG_ENTRIES = 10"),
    ),
    *_of(
        "training/loop",
        "test_training_loop",
        ("loop: clipping", "MAX_GRADIENT_NORM = 1.0", "MAX_GRADIENT_NORM = 2.0"),
        ("loop: gradients not watched", ", gradient_norm=norm)", ")"),
        ("loop: losses not watched", "loss=recent, gradient", "gradient"),
        (
            "loop: gradients add up",
            "            gradients.clear()\n            since",
            "            since",
        ),
        ("loop: last weights not looked at", "    _check_weights(model, plan.steps)\n", ""),
        ("loop: norm of one step", '"grad_norm": norm,', '"grad_norm": min(norm, 1.0),'),
    ),
    *_of(
        "metrics/partial_work",
        "test_partial_work",
        (
            "partial work: of another origin",
            'if whole and file["origin"] == self._place.origin:',
            "if whole:",
        ),
        ("partial work: damaged", "if whole and file", "if file"),
        ("partial work: of other questions", "asked()]", "0]"),
        ("partial work: what this attempt has written", "in self._place.earlier", "is not None"),
        (
            "partial work: a signal does not have it written",
            "if writes and (asked or self._pace.due()):",
            "if writes and self._pace.due():",
        ),
        (
            "partial work: a signal waits for the end of it",
            "        if asked:\n            self._request.end()\n",
            "",
        ),
        (
            "partial work: one of several ends alone",
            "            asked = ranks.any_of(asked)\n",
            "            pass\n",
        ),
    ),
    *_of(
        "metrics/harness_model",
        "test_partial_work",
        (
            "lm-eval: a signal loses the last batch",
            "            self._between_batches()  # a signal may have come in the last one\n",
            "",
        ),
        (
            "lm-eval: a signal loses the last window",
            "            self._between_batches()\n        return found\n",
            "        return found\n",
        ),
    ),
    *_of(
        "stopping",
        "test_resuming",
        (
            "stopping: a failure makes it forget a signal",
            "        if request.kind is not None:\n            request.end()\n        raise\n",
            "        raise\n",
        ),
    ),
    *_of(
        "metrics/generation",
        "test_partial_work",
        (
            "answers: they go on in another order",
            'for place in partial_work.found["waiting"]]',
            'for place in reversed(partial_work.found["waiting"])]',
        ),
    ),
    *_of(
        "unlearn/mask/certificate",
        "test_delta",
        ("certificate: of the selected weights", "weights * ~chosen", "weights * chosen"),
    ),
    *_of(
        "unlearn/mask/partial_sums",
        "test_partial_sums",
        ("partial sums: of other rows", "!= self._fingerprint:", '== "":'),
        ("partial sums: damaged", "            file.verify()\n", ""),
    ),
    *_of(
        "unlearn/mask/gradients",
        "test_partial_sums",
        (
            "partial sums: rows are summed twice",
            "range(first, len(order), rows_at_once)",
            "range(0, len(order), rows_at_once)",
        ),
    ),
    *_of(
        "training/checkpoint",
        "test_resuming",
        (
            "resuming: generators go on",
            '    torch.set_rng_state(tensors["generator.cpu"])\n',
            "",
        ),
        (
            "resuming: another training's checkpoint",
            'if content["origin"] == self._origin:',
            "if True:",
        ),
        (
            "resuming: losses since the last entry",
            'tensors["recent"].to(device) if "recent" in tensors else 0.0',
            "0.0",
        ),
    ),
    *_of(
        "training/loop",
        "test_resuming",
        ("resuming: rows are read again", "[first * batch_size :]", "[:]"),
        ("resuming: a seed is drawn twice", "enabled=first > 0", "enabled=False"),
    ),
    *_of(
        "training/optimizer",
        "test_training_loop",
        (
            "optimizer: norms decay",
            '{"params": others, "weight_decay": 0.0}',
            '{"params": others, "weight_decay": weight_decay}',
        ),
        ("optimizer: LayerNorm decays", "isinstance(module, torch.nn.LayerNorm)", "False"),
    ),
    *_of(
        "unlearn/window_loss",
        "test_training test_golden_training",
        ("unlearning: sum of a window", "total(terms) / len(window)", "total(terms)"),
    ),
    *_of(
        "unlearn/training",
        "test_training test_golden_training",
        (
            "unlearning: gradients not masked",
            "multiply_by_mask(flat_gradient(parameters[name]), own)",
            "pass",
        ),
        ("unlearning: Sophia's refresh", "SOPHIA_REFRESH_STEPS = 10", "SOPHIA_REFRESH_STEPS = 5"),
    ),
    *_of(
        "model/fine_tuning",
        "test_fine_tuning test_golden_training",
        (
            "fine-tuning: mean of batches",
            "for part in window)",
            "for part in [batch]) * len(window)",
        ),
        (
            "fine-tuning: no masters",
            "dtype.itemsize == 2 if masters is None",
            "False if masters is None",
        ),
        ("fine-tuning: published steps", "whole_epochs=True", "whole_epochs=False"),
        ("fine-tuning: warm-up", "warmup=config.finetune.warmup_ratio", "warmup=0.1"),
        (
            "fine-tuning: one order",
            "manual_seed(seed + epoch)",
            "manual_seed(seed)",
        ),
    ),
    *_of(
        "dataset/checking",
        "test_checking",
        ("rows: blank answers pass", 'for column in ("question", "answer")', "for column in ()"),
        ("rows: one token passes", 'return len(row["text"]) < SHORT_TEXT', "return False"),
    ),
    *_of(
        "model/patching",
        "test_patching",
        ("patching: what is knowledge", "KNOWN = 0.05", "KNOWN = 0.06"),
        ("patching: no limit of Δ²", "min(max(b, 0.0), a)", "max(b, 0.0)"),
        (
            "patching: the model's own states",
            "flatten(0, 1)[places].to(flat)",
            "flatten(0, 1)[places].to(flat) * 0",
        ),
        ("patching: tokens less likely too", "largest.values > 0", "largest.values > -99"),
        (
            "patching: which way",
            "(own.log_probs - torch.stack(patched))",
            "(torch.stack(patched) - own.log_probs)",
        ),
    ),
    *_of(
        "unlearn/mask/planted",
        "test_planted",
        ("planted: copies overlap", "for edge in (number, number + 1)", "for edge in (0, 1)"),
        ("planted: each copy of π", "density * edge / copies", "density * edge"),
        (
            "planted: one copy for all",
            "for name, parameter in model.named_parameters():\n        drawn = generator.random",
            "for name, parameter in model.named_parameters():\n        drawn = np.random.default_rng(seed).random",
        ),
        ("planted: all layers", "layer_index(n) == drawn", "layer_index(n) is not None"),
        ("planted: share of the neurons", "[: round(share * count)]", "[: round(density * count)]"),
        ("planted: transposed neurons", "transposed=name in turned", "transposed=False"),
        ("judge: infinite scores", "if not np.isfinite(chunk).all()", "if np.isnan(chunk).any()"),
        ("judge: tensors planted whole", "if 0 < count < len(values):", "if 0 < count:"),
        ("judge: π of all tensors", "found / count * len(values) / count)", "found / count)"),
        (
            "judge: recall for precision",
            "(ratio, hits / k, hits / count)",
            "(ratio, hits / count, hits / k)",
        ),
        (
            "judge: equals whole",
            "float(np.interp(count, *edges))",
            "float(edges[1][np.searchsorted(edges[0], count)])",
        ),
        (
            "judge: equals in order",
            "np.append(ordered[1:] != ordered[:-1], True)",
            "np.full(len(ordered), True)",
        ),
        (
            "judge: trapezoids",
            "(self._found / self._seen)",
            "((self._found / self._seen + np.append(1.0, self._found / self._seen)[:-1]) / 2)",
        ),
        ("judge: the smallest", "(patterns << 1) | truth)[::-1]", "(patterns << 1) | truth)"),
    ),
    *_of(
        "model/plant",
        "test_plant",
        ("planting: warm-up", "WARMUP = 0.1", "WARMUP = 0.2"),
        ("planting: decay", "weight_decay=0.0", "weight_decay=0.1"),
        ("planting: everywhere", "            mask=mask,\n        )", "        )"),
        ("planting: without partners", "if self.settings.rehearse:", "if False:"),
        ("planting: one order for both copies", "mask, seed + number)", "mask, seed)"),
        ("planting: copies upon copies", "            put(run.model, before)\n", ""),
        (
            "planting: one copy",
            "zip(changed, masks, strict=False)",
            "zip(changed[1:], masks[1:], strict=False)",
        ),
        (
            "planting: frozen weights move",
            "if model_digest(run.model, planted) != digest:",
            "if False:",
        ),
        ("planting: another recipe's scores", 'if cell["origin"] == origin}', "}"),
        ("planting: any μ", "mu=mu or 1.0)", "mu=1.0)"),
        (
            "planting: more weights than planted",
            "ratio = (count + 0.5) / total if",
            "ratio = 0.5 if",
        ),
        ("planting: the model before the facts", "        put(unlearning.model, weights)\n", ""),
        ("planting: mixtures of mixtures", "            put(unlearning.model, after)\n", ""),
        ("planting: utility", "UTILITY, EVALUATIONS = 0.95, 6", "UTILITY, EVALUATIONS = 0.5, 6"),
        (
            "planting: utility of forgetting",
            "return asked[share][RETAIN]",
            "return asked[share][FORGET]",
        ),
        (
            "planting: unlearned otherwise",
            '.get("origin") == self._training',
            '.get("origin") is not None',
        ),
        ("planting: one seed", '"overall.seed": seed,', '"overall.seed": 0,'),
    ),
    *_of(
        "model/null_masks",
        "test_equal_utility",
        ("null: one mask", "drawn = random_alike(mask, seed)", "drawn = random_alike(mask, 0)"),
        ("null: any mask", "elif load_mask(path) != drawn:", "elif False:"),
        ("null: another model", 'for what in ("model", "forget", "retain")', "for what in ()"),
        ("null: dense runs", "if path is None or known is None or", "if path is None or"),
        ("null: the run's own mask", '"unlearn.mask_path": str(path),', ""),
    ),
    *_of(
        "model/depth",
        "test_depth",
        (
            "depth: rows of other settings",
            "[self.settings.tokens, self.fingerprints, texts]",
            "[self.fingerprints, texts]",
        ),
        (
            "depth: rows without tokens",
            "for row in rows.values() if row.tokens]",
            "for row in rows.values()]",
        ),
        (
            "depth: rows in order of length",
            "zip(batch, lost, strict=True)",
            "zip(sorted(batch), lost, strict=True)",
        ),
        ("depth: all rows", "self.forget_rows[: self.settings.rows]", "self.forget_rows"),
        (
            "depth: no update",
            "update_norms(self.full, self.run.model)",
            "update_norms(self.full, self.full)",
        ),
    ),
    *_of(
        "unlearn/mask/layers",
        "test_layers",
        ("effects: no mean over batches", "[chosen].double() / batches", "[chosen].double()"),
        ("effects: no γ", "-fr + gamma * rr", "-fr + rr"),
    ),
    *_of(
        "reporting/selection",
        "test_sweep",
        ("a front of equals", "a >= x and b >= y and (a, b) != (x, y)", "a > x and b > y"),
        ("a share of what is small", "if utility.better > 0 else", "if utility.better < 0 else"),
        ("a failed seed competes", " or line.finished < len(line.outcomes)", ""),
        ("the worst is chosen", "value > chosen[group][0]", "value < chosen[group][0]"),
    ),
    *_of(
        "model/lora",
        "test_model_functions test_training test_unlearn_command",
        ("LoRA: rank", "= 8, 32, 0.05", "= 4, 32, 0.05"),
        ("LoRA: alpha", "= 8, 32, 0.05", "= 8, 16, 0.05"),
        ("LoRA: dropout", "= 8, 32, 0.05", "= 8, 32, 0.1"),
    ),
    *_of(
        "unlearn/mask/delta",
        "test_delta",
        (
            "delta: frozen bits pass",
            "differs.logical_and_(~mask[name].flat(start, start + len(differs)))",
            "differs.zero_()",
        ),
        (
            "delta: any weights will do",
            "start = delta.after if revert else delta.before",
            "start = changed_digest(bits, delta.changed)",
        ),
    ),
    *_of(
        "model/quantization",
        "test_quantization",
        ("NF4: groups", "GROUP = 64", "GROUP = 32"),
        ("int8: levels", "amax(1, keepdim=True) / 127", "amax(1, keepdim=True) / 128"),
    ),
    *_of(
        "model/attack",
        "test_attack",
        ("attack: a curve for every mask", "else mask_fingerprint(lesson.mask),", "else 'a mask',"),
        ("attack: a curve for every seed", '"seed": self.settings.seed,', '"seed": 0,'),
        ("attack: nothing is shared", "kept = Measured(path, origin)", "kept = Measured(None, {})"),
        (
            "attack: a threshold by chance",
            "            return curves[ORIGINAL][0][1]",
            "            return curves[ORIGINAL][-1][1]",
        ),
        (
            "attack: any benign rows",
            'settings["benign rows"] = examples_fingerprint(self._benign)',
            "pass",
        ),
    ),
    *_of(
        "model/finished",
        "test_attack",
        ("finished: models of any size", "if shapes != own:", "if False:"),
        (
            "finished: any tokenizer",
            "if self._forget_rows(tokenizer) != self.forget_rows:",
            "if False:",
        ),
    ),
    *_of(
        "commands/attack",
        "test_attack",
        ("attack: the last run last", "        finished_run(folder)", "        str(folder)"),
    ),
    *_of(
        "model/relearning",
        "test_attack",
        ("R: upside down", "max(reference / gain, 0.0)", "max(gain / reference, 0.0)"),
    ),
    *_of(
        "metrics/resampling",
        "test_resampling",
        (
            "draws: the last row is never drawn",
            "generator.integers(rows, size",
            "generator.integers(max(rows - 1, 1), size",
        ),
        (
            "draws: ties count whole",
            'for side in ("left", "right")]',
            'for side in ("right", "right")]',
        ),
        ("draws: KS within ties", "np.diff(pooled[order]) > 0", "np.diff(pooled[order]) >= 0"),
    ),
    *_of(
        "metrics/tofu_log",
        "test_tofu_log",
        ("log: without open-unlearning's ε", "epsilon=EPSILON", "epsilon=0.1"),
        (
            "log: wrong answers weigh by their number",
            "float(p.mean()) for p",
            "float(p.max()) for p",
        ),
        ("log: ratios of the facts under a wrong name", '_Truth_Ratio"', '_truth_ratio"'),
    ),
    *_of(
        "metrics/views",
        "test_views test_own",
        ("views: the prefix behind", "{prefix} {row['question']}", "{row['question']} {prefix}"),
    ),
    *_of(
        "metrics/tofu_asked",
        "test_views",
        ("views: the question itself", '"question": row[column]', '"question": row["question"]'),
    ),
    *_of(
        "metrics/muse",
        "test_muse",
        (
            "MUSE: a text without its space",
            'f"{prompt} {text}", prompt)',
            'f"{prompt}{text}", prompt)',
        ),
        (
            "MUSE: attacked texts are cut as prompts",
            'row["text"], max_length=_longest(context)',
            'row["text"], max_length=_longest_prompt(context)',
        ),
    ),
    *_of(
        "metrics/muse_files",
        "test_muse",
        ("MUSE: a log of more questions", "== len(asked) == len(prompts)", "== len(asked)"),
        (
            "MUSE: privleak of 0.5 for that of a model",
            "MIDDLE], 0.5), abs_tol",
            "MIDDLE], 0.4), abs_tol",
        ),
    ),
    *_of(
        "metrics/evaluation_log",
        "test_muse",
        ("log: another attack's AUC", 'float(log[metric.key]["agg', 'float(log["mia_loss"]["agg'),
    ),
    *_of(
        "reporting/page",
        "test_report",
        (
            "report: seeds alone",
            "metric.better if metric else 0, draws)",
            "metric.better if metric else 0)",
        ),
    ),
    *_of(
        "metrics/tofu_official",
        "test_resampling test_tofu_official",
        (
            "Model Utility: with the forget set",
            'for k in kinds if name != "forget"',
            "for k in kinds",
        ),
    ),
    *_of(
        "reporting/bootstrap",
        "test_compared",
        (
            "bootstrap: unpaired",
            "self.draws[key] - other.draws[key]",
            "self.draws[key] - other.draws[key][::-1]",
        ),
        ("bootstrap: one tail", "rest = (1 - CONFIDENCE) / 2", "rest = 1 - CONFIDENCE"),
        ("bootstrap: foreign rows", "rel_tol=1e-6, abs_tol=1e-9", "rel_tol=1.0, abs_tol=1.0"),
    ),
    *_of(
        "reporting/compared",
        "test_compared",
        ("front: equals beat", "(points > point).any(axis=1)", "(points >= point).any(axis=1)"),
    ),
    *_of(
        "model/equal_utility",
        "test_equal_utility",
        (
            "mixing: which way",
            "share * before.float() + (1 - share) * parameter.float()",
            "share * parameter.float() + (1 - share) * before.float()",
        ),
        (
            "mixing: equal weights move",
            "torch.where(before == parameter, parameter, mixed.to(parameter.dtype))",
            "mixed.to(parameter.dtype)",
        ),
        (
            "mixing: which half",
            "if utility(middle) >= target else",
            "if utility(middle) < target else",
        ),
        ("mixing: any original", "!= fingerprint:", '== "":'),
        ("mixing: all utility", "target = share * whole.utility", "target = whole.utility"),
        ("mixing: utility of which less is better", "if headline.utility.better < 1:", "if False:"),
        (
            "mixing: the mixture's fingerprint",
            '        self.fingerprints["model"] = model_fingerprint(self.model)\n',
            "",
        ),
    ),
    *_of(
        "reporting/null_distribution",
        "test_equal_utility",
        (
            "p-value: ties are won",
            "better * value >= better * ours",
            "better * value > better * ours",
        ),
        ("p-value: without the run", "/ (1 + len(null))", "/ len(null)"),
    ),
    *_of(
        "reporting/spread",
        "test_reproduce_tables",
        ("best: one tail", "(1 - CONFIDENCE) / 2) > 0", "1 - CONFIDENCE) > 0"),
        ("best: questions do not count", "not _beyond(better * (drawn - beside))", "False"),
    ),
)


def try_mutation(mutation: Mutation) -> str:
    """What became of one fault: ``found``, ``SURVIVED`` or ``stale`` (it does not fit the code)."""
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        copy = Path(folder)
        for name in COPIED:
            source = ROOT / name
            target = copy / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy2(source, target)
        file = copy / mutation.file
        text = file.read_text(encoding="utf-8")
        if text.count(mutation.before) != 1:
            return "stale"
        file.write_text(text.replace(mutation.before, mutation.after), encoding="utf-8")
        package = copy / "package"  # import wagle means the copy
        package.mkdir()
        (package / "wagle").symlink_to(copy / "src")
        environment = {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
        try:
            status = subprocess.run(
                [*command, *mutation.tests],
                cwd=copy,
                env={**os.environ, **environment, "PYTHONPATH": str(package)},
                capture_output=True,
                timeout=PATIENCE,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            return "found"
    return {0: "SURVIVED", 1: "found"}.get(status, f"pytest ended with {status}")


def main() -> int:
    """Try the faults that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="of these faults")
    parser.add_argument("--jobs", type=int, default=2, help="tries at a time")
    options = parser.parse_args()
    names = [mutation.name for mutation in MUTATIONS]
    unknown = set(options.only or ()) - set(names)
    if unknown or len(set(names)) < len(names):
        parser.error(f"no such fault: {', '.join(unknown)}" if unknown else "two faults, one name")
    chosen = [m for m in MUTATIONS if not options.only or m.name in options.only]
    start, failures = time.perf_counter(), []
    with ThreadPoolExecutor(options.jobs) as pool:
        for mutation, outcome in zip(chosen, pool.map(try_mutation, chosen), strict=True):
            print(f"{mutation.name:32} {outcome}", flush=True)
            if outcome != "found":
                failures.append(mutation)
    found = len(chosen) - len(failures)
    print(f"\n{found} of {len(chosen)} found in {time.perf_counter() - start:.0f} s")
    for mutation in failures:
        print(
            f"not found: {mutation.name}: {mutation.file}: {mutation.before!r} -> {mutation.after!r}"
        )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
