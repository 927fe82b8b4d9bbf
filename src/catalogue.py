"""What is chosen by name: methods, scores, membership attacks and benchmarks, a line each.

A line says everything that must be known of a thing before it is used; where it stands is written
``module:object`` and imported only then, so that nothing here needs torch. To add one: write the
object, and a line here; or leave the program as it is, and name one's own file where the name is
chosen (:mod:`wagle.outside`). Example, a method with one hyper-parameter::

    Method(
        "GA+FT",
        "wagle.unlearn.objectives.published:GradientDifference",
        aliases=("GradDiff",),
        options=(Option("gamma", float, 0.0, "weight of the retain term"),),
    )
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar


def label_of(name: str) -> str:
    """A name without a place: ``Mine`` of ``path/to/file.py:Mine``; others as they are."""
    return name.rpartition(":")[2]


@dataclass(frozen=True)
class Entry:
    """A line of the catalogue.

    Attributes:
        name: what the configuration calls it.
        place: ``module:object``, or the object itself.
        code: fingerprint of the code that it comes from, where that is none of the program's.
    """

    name: str
    place: Any
    code: str = field(default="", kw_only=True)

    @property
    def label(self) -> str:
        """The name without a place."""
        return label_of(self.name)

    @property
    def identity(self) -> str:
        """What it is, wherever its code lies."""
        return f"{self.label} {self.code}" if self.code else self.name

    def load(self) -> Any:
        """The object, imported now if it has not been."""
        if not isinstance(self.place, str):
            return self.place
        module, _, name = self.place.partition(":")
        return getattr(importlib.import_module(module), name)


# ------------------------------------------------------------------------------------ methods


@dataclass(frozen=True)
class Option:
    """A hyper-parameter of a method: a field of its dataclass, the key ``unlearn.METHOD.name``.

    Attributes:
        kind: ``int``, ``float``, ``bool``, ``str`` or one of them ``| None``; or a ``Literal`` of
            strings.
        default: ``...`` where it must be given.
        meaning: one line for ``--help``.
        above, at_least: bounds of a number.
    """

    name: str
    kind: Any
    default: Any
    meaning: str
    above: float | None = None
    at_least: float | None = None


@dataclass(frozen=True)
class Method(Entry):
    """An unlearning method; the object is a subclass of ``Objective``.

    Attributes:
        aliases: other names; the first is the one in tables and figures.
        options: its hyper-parameters.
        questions: which sets must have questions with answers, of ``forget`` and ``retain``:
            running text has no question to be refused and no answer to be exchanged.
    """

    aliases: tuple[str, ...] = ()
    options: tuple[Option, ...] = ()
    questions: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """As tables call it."""
        return self.aliases[0] if self.aliases else self.label


_PUBLISHED = "wagle.unlearn.objectives.published"
_TOKEN_WEIGHTS = "wagle.unlearn.objectives.token_weights"
_RETAIN_WEIGHT = Option("gamma", float, 0.0, "weight of the retain term")


def _with_retain(gamma: float = 0.0, forget_weight: float = 1.0) -> tuple[Option, ...]:
    """The options of ``WithRetain``, which an objective of two terms begins with."""
    return (
        Option("gamma", float, gamma, "weight of the retain term"),
        Option("forget_weight", float, forget_weight, "weight of the forget term"),
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
    Method("FLAT", "wagle.unlearn.objectives.flat:LossAdjustment", questions=("forget",)),
    Method(
        "RMU",
        "wagle.unlearn.objectives.rmu:Misdirection",
        options=(
            Option("layer", int, 7, "decoder layer whose output is steered", at_least=0),
            Option(
                "steering_coefficient",
                float,
                6.5,
                "length of the vector that it is steered to",
                at_least=0,
            ),
            Option("alpha", float, 1200.0, "weight of the retain term", at_least=0),
        ),
    ),
)


# ------------------------------------------------------------------------------------- scores


@dataclass(frozen=True)
class Score(Entry):
    """How weights are chosen for a mask.

    The object is a function (weights, gradients by kind, inputs, where) -> scores. Weights,
    gradients and scores are flat vectors of equal length, float32 (or float64 on request), on the
    CPU; gradients carry the published factor 1/A; ``inputs`` is a ``ScoreInputs``; ``where`` is
    (position of the parameter, start of the chunk). It may overwrite what it created, not its
    arguments. Where ``ranks`` is false it is a function like ``make_masks``.

    Attributes:
        title: of its masks in tables, where that is not the name.
        aliases: names in published configurations.
        gradients: the kinds of gradient that it reads: ``forget``, ``retain``, ``refusal``.
        inputs: what else it depends on, of ``mu``, ``seed`` and ``activations`` (on forget
            examples).
        ranks: whether weights are ranked by a score each, within ``unlearn.mask_scope`` and but
            for ``unlearn.mask_exclude``, rather than by a rule of its own.
        has_ratio: whether the share of selected weights can be chosen.
    """

    title: str = ""
    aliases: tuple[str, ...] = ()
    gradients: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    ranks: bool = True
    has_ratio: bool = True

    @property
    def mask_title(self) -> str:
        """As tables call a mask that it made."""
        return self.title or self.label

    def depends_on(self, what: str) -> bool:
        """Whether a mask differs with ``mu`` or ``seed``; refusals and partners are drawn by it."""
        drawn = what == "seed" and bool({"retain", "refusal"} & set(self.gradients))
        return drawn or what in self.inputs


_SCORES_MODULE = "wagle.unlearn.mask.scores"
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
    Score("random", f"{_SCORES_MODULE}:random", title="Random", inputs=("seed",)),
    Score("magnitude", f"{_SCORES_MODULE}:magnitude", title="Magnitude", aliases=("weight",)),
    Score("gradient", f"{_SCORES_MODULE}:gradient", gradients=("forget",)),
    Score("snip", f"{_SCORES_MODULE}:snip", title="SNIP", gradients=("forget",)),
    Score(
        "wanda",
        f"{_MASKS_MODULE}:make_wanda_masks",
        title="Wanda",
        inputs=("activations",),
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


@dataclass(frozen=True)
class DataSet(Entry):
    """A data set, or a family of them: ``Tofu`` with its subsets is ``Tofu_forget10`` and others.

    The object is a function of a ``Request`` that returns rows with the columns ``question`` and
    ``answer``, or ``text``.

    Attributes:
        max_length: how long its examples may become (tokens).
        subsets: what may follow the underscore of its name; "" where nothing does.
        asked: the same, of those that are for evaluation alone.
        texts: of these, running text; the others hold questions with answers.
        any_subset: whether its loader knows others as well.
        refusals: which sentences refuse its questions; "": those for anything.
        aliases: other names.
    """

    max_length: int = 512
    subsets: tuple[str, ...] = ("",)
    asked: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    any_subset: bool = False
    refusals: str = ""
    aliases: tuple[str, ...] = ()

    def names(self, subsets: Iterable[str]) -> list[str]:
        """The whole names of some subsets."""
        return [f"{self.name}_{subset}".removesuffix("_") for subset in subsets]


_SOURCES = "wagle.dataset.sources"
TOFU_SUBSETS = (
    *("full", "forget01", "forget05", "forget10", "retain90", "retain95", "retain99"),
    *("holdout01", "holdout05", "holdout10", "real_authors", "world_facts"),
    *("forget01_perturbed", "forget05_perturbed", "forget10_perturbed", "retain_perturbed"),
    *("real_authors_perturbed", "world_facts_perturbed"),
)

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


@dataclass(frozen=True)
class Attack(Entry):
    """A membership attack on the texts of TOFU's rows.

    The object is a function of an ``AttackedText`` that returns scores by the names of their
    columns; the larger a score, the less the text looks like training data.

    Attributes:
        standardized: whether it reads standardised log-probabilities.
        reference: whether it reads the loss under ``evaluation.reference_model``.
    """

    standardized: bool = False
    reference: bool = False


_ATTACKS_MODULE = "wagle.metrics.membership"

_ATTACKS = (
    Attack("loss", f"{_ATTACKS_MODULE}:loss"),
    Attack("zlib", f"{_ATTACKS_MODULE}:zlib_loss"),
    Attack("min_k++", f"{_ATTACKS_MODULE}:min_k_plus_plus", standardized=True),
    Attack("reference", f"{_ATTACKS_MODULE}:excess_loss", reference=True),
)


# --------------------------------------------------------------------------------- benchmarks

_BENCHMARKS = (
    Entry("tofu", "wagle.metrics.tofu_benchmark:TOFU"),
    Entry("wmdp", "wagle.metrics.wmdp:WMDP"),
    Entry("copyright", "wagle.metrics.copyright:COPYRIGHT"),
    Entry("toxic", "wagle.metrics.toxicity:TOXICITY"),
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
