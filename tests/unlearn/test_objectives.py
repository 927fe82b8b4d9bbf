"""Every objective against its formula written out by hand, and its gradient by differences."""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext
from dataclasses import fields

import pytest
import torch

from tests.tiny import CONFIGS, VOCABULARY, make_model
from wagle.catalogue import METHODS
from wagle.dataset.encoding import IGNORED, Encoded, pad_batch
from wagle.errors import ConfigError
from wagle.optim.bitmask import BitMask
from wagle.optim.chunks import cut
from wagle.unlearn.objectives.losses import cross_entropy, soft_cross_entropy
from wagle.unlearn.objectives.rmu import hidden_states
from wagle.unlearn.reference import SwappedWeights, exchange_selected

GAMMA, BETA, ALPHA, DELTA, STEERING = 0.7, 0.3, 0.01, 0.4, 6.5
FORGET_WEIGHT, BETA1, BETA2, EPSILON = 1.3, 2.0, 0.5, 0.3


def random_view(seed: int) -> dict[str, torch.Tensor]:
    """Three rows of unequal length, the first tokens unlabelled."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for length in (9, 5, 7):
        ids = torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()
        rows.append(Encoded(ids, [IGNORED] * 2 + ids[2:]))
    return pad_batch(rows, pad_token_id=2)


@pytest.fixture
def batch():
    views = ("forget", "retain", "refusal", "mismatched", "alternate")
    batch = {view: random_view(seed) for seed, view in enumerate(views)}
    batch["forget"]["reference_loss"] = torch.tensor([2.0, 5.5, 4.0])
    batch["refusal"]["reference_loss"] = torch.tensor([3.0, 1.5, 2.0])
    batch["alternate"]["reference_loss"] = torch.tensor([2.5, 1.0, 3.0])
    return batch


def rows_of(model, view):
    """Log-probabilities and labels of each row, run alone and without padding."""
    for ids, labels, attention in zip(
        view["input_ids"], view["labels"], view["attention_mask"], strict=True
    ):
        length = int(attention.sum())
        with torch.no_grad():
            logits = model(input_ids=ids[None, :length]).logits[0].double()
        yield logits.log_softmax(-1), labels[:length]


def example_losses(model, view):
    losses = []
    for log_probs, labels in rows_of(model, view):
        terms = [
            -float(log_probs[t - 1, label])
            for t, label in enumerate(labels.tolist())
            if label != IGNORED
        ]
        losses.append(sum(terms) / len(terms))
    return losses


def ce(model, view):
    losses = example_losses(model, view)
    return sum(losses) / len(losses)


def divergence(model, original, view):
    terms = []
    for (p, _), (q, _) in zip(rows_of(model, view), rows_of(original, view), strict=True):
        terms += (-(p.exp() * (q.exp() + 1e-12).log()).sum(-1)).tolist()
    return sum(terms) / len(terms)


def npo(model, view):
    terms = []
    for loss, reference in zip(
        example_losses(model, view), view["reference_loss"].tolist(), strict=True
    ):
        terms.append(math.log(1 / (1 + math.exp(-BETA * (loss - reference)))))
    return -2 / BETA * sum(terms) / len(terms)


def negative_log_sigmoid(x):
    return math.log(1 + math.exp(-x))


def simnpo(model, view):
    losses = example_losses(model, view)
    terms = [negative_log_sigmoid(BETA * loss - DELTA) for loss in losses]
    return 2 / BETA * sum(terms) / len(terms)


def log_ratios(model, view):
    """log π(y|x) − log π_ref(y|x) of whole answers."""
    losses, references = example_losses(model, view), view["reference_loss"].tolist()
    lengths = (view["labels"] != IGNORED).sum(dim=1).tolist()
    return [n * (r - c) for c, r, n in zip(losses, references, lengths, strict=True)]


def dpo(model, preferred, rejected):
    pairs = zip(log_ratios(model, preferred), log_ratios(model, rejected), strict=True)
    terms = [negative_log_sigmoid(BETA * (won - lost)) for won, lost in pairs]
    return 2 / BETA * sum(terms) / len(terms)


def first_layer(model, view):
    """Outputs of decoder layer 0 for each row, run alone and without padding, and its labels."""
    for ids, labels, attention in zip(
        view["input_ids"], view["labels"], view["attention_mask"], strict=True
    ):
        length = int(attention.sum())
        with torch.no_grad():
            outputs = model(input_ids=ids[None, :length], output_hidden_states=True)
        yield outputs.hidden_states[1][0].double(), labels[:length]


def rmu(model, original, batch, labelled_retain=False):
    torch.manual_seed(11)
    direction = torch.rand(16).double()
    direction = STEERING * direction / direction.square().sum().sqrt()
    steered = [
        (states[labels != IGNORED] - direction).square().mean()
        for states, labels in first_layer(model, batch["forget"])
    ]
    pairs = zip(
        first_layer(model, batch["retain"]), first_layer(original, batch["retain"]), strict=True
    )
    kept = []
    for (states, labels), (targets, _) in pairs:
        counted = labels != IGNORED if labelled_retain else slice(None)
        kept.append((states - targets)[counted].square().mean())
    return float(FORGET_WEIGHT * sum(steered) / len(steered) + ALPHA * sum(kept) / len(kept))


def labelled_distributions(model, view):
    """Of every labelled token its row, log-probabilities ``(V,)`` and id, rows run alone."""
    for row, (log_probs, labels) in enumerate(rows_of(model, view)):
        for t, label in enumerate(labels.tolist()):
            if label != IGNORED:
                yield row, log_probs[t - 1], label


def weighted_ascent(model, original, view, weight):
    """−mean over labelled tokens of weight(p, p_ref) · ℓ."""
    terms = []
    tokens = zip(
        labelled_distributions(model, view), labelled_distributions(original, view), strict=True
    )
    for (_, now, label), (_, before, _) in tokens:
        p, p_ref = math.exp(float(now[label])), math.exp(float(before[label]))
        terms.append(weight(p, p_ref) * float(now[label]))
    return sum(terms) / len(terms)


def undial(model, original, view):
    terms = []
    tokens = zip(
        labelled_distributions(model, view), labelled_distributions(original, view), strict=True
    )
    for (_, now, label), (_, before, _) in tokens:
        lowered = before.exp()
        lowered[label] *= math.exp(-BETA)
        terms.append(-float((lowered / lowered.sum() * now).sum()))
    return sum(terms) / len(terms)


def cross_entropy_unlearning(model, view):
    terms, seen = [], set()
    for row, now, label in labelled_distributions(model, view):
        if row in seen:  # the first labelled token of a row is left out
            others = now.exp()
            others[label] = 0
            terms.append(-float((others / others.sum() * now).sum()))
        seen.add(row)
    return sum(terms) / len(terms)


def inverted_hinge(model, view):
    terms = []
    for _, now, label in labelled_distributions(model, view):
        p = now.exp().tolist()
        terms.append(1 + p.pop(label) - max(p))
    return sum(terms) / len(terms)


def mean_probabilities(model, view):
    rows = {}
    for row, now, label in labelled_distributions(model, view):
        rows.setdefault(row, []).append(math.exp(float(now[label])))
    return [sum(row) / len(row) for row in rows.values()]


def flat(model, batch):
    refused, told = (mean_probabilities(model, batch[view]) for view in ("refusal", "forget"))
    terms = [(math.tanh(v) - math.tanh(u)) / 2 for u, v in zip(refused, told, strict=True)]
    return sum(terms) / len(terms)


def primal_dual(model, batch):
    terms = []
    for labels, logits in padded_logits(model, batch["forget"]):
        for t, label in enumerate(labels[1:]):
            if label != IGNORED:
                terms.append(float(logits[t].max() - logits[t].mean()) ** 2)
    return sum(terms) / len(terms)


def padded_logits(model, view):
    """Labels and float64 logits of each row of the padded batch."""
    with torch.no_grad():
        logits = model(input_ids=view["input_ids"], attention_mask=view["attention_mask"]).logits
    return zip(view["labels"].tolist(), logits.double(), strict=True)


def balanced(forget, model, batch):
    return FORGET_WEIGHT * forget + GAMMA * ce(model, batch["retain"])


FORMULAS = {
    "FT": lambda m, o, b: ce(m, b["retain"]),
    "l1_sparse": lambda m, o, b: (
        ce(m, b["retain"])
        + ALPHA * sum(float(p.detach().double().abs().sum()) for p in m.parameters())
    ),
    "GA": lambda m, o, b: -ce(m, b["forget"]),
    "GA+FT": lambda m, o, b: balanced(-ce(m, b["forget"]), m, b),
    "GA+KL": lambda m, o, b: (
        -GAMMA * ce(m, b["forget"]) + (1 - GAMMA) * divergence(m, o, b["retain"])
    ),
    "NPO+FT": lambda m, o, b: balanced(npo(m, b["forget"]), m, b),
    "CL": lambda m, o, b: ce(m, b["refusal"]),
    "CL+FT": lambda m, o, b: balanced(ce(m, b["refusal"]), m, b),
    "CL+KL": lambda m, o, b: ce(m, b["refusal"]) + GAMMA * divergence(m, o, b["retain"]),
    "RL": lambda m, o, b: ce(m, b["mismatched"]),
    "KL": lambda m, o, b: divergence(m, o, b["retain"]) - GAMMA * divergence(m, o, b["forget"]),
    "SimNPO+FT": lambda m, o, b: balanced(simnpo(m, b["forget"]), m, b),
    "DPO+FT": lambda m, o, b: balanced(dpo(m, b["refusal"], b["forget"]), m, b),
    "AltPO+FT": lambda m, o, b: balanced(dpo(m, b["alternate"], b["forget"]), m, b),
    "TaskArithmetic": lambda m, o, b: ce(m, b["forget"]),
    "RMU": rmu,
    "WGA+FT": lambda m, o, b: balanced(
        weighted_ascent(m, o, b["forget"], lambda p, r: p**BETA), m, b
    ),
    "TNPO+FT": lambda m, o, b: balanced(
        weighted_ascent(m, o, b["forget"], lambda p, r: 2 * p**BETA / (p**BETA + r**BETA + 1e-5)),
        m,
        b,
    ),
    "SatImp+FT": lambda m, o, b: balanced(
        weighted_ascent(m, o, b["forget"], lambda p, r: p**BETA1 * (1 - p) ** BETA2), m, b
    ),
    "UNDIAL": lambda m, o, b: balanced(undial(m, o, b["forget"]), m, b),
    "CE-U": lambda m, o, b: balanced(cross_entropy_unlearning(m, b["forget"]), m, b),
    "IHL+FT": lambda m, o, b: balanced(inverted_hinge(m, b["forget"]), m, b),
    "PDU": lambda m, o, b: balanced(primal_dual(m, b), m, b) - GAMMA * EPSILON,
    "FLAT": lambda m, o, b: balanced(flat(m, b), m, b),
}
NOT_THE_SLOPE = ("WGA+FT", "TNPO+FT", "SatImp+FT", "CE-U")
"""Gradients do not flow through their weights or targets, so they are not those of the value."""


def make_objective(name, **changes):
    objective = METHODS[name].load()
    values = {option.name: option.default for option in METHODS[name].options}
    values |= {"gamma": GAMMA, "beta": BETA, "alpha": ALPHA, "delta": DELTA}
    values |= {"forget_weight": FORGET_WEIGHT, "beta1": BETA1, "beta2": BETA2}
    values |= {"layer": 0, "steering_coefficient": STEERING, **changes}
    return objective(**{field.name: values[field.name] for field in fields(objective)})


def reference_to(original):
    return lambda: nullcontext(original)


def test_all_objectives_have_a_formula():
    assert set(FORMULAS) == set(METHODS)


@pytest.mark.parametrize("name", FORMULAS)
def test_value_equals_the_formula(name, batch):
    model, original = make_model(seed=0), make_model(seed=1)
    torch.manual_seed(11)
    value = make_objective(name)(model, batch, reference_to(original))
    assert float(value.detach()) == pytest.approx(FORMULAS[name](model, original, batch), rel=1e-4)


@pytest.mark.parametrize("name", [name for name in FORMULAS if name not in NOT_THE_SLOPE])
def test_gradient_equals_finite_differences(name, batch):
    # GPT-2 computes in float64 throughout; Llama's norms and softmax would round to float32
    model, original = make_model("gpt2", 0).double(), make_model("gpt2", 1).double()
    with torch.no_grad():  # away from zero, where |θ| has no derivative
        for parameter in model.parameters():
            parameter[parameter.abs() < 1e-3] = 0.1
    objective, reference = make_objective(name), reference_to(original)
    objective(model, batch, reference).backward()
    parameters = list(model.parameters())
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    generator = torch.Generator().manual_seed(0)
    step = 1e-6
    for _ in range(4):
        directions = [
            torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters
        ]
        slope = sum(float((g * d).sum()) for g, d in zip(gradients, directions, strict=True))
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                torch._foreach_add_(parameters, directions, alpha=sign * step)
                values.append(float(objective(model, batch, reference)))
                torch._foreach_add_(parameters, directions, alpha=-sign * step)
        assert (values[0] - values[1]) / (2 * step) == pytest.approx(slope, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("architecture", ["llama", "llama_tied", "gemma2"])
@pytest.mark.parametrize("name", FORMULAS)
def test_chunks_of_logits_change_neither_value_nor_gradient(name, architecture, batch, monkeypatch):
    results = []
    for size in (1000, 4):  # tokens; a view has 15 labelled ones
        monkeypatch.setattr("wagle.model.head.CHUNK_BYTES", 4 * VOCABULARY * size)
        model, original = make_model(architecture, 0), make_model(architecture, 1)
        value = make_objective(name)(model, batch, reference_to(original))
        value.backward()
        results.append((value.detach(), [p.grad for p in model.parameters()]))
    (value, gradients), (chunked_value, chunked_gradients) = results
    torch.testing.assert_close(chunked_value, value)
    for chunked, gradient in zip(chunked_gradients, gradients, strict=True):
        torch.testing.assert_close(chunked, gradient, rtol=1e-4, atol=1e-6)


def test_dpo_starts_at_two_over_beta_log_two(batch):
    model = make_model()
    for view in ("forget", "refusal"):
        batch[view]["reference_loss"] = torch.tensor(example_losses(model, batch[view]))
    value = make_objective("DPO+FT")(model, batch, None)
    start = balanced(2 / BETA * math.log(2), model, batch)
    assert float(value.detach()) == pytest.approx(start, rel=1e-5)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_hidden_states_come_from_the_layer_and_no_later_one_runs(architecture):
    model, view = make_model(architecture), random_view(0)
    layers = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 2)
    seen = []
    for layer in layers:
        layer.register_forward_hook(lambda *call: seen.append(call[-1]))
    model(input_ids=view["input_ids"], attention_mask=view["attention_mask"])
    expected = [output[0] if isinstance(output, tuple) else output for output in seen]
    for index in range(2):
        seen.clear()
        assert torch.equal(hidden_states(model, view, index), expected[index])
        assert len(seen) == index + 1
    model(input_ids=view["input_ids"], attention_mask=view["attention_mask"])
    assert len(seen) == 4  # both layers are in place again


def rmu_at(layer, **changes):
    return make_objective("RMU", layer=layer, **changes)


def test_the_retain_term_of_rmu_can_be_another(batch):
    model, original = make_model(seed=0), make_model(seed=1)
    reference = reference_to(original)
    torch.manual_seed(11)
    labelled = make_objective("RMU", labelled_retain=True)(model, batch, reference)
    expected = rmu(model, original, batch, labelled_retain=True)
    assert float(labelled.detach()) == pytest.approx(expected, rel=1e-4)
    likelihood = make_objective("RMU", retain_loss="nll").terms(model, batch, reference)["retain"]
    assert float(likelihood.detach()) == pytest.approx(ALPHA * ce(model, batch["retain"]), rel=1e-4)


def test_rmu_updates_the_feed_forward_weights_of_up_to_three_layers(model):
    names = rmu_at(1).trainable(model)
    kinds = ("gate_proj", "up_proj", "down_proj")
    assert names == {f"model.layers.{i}.mlp.{kind}.weight" for i in (0, 1) for kind in kinds}
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = 6
    names = rmu_at(4).trainable(type(model)(config))
    assert {name.split(".")[2] for name in names} == {"2", "3", "4"}
    names = rmu_at(1, updated="down").trainable(model)
    assert names == {f"model.layers.{i}.mlp.down_proj.weight" for i in (0, 1)}
    assert rmu_at(1, updated="all").trainable(model) is None


def test_rmu_refuses_a_layer_that_the_model_does_not_have(model):
    with pytest.raises(ConfigError, match=r"unlearn\.RMU\.layer is 2, .* 2 decoder layers"):
        rmu_at(2).trainable(model)


@pytest.mark.usefixtures("either_device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_exchange_swaps_the_selected_weights_only(dtype, monkeypatch):
    monkeypatch.setattr("wagle.optim.chunks.CPU_CHUNK", 64)
    monkeypatch.setattr("wagle.optim.chunks.WIDE_CHUNK", 64)
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(13, 21, generator=generator).to(dtype)
    chosen = torch.rand(13, 21, generator=generator) < 0.4
    stored = torch.randn(int(chosen.sum()), generator=generator).to(dtype)
    expected = weights.masked_scatter(chosen, stored), weights[chosen]
    exchange_selected(weights, cut(weights, BitMask.from_bool(chosen)), stored)
    assert torch.equal(weights, expected[0])
    assert torch.equal(stored, expected[1])


def test_swapped_weights_give_back_the_original(batch):
    model, original = make_model(seed=0), make_model(seed=0)
    generator = torch.Generator().manual_seed(3)
    mask = {
        name: BitMask.from_bool(torch.rand(p.shape, generator=generator) < 0.3)
        for name, p in model.named_parameters()
    }
    mask["model.norm.weight"] = BitMask.full((16,), True)
    mask["lm_head.weight"] = BitMask.full((VOCABULARY, 16), False)
    reference = SwappedWeights(model, mask)
    assert reference.nbytes == 4 * sum(bits.count() for bits in mask.values())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(mask[name].to_bool() * 0.5)
    changed = {name: p.detach().clone() for name, p in model.named_parameters()}
    with reference() as restored:
        for (name, p), q in zip(restored.named_parameters(), original.parameters(), strict=True):
            assert torch.equal(p, q), name
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, changed[name]), name


@pytest.mark.parametrize("name", ["GA+KL", "CL+KL", "KL", "NPO+FT", "TNPO+FT", "UNDIAL"])
def test_swapping_does_not_disturb_the_backward_pass(name, batch):
    """The gradient with weights swapped in and out equals the one with a frozen copy."""
    gradients = []
    for swapped in (True, False):
        model = make_model(seed=0)
        reference = SwappedWeights(model, None)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.1)
        if not swapped:
            reference = reference_to(make_model(seed=0))
        make_objective(name, retain_loss="kl")(model, batch, reference).backward()
        gradients.append([p.grad for p in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_h_takes_a_probability_of_zero_for_1e_12():
    """−½ · log(1 + 1e-12) − ½ · log(0 + 1e-12), the published quantity."""
    logits = torch.zeros(1, 2)
    reference = torch.tensor([[1000.0, 0.0]])
    value = soft_cross_entropy(logits, reference)
    assert float(value) == pytest.approx(0.5 * 12 * math.log(10), rel=1e-6)


# ------------------------------------------------------------------- weights without a gradient


def dense_gradients(model, loss):
    """Gradients of a loss of whole logits, each row run alone and without padding."""
    model.zero_grad()
    loss.backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def logits_and_labels(model, view):
    """Whole logits ``(M, V)`` of all labelled tokens, their ids and rows, with gradients."""
    logits, labels, rows = [], [], []
    for index in range(len(view["labels"])):
        length = int(view["attention_mask"][index].sum())
        row = view["labels"][index, :length]
        labelled = (row != IGNORED).nonzero()[:, 0]
        logits.append(model(input_ids=view["input_ids"][index : index + 1, :length]).logits[0])
        logits[-1] = logits[-1][labelled - 1]
        labels.append(row[labelled])
        rows += [index] * len(labelled)
    return torch.cat(logits), torch.cat(labels), rows


@pytest.mark.parametrize("name", NOT_THE_SLOPE)
def test_no_gradient_flows_through_weights_and_targets(name, batch):
    model, original = make_model("gpt2", 0).double(), make_model("gpt2", 1).double()
    view = batch["forget"]
    objective = make_objective(name, gamma=0.0, forget_weight=1.0)
    objective(model, batch, reference_to(original)).backward()
    found = [parameter.grad.clone() for parameter in model.parameters()]
    logits, labels, rows = logits_and_labels(model, view)
    log_probs = logits.log_softmax(-1)
    losses = -log_probs[range(len(labels)), labels]
    p = (-losses).exp().detach()
    if name == "CE-U":
        others = logits.detach().softmax(-1)
        others[range(len(labels)), labels] = 0
        later = [i for i, row in enumerate(rows) if i and rows[i - 1] == row]
        target = others / others.sum(-1, keepdim=True)
        loss = -(target * log_probs).sum(-1)[later].mean()
    else:
        with torch.no_grad():
            before, _, _ = logits_and_labels(original, view)
            r = before.softmax(-1)[range(len(labels)), labels]
        weights = {
            "WGA+FT": p**BETA,
            "TNPO+FT": 2 * p**BETA / (p**BETA + r**BETA + 1e-5),
            "SatImp+FT": p**BETA1 * (1 - p) ** BETA2,
        }[name]
        loss = -(weights * losses).mean()
    for gradient, expected in zip(found, dense_gradients(model, loss), strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-8, atol=1e-10)


# ----------------------------------------------------------------------------------- properties


def value_of(name, model, batch, original=None, **changes):
    reference = reference_to(original or make_model(seed=1))
    return make_objective(name, gamma=0.0, forget_weight=1.0, **changes)(model, batch, reference)


def token_mean(model, view):
    losses = [-float(p[label]) for _, p, label in labelled_distributions(model, view)]
    return sum(losses) / len(losses)


def test_without_a_power_wga_is_gradient_ascent_over_tokens(model, batch):
    value = float(value_of("WGA+FT", model, batch, beta=0.0).detach())
    assert value == pytest.approx(-token_mean(model, batch["forget"]), rel=1e-5)


def test_satimp_without_its_second_power_is_wga(model, batch):
    satimp = value_of("SatImp+FT", model, batch, beta1=1.5, beta2=0.0)
    assert float(satimp.detach()) == pytest.approx(
        float(value_of("WGA+FT", model, batch, beta=1.5).detach()), rel=1e-6
    )


@pytest.mark.parametrize("published", [False, True])
def test_undial_that_lowers_nothing_has_no_gradient_at_the_start(batch, published):
    model = make_model().double()
    loss = value_of("UNDIAL", model, batch, make_model().double(), beta=0.0, published=published)
    loss.backward()
    assert max(float(p.grad.abs().max()) for p in model.parameters()) < 1e-6


def test_published_undial_counts_every_position_of_the_padded_batch(batch):
    """Position by position, with the entry that the index −100 means where there is no label."""
    model, original, view = make_model("gpt2", 0), make_model("gpt2", 1), batch["forget"]
    terms = []
    pairs = zip(padded_logits(model, view), padded_logits(original, view), strict=True)
    for (labels, now), (_, before) in pairs:
        for t, label in enumerate(labels[1:]):
            lowered = before[t].exp()
            lowered[label] *= math.exp(-BETA)  # −100 counts from the end here as well
            terms.append(-float((lowered / lowered.sum() * now[t].log_softmax(-1)).sum()))
    assert len(terms) == 3 * 8
    value = float(value_of("UNDIAL", model, batch, original, published=True).detach())
    assert value == pytest.approx(sum(terms) / len(terms), rel=1e-5)


def test_summed_npo_starts_as_gradient_ascent_on_whole_answers(batch):
    model = make_model("gpt2").double()
    view = batch["forget"]
    view["reference_loss"] = torch.tensor(example_losses(model, view), dtype=torch.float64)
    value_of("NPO+FT", model, batch, length_normalised=False).backward()
    found = [parameter.grad.clone() for parameter in model.parameters()]
    logits, labels, _ = logits_and_labels(model, view)
    ascent = logits.log_softmax(-1)[range(len(labels)), labels].sum() / len(view["labels"])
    for gradient, expected in zip(found, dense_gradients(model, ascent), strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-9)


# RMU reads no logits, and l1_sparse the bias itself.
@pytest.mark.parametrize("name", sorted(set(FORMULAS) - {"RMU", "l1_sparse"}))
def test_a_constant_added_to_all_logits_of_a_token_changes_nothing(name, batch):
    model, original = make_model("opt", 0), make_model("opt", 1)
    before = float(value_of(name, model, batch, original).detach())
    model.lm_head.bias = torch.nn.Parameter(torch.full((VOCABULARY,), 3.0))
    assert float(value_of(name, model, batch, original).detach()) == pytest.approx(before, rel=1e-4)


RETAIN_WEIGHTS = {"RMU": ALPHA}


@pytest.mark.parametrize("name", ["GA+FT", "NPO+FT", "CL+FT", "WGA+FT", "UNDIAL", "RMU"])
def test_the_retain_term_can_be_a_divergence_from_the_original(name, batch):
    model, original = make_model(seed=0), make_model(seed=1)
    objective = make_objective(name, retain_loss="kl")
    assert objective.needs_reference_model
    terms = objective.terms(model, batch, reference_to(original))
    expected = []
    pairs = zip(rows_of(original, batch["retain"]), rows_of(model, batch["retain"]), strict=True)
    for (before, _), (now, _) in pairs:
        expected += (before.exp() * (before - now)).sum(-1).tolist()
    value = RETAIN_WEIGHTS.get(name, GAMMA) * sum(expected) / len(expected)
    assert float(terms["retain"].detach()) == pytest.approx(value, rel=1e-4)


def test_a_row_shorter_than_what_ce_u_skips_counts_for_nothing(model, batch):
    value = value_of("CE-U", model, batch, skipped_tokens=100)
    assert float(value.detach()) == 0.0


def test_ce_u_skips_a_labelled_first_token_though_nothing_predicts_it(model, batch):
    """Of running text every token is labelled; with n = 1 all that are predicted count."""
    view = batch["forget"]
    view["labels"] = view["input_ids"].masked_fill(view["attention_mask"] == 0, IGNORED)
    whole = float(value_of("CE-U", model, batch, skipped_tokens=1).detach())
    view["labels"][:, 0] = IGNORED
    assert float(value_of("CE-U", model, batch, skipped_tokens=0).detach()) == whole


def test_the_weight_of_pdus_retain_term_follows_its_retain_loss(model, batch):
    """Two batches of a step; λ ← max(0, λ + η · (mean loss − ε)) once the warm-up is over."""
    losses = [ce(model, batch["retain"]), ce(model, batch["refusal"])]
    excess = sum(losses) / 2 - EPSILON
    objective = make_objective("PDU", gamma=1.0, step_size=0.5, warmup_epochs=2)
    for epoch, expected in ((1, 1.0), (2, 1 + 0.5 * excess), (2, 1 + 1.0 * excess)):
        for view in ("retain", "refusal"):
            terms = objective.terms(model, {**batch, "retain": batch[view]}, None)
            (sum(terms.values()) / 2).backward()
        objective.after_step(epoch)
        assert objective.logged() == {"multiplier": pytest.approx(expected, rel=1e-5)}
    assert float(terms["retain"].detach()) == pytest.approx(
        (1 + 0.5 * excess) * (losses[1] - EPSILON), rel=1e-4
    )
    easy = make_objective("PDU", gamma=1.0, epsilon=1e3, step_size=1.0, warmup_epochs=0)
    sum(easy.terms(model, batch, None).values()).backward()
    easy.after_step(0)
    assert float(easy.state["multiplier"].detach()) == 0.0


FORGETTING = (
    "GA",
    "GA+FT",
    "NPO+FT",
    "PDU",
    "SimNPO+FT",
    "WGA+FT",
    "TNPO+FT",
    "SatImp+FT",
    "UNDIAL",
    "CE-U",
)


@pytest.fixture(scope="module")
def knowing_model():
    """A model that has learnt the forget view by heart, nearly."""
    model, view = make_model("gpt2", 0), random_view(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        cross_entropy(model, view).backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize("name", [*FORGETTING, "IHL+FT"])
def test_a_small_step_makes_known_answers_less_likely(name, batch, knowing_model):
    model, original = copy.deepcopy(knowing_model), copy.deepcopy(knowing_model)
    before = token_mean(model, batch["forget"])
    assert before < 1
    batch["forget"]["reference_loss"] = torch.tensor(example_losses(model, batch["forget"]))
    model.zero_grad()
    value_of(name, model, batch, original).backward()
    with torch.no_grad():
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters()))
        for parameter in model.parameters():
            parameter.sub_(parameter.grad, alpha=1e-2 / norm)
    assert token_mean(model, batch["forget"]) > before * 1.001
