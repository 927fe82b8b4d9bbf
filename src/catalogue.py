"""What is chosen by name: methods, scores, data sets, attacks and benchmarks, a line each.

A line says everything that must be known of a thing before it is used; where it stands is written
``module:object`` and imported only then, so that nothing here needs torch. To add one: write the
object, and a line here (:mod:`wagle.entries` explains what it says); or leave the program as it is,
and name one's own file where the name is chosen (:mod:`wagle.outside`). Example, a method with one
hyper-parameter::

    Method(
        "GA+FT",
        "wagle.unlearn.objectives.published:GradientDifference",
        aliases=("GradDiff",),
        options=(Option("gamma", float, 0.0, "weight of the retain term"),),
    )
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Literal, TypeVar

from wagle.entries import Attack, DataSet, Entry, Method, Option, Score

# ------------------------------------------------------------------------------------ methods


_PUBLISHED = "wagle.unlearn.objectives.published"
_TOKEN_WEIGHTS = "wagle.unlearn.objectives.token_weights"
_RETAIN_WEIGHT = Option("gamma", float, 0.0, "weight of the retain term")
_FORGET_WEIGHT = Option("forget_weight", float, 1.0, "weight of the forget term")


def _with_retain(gamma: float = 0.0, forget_weight: float = 1.0) -> tuple[Option, ...]:
    """The options of ``WithRetain``, which an objective of two terms begins with."""
    return (
        replace(_RETAIN_WEIGHT, default=gamma),
        replace(_FORGET_WEIGHT, default=forget_weight),
        Option(
            "retain_loss",
            Literal["nll", "kl"],
            "nll",
            "of the retain rows: cross-entropy, or divergence from the model before unlearning",
        ),
    )


_BETA = Option("beta", float, 0.1, "inverse temperature", above=0)

_METHODS = (
    Method("FT", f"{_PUBLISHED}:FineTuning"),
    Method(
        "l1_sparse",
        f"{_PUBLISHED}:L1Sparse",
        options=(Option("alpha", float, 0.0, "weight of the sum of all |weights|", at_least=0),),
    ),
    Method("GA", f"{_PUBLISHED}:GradientAscent"),
    Method(
        "GA+FT",
        f"{_PUBLISHED}:GradientDifference",
        aliases=("GradDiff",),
        options=_with_retain(),
    ),
    Method(
        "GA+KL",
        f"{_PUBLISHED}:GradientAscentKL",
        options=(
            Option("gamma", float, 0.0, "weight of the forget term; the retain term has 1 - gamma"),
        ),
    ),
    Method(
        "NPO+FT",
        f"{_PUBLISHED}:NegativePreference",
        aliases=("NPO",),
        options=(
            *_with_retain(),
            _BETA,
            Option(
                "length_normalised",
                bool,
                True,
                "losses are means over tokens, as WAGLE has it; false: sums, as NPO's paper",
            ),
        ),
    ),
    Method("CL", f"{_PUBLISHED}:Refusal", questions=("forget",)),
    Method(
        "CL+FT",
        f"{_PUBLISHED}:PreferenceOptimization",
        aliases=("PO",),
        options=_with_retain(gamma=1.0),
        questions=("forget",),
    ),
    Method("CL+KL", f"{_PUBLISHED}:RefusalKL", options=(_RETAIN_WEIGHT,), questions=("forget",)),
    Method("RL", f"{_PUBLISHED}:RandomLabel", questions=("forget", "retain")),
    Method(
        "KL",
        f"{_PUBLISHED}:Divergence",
        options=(Option("gamma", float, 0.0, "weight of the forget term"),),
    ),
    Method(
        "SimNPO+FT",
        "wagle.unlearn.objectives.simnpo:SimpleNegativePreference",
        aliases=("SimNPO",),
        options=(
            *_with_retain(),
            Option("beta", float, 2.5, "inverse temperature", above=0),
            Option("delta", float, 0.0, "margin", at_least=0),
        ),
    ),
    Method(
        "DPO+FT",
        "wagle.unlearn.objectives.dpo:DirectPreference",
        aliases=("DPO",),
        options=(*_with_retain(), _BETA),
        questions=("forget",),
    ),
    Method(
        "AltPO+FT",
        "wagle.unlearn.objectives.dpo:AlternatePreference",
        aliases=("AltPO",),
        options=(
            *_with_retain(gamma=1.0),
            _BETA,
            Option("alternates", str | None, None, "file that `wagle alternates` makes"),
        ),
        questions=("forget",),
    ),
    Method(
        "WGA+FT",
        f"{_TOKEN_WEIGHTS}:WeightedGradientAscent",
        aliases=("WGA",),
        options=(
            *_with_retain(gamma=1.0),
            Option("beta", float, 1.0, "power of a token's probability", at_least=0),
        ),
    ),
    Method(
        "TNPO+FT",
        f"{_TOKEN_WEIGHTS}:TokenwiseNegativePreference",
        aliases=("TNPO",),
        options=(
            *_with_retain(gamma=1.0),
            Option("beta", float, 4.0, "power of a token's probabilities", above=0),
        ),
    ),
    Method(
        "SatImp+FT",
        f"{_TOKEN_WEIGHTS}:SaturationImportance",
        aliases=("SatImp",),
        options=(
            *_with_retain(gamma=1.0, forget_weight=0.1),
            Option("beta1", float, 5.0, "power of a token's probability", at_least=0),
            Option("beta2", float, 1.0, "power of one less that probability", at_least=0),
        ),
    ),
    Method(
        "UNDIAL",
        "wagle.unlearn.objectives.undial:SelfDistillation",
        options=(
            *_with_retain(),
            Option("beta", float, 10.0, "what the true token's logit is lowered by", at_least=0),
            Option(
                "published",
                bool,
                False,
                "mean over prompt and padding too, as published; false: over labelled tokens",
            ),
        ),
    ),
    Method(
        "CE-U",
        "wagle.unlearn.objectives.distribution:CrossEntropyUnlearning",
        options=(
            *_with_retain(),
            Option("skipped_tokens", int, 1, "labelled tokens left out of each row", at_least=0),
        ),
    ),
    Method(
        "IHL+FT",
        "wagle.unlearn.objectives.distribution:InvertedHinge",
        aliases=("IHL",),
        options=_with_retain(gamma=1.0),
    ),
    Method(
        "FLAT",
        "wagle.unlearn.objectives.flat:LossAdjustment",
        options=_with_retain(),
        questions=("forget",),
    ),
    Method(
        "TaskArithmetic",
        "wagle.unlearn.objectives.task_arithmetic:TaskArithmetic",
        options=(
            Option("scale", float, 1.0, "of the change by learning that is taken away", above=0),
        ),
    ),
    Method(
        "PDU",
        "wagle.unlearn.objectives.pdu:PrimalDual",
        options=(
            replace(_RETAIN_WEIGHT, default=1.0, meaning="the retain term's first weight", above=0),
            *_with_retain()[1:],
            Option("epsilon", float, 0.3, "retain loss above which its weight rises"),
            Option("step_size", float, 1.0, "by how much of the difference", at_least=0),
            Option("warmup_epochs", int, 5, "epochs in which the weight stays", at_least=0),
        ),
    ),
    Method(
        "RMU",
        "wagle.unlearn.objectives.rmu:Misdirection",
        options=(
            Option(
                "layer",
                int | None,
                None,
                "decoder layer whose output is steered, from 0; not set: usual for the model's "
                "family, else a quarter of the way through",
                at_least=0,
            ),
            Option(
                "steering_coefficient",
                float,
                6.5,
                "length of the vector that it is steered to",
                at_least=0,
            ),
            Option("alpha", float, 1200.0, "weight of the retain term", at_least=0),
            _FORGET_WEIGHT,
            Option(
                "retain_loss",
                Literal["states", "nll", "kl"],
                "states",
                "of the retain rows: distance of that layer's output from the model before "
                "unlearning, cross-entropy, or divergence from that model",
            ),
            Option(
                "labelled_retain",
                bool,
                False,
                "retain states of labelled tokens only, as open-unlearning has it",
            ),
            Option(
                "updated",
                Literal["feed_forward", "down", "all"],
                "feed_forward",
                "what changes without a mask: feed-forward weights of three layers, of these the "
                "output projections, or all weights",
            ),
        ),
    ),
)


# ------------------------------------------------------------------------------------- scores


_SCORES_MODULE = "wagle.unlearn.mask.scores"
_GROUPED_MODULE = "wagle.unlearn.mask.grouped_scores"
_MASKS_MODULE = "wagle.unlearn.mask.make"

_SCORES = (
    Score(
        "wagle",
        f"{_SCORES_MODULE}:wagle",
        title="WAGLE",
        aliases=("snip_advanced",),
        gradients=("forget", "retain"),
        inputs=("mu",),
    ),
    Score(
        "wagle_cl",
        f"{_SCORES_MODULE}:wagle_refusal",
        title="WAGLE-CL",
        aliases=("snip_advanced_CL",),
        gradients=("refusal", "retain"),
        inputs=("mu",),
    ),
    Score(
        "wagle_gn",
        f"{_SCORES_MODULE}:wagle_gauss_newton",
        title="WAGLE-GN",
        aliases=("snip_advanced_gn",),
        gradients=("forget", "retain"),
    ),
    Score(
        "wagle_fisher",
        f"{_SCORES_MODULE}:wagle_fisher",
        title="WAGLE-Fisher",
        gradients=("forget", "retain"),
        squares=("retain",),
    ),
    Score(
        "fisher_ratio",
        f"{_SCORES_MODULE}:fisher_ratio",
        title="Fisher ratio",
        squares=("forget", "retain"),
    ),
    Score(
        "neuron",
        f"{_GROUPED_MODULE}:neuron",
        title="Neuron",
        gradients=("forget",),
        grouped=True,
    ),
    Score(
        "activation_ratio",
        f"{_GROUPED_MODULE}:activation_ratio",
        title="Activation ratio",
        activations=("forget", "retain"),
        grouped=True,
    ),
    Score(
        "memflex",
        f"{_GROUPED_MODULE}:memflex",
        title="MemFlex",
        gradients=("forget", "retain"),
        grouped=True,
    ),
    Score("random", f"{_SCORES_MODULE}:random", title="Random", inputs=("seed",)),
    Score("magnitude", f"{_SCORES_MODULE}:magnitude", title="Magnitude", aliases=("weight",)),
    Score("gradient", f"{_SCORES_MODULE}:gradient", gradients=("forget",)),
    Score("snip", f"{_SCORES_MODULE}:snip", title="SNIP", gradients=("forget",)),
    Score(
        "wanda",
        f"{_MASKS_MODULE}:make_wanda_masks",
        title="Wanda",
        activations=("forget",),
        ranks=False,
    ),
    Score(
        "ffn",
        f"{_MASKS_MODULE}:make_feed_forward_masks",
        title="FFN",
        aliases=("FFN",),
        ranks=False,
        has_ratio=False,
    ),
)


# ---------------------------------------------------------------------------------- data sets


_SOURCES = "wagle.dataset.sources"
TOFU_SUBSETS = (
    *("full", "forget01", "forget05", "forget10", "retain90", "retain95", "retain99"),
    *("holdout01", "holdout05", "holdout10", "real_authors", "world_facts"),
    *("forget01_perturbed", "forget05_perturbed", "forget10_perturbed", "retain_perturbed"),
    *("real_authors_perturbed", "world_facts_perturbed"),
)

_MUSE_TEXTS = (
    *("forget", "retain1", "retain2", "holdout"),
    *(f"{part}_forget_{step}" for part in ("scal", "sust") for step in (1, 2, 3, 4)),
)
_MUSE_QA = ("qa", "qa_icl")

_DATA_SETS = (
    DataSet(
        "Tofu",
        f"{_SOURCES}.tofu:load_tofu",
        subsets=TOFU_SUBSETS,
        any_subset=True,
        refusals="tofu",
    ),
    DataSet(
        "Demo",
        f"{_SOURCES}.tofu:load_demo",
        subsets=(*TOFU_SUBSETS, "knowledge", "dialogues"),
        texts=("dialogues",),
        any_subset=True,
        refusals="tofu",
    ),
    DataSet("WMDPCyber", f"{_SOURCES}.wmdp:load_cyber", max_length=1024, texts=("",)),
    DataSet("WMDPBio", f"{_SOURCES}.wmdp:load_bio", max_length=1024, texts=("",)),
    DataSet("WMDPALL", f"{_SOURCES}.wmdp:load_all", max_length=1024, texts=("",)),
    DataSet(
        "HP",
        f"{_SOURCES}.copyright:load_copyright",
        max_length=1024,
        asked=tuple(f"{part}_{n}" for part in ("train", "test") for n in (50, 100, 200, 300)),
        refusals="copyright",
        aliases=("Copyright",),
    ),
    *(
        DataSet(
            name,
            f"{_SOURCES}.muse:{loader}",
            max_length=2048,
            subsets=_MUSE_TEXTS,
            asked=(
                *("verbmem_forget", "privleak_forget", "privleak_retain", "privleak_holdout"),
                *(f"knowmem_{role}_{kind}" for role in ("forget", "retain") for kind in _MUSE_QA),
            ),
            texts=_MUSE_TEXTS,
            pieces=True,
        )
        for name, loader in {
            "MuseNews": "load_news",
            "MuseBooks": "load_books",
            "DemoMuse": "load_demo_muse",
        }.items()
    ),
    DataSet("SafePku", f"{_SOURCES}.toxicity:load_safe_pku", asked=("test",)),
    DataSet("C4", f"{_SOURCES}.text:load_c4", asked=("validation",), texts=("",)),
    DataSet("wikitext", f"{_SOURCES}.text:load_wikitext", texts=("",)),
    DataSet("TruthfulQA", f"{_SOURCES}.truthful_qa:load_truthful_qa"),
    DataSet(
        "RealToxicityPrompts",
        f"{_SOURCES}.toxicity:load_real_toxicity_prompts",
        subsets=(),
        asked=("",),
    ),
)


# ------------------------------------------------------------------------------------ attacks


_ATTACKS_MODULE = "wagle.metrics.membership"

_ATTACKS = (
    Attack("loss", f"{_ATTACKS_MODULE}:loss"),
    Attack("zlib", f"{_ATTACKS_MODULE}:zlib_loss"),
    Attack("min_k++", f"{_ATTACKS_MODULE}:min_k_plus_plus", standardized=True),
    Attack("reference", f"{_ATTACKS_MODULE}:excess_loss", reference=True),
    Attack("gradnorm", f"{_ATTACKS_MODULE}:gradient_norm", gradients=True),
)


# --------------------------------------------------------------------------------- benchmarks

_BENCHMARKS = (
    Entry("tofu", "wagle.metrics.tofu_benchmark:TOFU"),
    Entry("wmdp", "wagle.metrics.wmdp:WMDP"),
    Entry("copyright", "wagle.metrics.copyright:COPYRIGHT"),
    Entry("toxic", "wagle.metrics.toxicity:TOXICITY"),
    Entry("muse", "wagle.metrics.muse:MUSE"),
    Entry("own", "wagle.metrics.own:OWN"),
    Entry("none", "wagle.metrics.benchmark:NO_BENCHMARK"),
)
"""What ``unlearn.task_name`` may be; each object is a ``Benchmark``, and importing it is cheap."""


# ------------------------------------------------------------------------------------ by name

_AnyEntry = TypeVar("_AnyEntry", bound=Entry)


def _by_name(entries: Iterable[_AnyEntry]) -> dict[str, _AnyEntry]:
    return {entry.name: entry for entry in entries}


def _aliases(entries: Iterable[Method | Score | DataSet]) -> dict[str, str]:
    return {alias: entry.name for entry in entries for alias in entry.aliases}


METHODS = _by_name(_METHODS)
METHOD_ALIASES = _aliases(_METHODS)
SCORES = _by_name(_SCORES)
SCORE_ALIASES = _aliases(_SCORES)
ATTACKS = _by_name(_ATTACKS)
DATA_SETS = _by_name(_DATA_SETS)
"""By the part of the name before the underscore."""
DATA_SET_ALIASES = _aliases(_DATA_SETS)
BENCHMARKS = _by_name(_BENCHMARKS)
