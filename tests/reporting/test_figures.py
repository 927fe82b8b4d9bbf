"""Numbers behind the figures, and figures that can be read in print."""

from __future__ import annotations

import itertools
import math
import statistics
from functools import partial

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from wagle.commands import mask as mask_tool
from wagle.errors import ConfigError, WagleError
from wagle.metrics.benchmark import Headline, Metric
from wagle.optim.bitmask import BitMask
from wagle.reporting import figures
from wagle.reporting.figures import Point
from wagle.reporting.mask_figures import (
    draw_density,
    draw_score_histogram,
    draw_similarity,
    draw_similarity_matrix,
)
from wagle.reporting.planned import RETAIN_ONLY
from wagle.reporting.style import (
    DOUBLE_COLUMN,
    MASK_COLOURS,
    METHOD_SHAPES,
    SINGLE_COLUMN,
    colour_of,
    shape_of,
)
from wagle.reporting.training_figures import draw_evaluations, draw_training
from wagle.unlearn.mask.file import save_mask
from wagle.unlearn.mask.statistics import (
    chance_jaccard,
    density_table,
    jaccard,
    jaccard_table,
    score_histogram,
)

HEADLINE = Headline(Metric("forgotten", "What is gone."), Metric("utility", "What is still there."))
draw_ratio_sweep = partial(figures.draw_ratio_sweep, metrics=HEADLINE)
draw_tradeoff = partial(figures.draw_tradeoff, headline=HEADLINE)

LAYER = "model.layers.1."
NAMES = {
    "embedding": "model.embed_tokens.weight",
    "query": LAYER + "self_attn.q_proj.weight",
    "query bias": LAYER + "self_attn.q_proj.bias",
}


def make(**bits):
    tensors = {name: torch.tensor(b, dtype=torch.bool) for name, b in bits.items()}
    return {NAMES[name.replace("_", " ")]: BitMask.from_bool(t) for name, t in tensors.items()}


FIRST = make(embedding=[1, 1, 0, 0], query=[1, 0, 1, 1, 1, 0], query_bias=[0, 0])
SECOND = make(embedding=[0, 1, 1, 0], query=[1, 0, 1, 0, 0, 0], query_bias=[0, 0])


def test_tables_of_masks_by_hand():
    assert density_table(FIRST) == {"outside": {"embedding": 2 / 4}, "1": {"q": 4 / 8}}
    assert jaccard_table(FIRST, SECOND) == {"outside": {"embedding": 1 / 3}, "1": {"q": 2 / 4}}
    nothing = make(query=[0, 0])
    assert jaccard_table(nothing, nothing) == {"1": {"q": 1.0}}
    with pytest.raises(WagleError, match="different models"):
        jaccard_table(FIRST, nothing)


def test_chance_is_what_random_masks_reach():
    generator = torch.Generator().manual_seed(0)

    def draw(density: float):
        tensor = torch.rand(200_000, generator=generator) < density
        return {"w": BitMask.from_bool(tensor)}

    first, second = draw(0.8), draw(0.3)
    assert chance_jaccard(first, second) == pytest.approx(0.24 / 0.86, abs=5e-3)
    assert jaccard(first, second)[0] == pytest.approx(chance_jaccard(first, second), abs=5e-3)
    empty = {"w": BitMask.full((8,), False)}
    assert chance_jaccard(empty, empty) == 1.0


def log_normal(dtype=torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    scores = torch.exp(3 * torch.randn(50_000, generator=generator) - 15).to(dtype)
    scores[:1000] = 0
    return scores


def stream_of(scores: torch.Tensor, size: int = 1 << 20):
    return lambda: ((f"t{i}", 0, part.clone) for i, part in enumerate(scores.split(size)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_score_histogram_against_numpy(dtype):
    scores = log_normal(dtype)
    histogram = score_histogram(stream_of(scores, 7_000))
    assert (histogram.zeros, histogram.total) == (1000, 50_000)
    positive = scores[scores > 0].double().numpy()
    np.testing.assert_array_equal(histogram.counts, np.histogram(positive, histogram.edges)[0])
    np.testing.assert_allclose(histogram.edges[1:] / histogram.edges[:-1], 2 ** (1 / 8))
    for ratio in (0.01, 0.1, 0.5, 0.8, 0.95):
        exact = np.quantile(scores.double().numpy(), 1 - ratio)
        assert histogram.threshold(ratio) == pytest.approx(exact, rel=2 ** (1 / 8) - 1)
    assert histogram.threshold(0.99) == 0


def test_score_histogram_of_extreme_scores():
    scores = torch.tensor([5e-324, 1.0, torch.finfo(torch.float64).max], dtype=torch.float64)
    histogram = score_histogram(stream_of(scores))
    assert histogram.counts.sum() == 3
    assert (histogram.counts[0], histogram.counts[-1], histogram.zeros) == (1, 1, 0)
    assert score_histogram(stream_of(torch.zeros(3))).threshold(0.5) == 0
    for bad in (float("nan"), float("inf"), -1.0):
        with pytest.raises(WagleError, match="scores of t0"):
            score_histogram(stream_of(torch.tensor([1.0, bad])))


# ------------------------------------------------------------------------------- the pictures

KINDS = ("q", "k", "v", "o", "gate", "up", "down", "norm")
LLAMA_7B = {
    "outside": {"embedding": 0.14, "norm": 1.0, "head": 0.97},
    **{str(i): dict.fromkeys(KINDS, 0.7 + 0.009 * i) for i in range(32)},
}
SWEEP = [
    (
        "GradDiff",
        score_type,
        ratio,
        {"forgotten": 0.3 + ratio / 3 + seed / 50, "utility": 1 - ratio / 5},
    )
    for score_type in ("WAGLE", "Random", "Magnitude")
    for ratio in (1.0, 0.1, 0.2, 0.4, 0.6, 0.8, 0.85, 0.9, 0.95, 0.99)
    for seed in (0, 1, 2)
]
SPREAD = ((0, 0), (1 / 40, 1 / 30), (2 / 40, 2 / 30))
TRADEOFF = [Point("Original", "", "", [{"forgotten": 0.1, "utility": 1.0}])] + [
    Point(
        method,
        mask,
        "",
        [{"forgotten": 0.4 + i / 10 + up, "utility": 0.9 - j / 20 + right} for up, right in SPREAD],
    )
    for i, method in enumerate(("GradDiff", "NPO", "PO"))
    for j, mask in enumerate(("Dense", "Random", "Magnitude", "Wanda", "LoRA", "WAGLE"))
]
LOG = [
    *(
        {"step": s, "loss": 1 - s / 9, "forget_loss": -s / 9, "retain_loss": 1.0}
        | {"grad_norm": 10.0**s, "learning_rate": 1e-5}
        for s in (2, 4, 6)
    ),
    {"step": 6, "train_runtime": 1.5},
]
FIGURES = {
    "sweep": lambda: draw_ratio_sweep(SWEEP),
    "sweep in one column": lambda: draw_ratio_sweep(SWEEP, width=SINGLE_COLUMN),
    "trade-off": lambda: draw_tradeoff(TRADEOFF),
    "training": lambda: draw_training([("GradDiff", "WAGLE", LOG)]),
    "training of several": lambda: draw_training([(m, "WAGLE", LOG) for m in METHOD_SHAPES][:6]),
    "density": lambda: draw_density(LLAMA_7B, 0.8),
    "similarity": lambda: draw_similarity({"0": LLAMA_7B["0"]}, 0.7, 0.65),
    "matrix": lambda: draw_similarity_matrix(["WAGLE", "random"], [[1, 0.6], [0.6, 1]]),
    "scores": lambda: draw_score_histogram(score_histogram(stream_of(log_normal(), 9_999))),
}


def texts(figure: Figure) -> list[Text]:
    return [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]


@pytest.mark.parametrize("name", FIGURES)
def test_figures_can_be_read_in_a_column(name):
    before = dict(matplotlib.rcParams)
    figure = FIGURES[name]()
    assert dict(matplotlib.rcParams) == before
    expected = DOUBLE_COLUMN if name == "sweep" else SINGLE_COLUMN
    width, height = figure.get_size_inches()
    assert width == pytest.approx(expected)
    assert height < 9  # a page
    assert min(text.get_fontsize() for text in texts(figure)) >= 7
    FigureCanvasAgg(figure).draw()
    drawn = figure.get_tightbbox()
    assert drawn.x0 >= -0.01
    assert drawn.y0 >= -0.01
    assert drawn.x1 <= width + 0.01
    assert drawn.y1 <= height + 0.01


def test_the_style_of_a_notebook_does_not_matter():
    with matplotlib.rc_context({"font.size": 30, "axes.titlesize": 40, "figure.dpi": 37}):
        figure = FIGURES["density"]()
    assert max(text.get_fontsize() for text in texts(figure)) == 8


def error_bars(axes) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By label: the points, and half of each vertical bar's length."""
    result = {}
    for container in axes.containers:
        segments = container.lines[2][0].get_segments()
        halves = np.array([(s[1][1] - s[0][1]) / 2 if len(s) else np.nan for s in segments])
        result[container.get_label()] = (container.lines[0].get_xydata(), halves)
    return result


def test_ratio_sweep_shows_means_and_deviations():
    figure = draw_ratio_sweep(
        [*SWEEP, ("GradDiff", "Wanda", 0.5, {"forgotten": 0.7, "utility": 0.8})]
    )
    efficacy, utility = figure.axes
    assert efficacy.get_ylabel().startswith("forgotten")
    assert utility.get_ylabel().startswith("utility")
    assert "ρ" in utility.get_xlabel()
    points, halves = error_bars(efficacy)["WAGLE"]
    ratios = sorted({ratio for *_, ratio, _ in SWEEP})
    np.testing.assert_allclose(points[:, 0], ratios)
    np.testing.assert_allclose(points[:, 1], [0.3 + r / 3 + 0.02 for r in ratios])
    np.testing.assert_allclose(halves, statistics.stdev([0, 1 / 50, 2 / 50]))
    np.testing.assert_allclose(error_bars(utility)["Random"][1], 0, atol=1e-12)
    points, halves = error_bars(efficacy)["Wanda"]
    np.testing.assert_allclose(points, [[0.5, 0.7]])
    assert np.isnan(halves).all()  # one seed says nothing about the spread
    (legend,) = figure.legends
    assert legend.get_title().get_text() == "mean; bars: ± standard deviation over 3 seeds"
    assert {t.get_text() for t in legend.get_texts()} == {"WAGLE", "Random", "Magnitude", "Wanda"}


def test_equal_lines_of_a_sweep_are_all_seen():
    axes = draw_ratio_sweep(SWEEP).axes[0]  # all masks of SWEEP have the same numbers
    lines = [container.lines[0] for container in axes.containers]
    for wider, line in itertools.pairwise(lines):
        assert wider.get_linewidth() > line.get_linewidth()
        assert wider.get_markersize() > line.get_markersize()


def markers(figure: Figure) -> dict[str, np.ndarray]:
    """By name: where a marker's centre is drawn, in points."""
    FigureCanvasAgg(figure).draw()
    (axes,) = figure.axes
    return {
        line.get_label(): line.get_transform().transform(line.get_xydata())[0] * 72 / figure.dpi
        for line in axes.lines
        if line.get_zorder() == 3
    }


def test_tradeoff_has_a_point_for_each_group():
    figure = draw_tradeoff(TRADEOFF)
    drawn = markers(figure)
    assert len(drawn) == 19
    (axes,) = figure.axes
    places = {ln.get_label(): ln.get_xydata()[0] for ln in axes.lines if ln.get_label() in drawn}
    np.testing.assert_allclose(places["Original"], [1.0, 0.1])
    np.testing.assert_allclose(places["GradDiff+Dense"], [0.9 + 1 / 30, 0.4 + 1 / 40])
    labels = {t.get_text() for t in figure.legends[0].get_texts()} - {""}
    assert labels == {p.method for p in TRADEOFF} | {p.mask for p in TRADEOFF} - {""}
    assert (
        figure.legends[0].get_title().get_text() == "mean; bars: ± standard deviation over 3 seeds"
    )


def test_axes_say_which_way_is_better():
    less = Metric("forgotten", "Less of it is better.", -1)
    other = Metric("utility", "No more or less of it is better.", 0)
    (axes,) = figures.draw_tradeoff(TRADEOFF, Headline(less, other)).axes
    assert axes.get_ylabel() == "forgetting, forgotten\n(smaller is better)"
    assert axes.get_xlabel() == "utility, utility"
    (axes,) = draw_tradeoff(TRADEOFF).axes
    assert axes.get_xlabel() == "utility, utility (larger is better)"


def test_points_that_would_cover_each_other_stand_side_by_side():
    same = [{"forgotten": 0.4, "utility": 0.9}]
    near = [{"forgotten": 0.4001, "utility": 0.9001}]
    points = [Point(method, "WAGLE", "", same) for method in ("GradDiff", "NPO", "PO")]
    points += [
        Point("KL", "WAGLE", "", near),
        Point("Original", "", "", [{"forgotten": 0, "utility": 1}]),
    ]
    figure = draw_tradeoff(points)
    drawn = list(markers(figure).values())
    assert len(drawn) == 5
    for first, second in itertools.combinations(drawn, 2):
        assert np.hypot(*(first - second)) > 7
    (axes,) = figure.axes
    moved = [text for text in axes.texts if text.arrow_patch is not None]
    assert len(moved) == 4  # each joined to its place


def test_points_of_other_ratios_are_points_of_their_own_and_say_so():
    results = [[{"forgotten": ue, "utility": 0.9}] for ue in (0.2, 0.6)]
    points = [
        Point("NPO", "WAGLE", detail, r)
        for detail, r in zip(("ρ 0.4", "ρ 0.8"), results, strict=True)
    ]
    figure = draw_tradeoff(points)
    assert set(markers(figure)) == {"NPO+WAGLE ρ 0.4", "NPO+WAGLE ρ 0.8"}
    assert {t.get_text() for t in figure.axes[0].texts} >= {"ρ 0.4", "ρ 0.8"}
    assert not figure.legends[0].get_title().get_text()


def test_infinite_numbers_are_not_drawn_but_named():
    points = [
        Point("NPO", "Dense", "", [{"forgotten": 0.5, "utility": math.inf}]),
        Point("PO", "Dense", "", [{"forgotten": 0.5, "utility": 0.5}]),
    ]
    figure = draw_tradeoff(points)
    assert set(markers(figure)) == {"PO+Dense"}
    assert "NPO+Dense" in figure.axes[0].get_title()
    sweep = [
        ("NPO", "WAGLE", ratio, {"forgotten": value, "utility": 0.5})
        for ratio, value in ((0.1, 0.5), (0.2, math.inf))
    ]
    axes = draw_ratio_sweep(sweep).axes[0]
    np.testing.assert_allclose(error_bars(axes)["WAGLE"][0], [[0.1, 0.5]])
    markers(draw_tradeoff(points[:1]))  # nothing to draw is no failure


def test_a_colour_is_a_mask_and_a_shape_a_method_in_every_figure():
    sweep = draw_ratio_sweep(SWEEP).axes[0]
    training = draw_training([("GA+FT", "WAGLE", LOG), ("NPO", "Random", LOG)]).axes[0]
    tradeoff = draw_tradeoff(TRADEOFF).axes[0]
    for mask in ("WAGLE", "Random"):
        (bars,) = [c for c in sweep.containers if c.get_label() == mask]
        points = [line for line in tradeoff.lines if line.get_label().endswith(f"+{mask}")]
        assert {bars.lines[0].get_color(), *(p.get_color() for p in points)} == {colour_of(mask)}
        assert [p.get_marker() for p in points] == [
            shape_of(m)[0] for m in ("GradDiff", "NPO", "PO")
        ]
    assert [line.get_color() for line in training.lines] == [
        colour_of("WAGLE"),
        colour_of("Random"),
    ]
    assert [line.get_linestyle() for line in training.lines] == ["-", "--"]
    shapes = {name: shape for name, shape in METHOD_SHAPES.items() if name != RETAIN_ONLY}
    assert METHOD_SHAPES[RETAIN_ONLY] == shapes["Retrained"]  # two words for one model
    markers_of = [marker for marker, _ in shapes.values()]
    assert len(set(markers_of)) == len(markers_of)
    assert len(set(MASK_COLOURS.values())) == len(MASK_COLOURS)


def test_names_are_no_formulas():
    points = [Point(r"$\frac", "_own $x$ score", "", [{"forgotten": 0.5, "utility": 0.5}])]
    figure = draw_tradeoff(points)
    FigureCanvasAgg(figure).draw()
    assert [t.get_text().strip() for t in figure.legends[0].get_texts()] == [
        r"\$\frac",
        r"_own \$x\$ score",
    ]


def test_training_curves_tell_forget_and_retain_loss_apart():
    figure = draw_training([("NPO", "WAGLE", LOG)])
    forget, retain, norm, rate = figure.axes
    np.testing.assert_allclose(forget.lines[0].get_xydata(), [[s, -s / 9] for s in (2, 4, 6)])
    np.testing.assert_allclose(retain.lines[0].get_xydata(), [[s, 1] for s in (2, 4, 6)])
    assert (forget.get_yscale(), norm.get_yscale()) == ("linear", "log")
    assert rate.get_xlabel() == "optimizer step"
    (whole,) = draw_training([("NPO", "", [{"step": 1, "loss": 2.0}])]).axes
    assert whole.get_ylabel() == "loss (nats)"


def test_many_numbers_measured_during_training_stand_in_columns():
    log = [{"step": s, **{f"evaluation n{i}": s * i for i in range(7)}} for s in (0, 5)]
    figure = draw_evaluations([("NPO", "WAGLE", log)], [f"evaluation n{i}" for i in range(7)])
    rows = [axes.get_subplotspec().rowspan.start for axes in figure.axes]
    assert rows == [0, 0, 1, 1, 2, 2, 3]
    assert [axes.get_ylabel() for axes in figure.axes] == [f"n{i}" for i in range(7)]
    assert [bool(axes.get_xlabel()) for axes in figure.axes] == [False] * 5 + [True] * 2
    few = draw_evaluations([("NPO", "WAGLE", log)], ["evaluation n1", "evaluation n2"])
    assert [axes.get_subplotspec().rowspan.start for axes in few.axes] == [0, 1]


def test_heat_maps_show_every_cell_where_it_belongs():
    figure = draw_density(LLAMA_7B, 0.8)
    axes = figure.axes[0]
    layers = [t.get_text() for t in axes.get_yticklabels()]
    kinds = [t.get_text() for t in axes.get_xticklabels()]
    assert layers == [*map(str, range(32)), "outside"]
    assert kinds == [*KINDS, "embedding", "head"]
    shown = {
        (layers[round(t.get_position()[1])], kinds[round(t.get_position()[0])]): t.get_text()
        for t in axes.texts
    }
    assert shown == {
        (layer, kind): f"{share * 100:.0f}"
        for layer, row in LLAMA_7B.items()
        for kind, share in row.items()
    }
    assert axes.get_title() == "80.0% of all weights selected"
    assert figure.axes[1].get_xlabel() == "selected weights (%)"


def test_noise_does_not_look_like_a_pattern():
    for level, expected in ((0.8, (75, 85)), (0.99, (90, 100)), (0.0, (0, 10))):
        table = {"0": {"q": level, "k": level}}
        image = draw_density(table, level).axes[0].collections[0]
        assert image.get_clim() == pytest.approx(expected)


def test_score_lines_stand_at_the_percentiles():
    scores = log_normal()
    histogram = score_histogram(stream_of(scores, 9_999))
    figure = draw_score_histogram(histogram, ratios=(0.5, 0.9799, 0.99), label="WAGLE score")
    axes = figure.axes[0]
    assert axes.get_xscale() == "log"
    lines = {line.get_label(): line.get_xdata()[0] for line in axes.lines}
    assert lines["ρ = 0.5 (percentile 50)"] == pytest.approx(
        float(scores.median()), rel=2 ** (1 / 8) - 1
    )
    assert np.isnan(lines["ρ = 0.99 (percentile 1, 0)"])
    assert np.isnan(lines["ρ = 0.9799 (percentile 2.01, further left)"])
    assert "(2.0% are 0)" in axes.get_title()
    assert "WAGLE score" in axes.get_xlabel()


def test_the_mask_tool_refuses_to_draw_scores_that_do_not_exist(tmp_path):
    argv = ["make", "--ratios", "0.5", "--figure", str(tmp_path / "scores")]
    argv += ["--overall.model_name", "m", "--unlearn.mask_path", "ffn/a_0.5.pt"]
    with pytest.raises(ConfigError, match="ffn has none"):
        mask_tool.main(argv)


@pytest.mark.parametrize("command", ["inspect", "compare"])
def test_the_mask_tool_draws(tmp_path, command, capsys):
    paths = [tmp_path / "a_0.5.pt", tmp_path / "b_0.5.pt"]
    for path, mask in zip(paths, (FIRST, SECOND), strict=True):
        save_mask(mask, path)
    masks = paths[: 1 if command == "inspect" else 2]
    argv = [command, *map(str, masks), "--json", "--figure", str(tmp_path / "picture_0.5")]
    assert mask_tool.main(argv) == 0
    assert (tmp_path / "picture_0.5.png").stat().st_size > 1000
    assert (tmp_path / "picture_0.5.pdf").stat().st_size > 1000
    output = capsys.readouterr()
    assert output.out.startswith("{")
    assert "picture_0.5.png" in output.err
