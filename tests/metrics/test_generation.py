"""Greedy generation when rows leave and join the batch, against one row at a time."""

from __future__ import annotations

import gc
import weakref
from itertools import takewhile
from unittest.mock import MagicMock, create_autospec

import pytest
import torch
from transformers import GPT2Config, MistralConfig, Qwen2Config

from tests.architectures import SMALL, of_config
from tests.recording import CpuRecorder
from tests.tiny import CONFIGS, VOCABULARY
from wagle import devices
from wagle.metrics import continuation, generation
from wagle.metrics.generation import generate_greedy

MODELS = {
    **CONFIGS,
    "qwen2": Qwen2Config(**SMALL),
    "sliding window": MistralConfig(**SMALL, sliding_window=6),
}
LIMIT = 26


def make_prompts(count=11):
    generator = torch.Generator().manual_seed(5)
    return [
        torch.randint(
            3,
            VOCABULARY,
            (int(torch.randint(1, 20, (), generator=generator)),),
            generator=generator,
        ).tolist()
        for _ in range(count)
    ]


@torch.no_grad()
def one_by_one(model, prompt):
    """No cache, no batch, no padding, no end but the limit."""
    ids = list(prompt)
    while len(ids) < LIMIT:
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits
        ids.append(int(logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.fixture(scope="module", params=MODELS)
def case(request):
    """A model, prompts, EOS tokens that end about half of the rows early, and what is right."""
    model = of_config(MODELS[request.param])
    prompts = make_prompts()
    unstopped = [one_by_one(model, prompt) for prompt in prompts]
    stop = {tokens[len(tokens) // 3] for tokens in unstopped[::3]}
    stopped = [list(takewhile(lambda token: token not in stop, tokens)) for tokens in unstopped]
    return model, prompts, stop, stopped


def recording(monkeypatch):
    """As if the CPU could record what it does."""
    monkeypatch.setattr("wagle.devices.can_record", lambda where: True)
    monkeypatch.setattr("wagle.devices.Recorder", CpuRecorder)
    for module in ("continuation", "replay"):
        monkeypatch.setattr(f"wagle.metrics.{module}.LEAST_COLUMNS", 16)
    CpuRecorder.forget()


@pytest.fixture(params=["cpu", "accelerator", "always drafts", "recorded", "recorded drafts"])
def way(request, monkeypatch):
    """How many tokens a step may have, whether it is recorded, and whether it guesses ahead."""
    if request.param == "accelerator":
        monkeypatch.setattr("wagle.devices.on_cpu", lambda where: False)
    if request.param.startswith("recorded"):
        recording(monkeypatch)
    if request.param.endswith("drafts"):  # most of them wrong
        monkeypatch.setattr(continuation, "REPEATING", 0)
        monkeypatch.setattr(continuation, "CPU_STEP_TOKENS", 10**6)


@pytest.mark.parametrize(
    ("way", "batch_size"),
    [
        *[("cpu", 1), ("cpu", 32), ("accelerator", 4), ("always drafts", 1), ("always drafts", 32)],
        *[("recorded", 4), ("recorded drafts", 3)],
    ],
    indirect=["way"],
)
@pytest.mark.usefixtures("way")
def test_equals_one_row_at_a_time(case, batch_size):
    model, prompts, stop, expected = case
    assert len({len(tokens) for tokens in expected}) > 3
    generated = generate_greedy(
        model,
        prompts,
        eos_token_ids=stop,
        pad_token_id=2,
        max_total_length=LIMIT,
        batch_size=batch_size,
        description="",
    )
    assert generated == expected


def test_what_a_step_costs_in_any_case_is_measured_once_on_an_accelerator(model, monkeypatch):
    """30.8 ms and 0.2 ms for each token: as long as for 154, rounded to a power of two."""
    asked = []

    def seconds(model, count):
        asked.append(count)
        return 0.0308 + 0.0002 * count

    monkeypatch.setattr(continuation, "_seconds", seconds)
    assert continuation.step_tokens(model) == 26
    monkeypatch.setattr("wagle.devices.on_cpu", lambda where: False)
    assert [continuation.step_tokens(model) for _ in range(2)] == [128, 128]
    assert asked == [1, 512]


def test_a_step_is_timed(model):
    assert continuation._seconds(model, 3) > 0


def without_trying(monkeypatch):
    """No forward passes that only ask what the architecture can read."""
    monkeypatch.setattr(generation, "_find_way", lambda *_: generation.CachedTexts)


@torch.inference_mode()
def check_way(model, fastest):
    """The way that is found, but for windows that our cache does not know."""
    small_window = getattr(model.config, "sliding_window", None) == 6
    way = generation._find_way(model, [generation.Text([5, 6])], LIMIT, 2)
    assert way is (generation.PaddedTexts if small_window else fastest)


@pytest.mark.usefixtures("either_device")
def test_which_architectures_read_our_batches(case):
    check_way(case[0], generation.CachedTexts)


def test_where_it_can_be_a_step_is_recorded(case, monkeypatch):
    recording(monkeypatch)
    check_way(case[0], generation.ReplayedTexts)


def test_a_model_that_asks_for_values_is_not_recorded(model, monkeypatch):
    recording(monkeypatch)
    model.lm_head.register_forward_pre_hook(lambda module, inputs: print(float(inputs[0].max())))
    check_way(model, generation.CachedTexts)


def test_a_way_is_tried_once_for_texts_as_short_and_as_long(model):
    """A trial reads two texts alone, in two passes, before anything else."""
    passes = []
    model.register_forward_pre_hook(
        lambda _, args, kwargs: passes.append(kwargs["use_cache"]), with_kwargs=True
    )

    def alone(shortest, limit, longest=9):
        passes.clear()
        generate_greedy(
            model,
            [[5] * shortest, [6] * longest],
            eos_token_ids=(),
            pad_token_id=2,
            max_total_length=limit,
            batch_size=2,
            description="",
        )
        return passes.count(False)

    assert alone(4, 20) == 2
    assert alone(4, 20) == 0
    assert alone(6, 16) == 0
    assert alone(3, 20) == 2  # a shorter one
    assert alone(4, 21) == 2  # and a longer one
    assert alone(3, 21) == 2  # both, which no trial had together
    assert alone(3, 21) == 0
    assert alone(3, 21, longest=10) == 2  # longer before anything is chosen


def test_few_shapes_are_recorded_and_each_once(model, monkeypatch):
    """Texts of 3 to 60 tokens, 4 places, widths of 1 and 9, and 16, 32, 64 or 68 columns."""
    recording(monkeypatch)
    monkeypatch.setattr(generation, "_find_way", lambda *_: generation.ReplayedTexts)
    steps = []
    step = continuation.CachedTexts.step
    monkeypatch.setattr(
        continuation.CachedTexts,
        "step",
        lambda self, drafts: steps.append(max(map(len, drafts)) > 0) or step(self, drafts),
    )
    generate_greedy(
        model,
        make_prompts(9),
        eos_token_ids=(),
        pad_token_id=2,
        max_total_length=60,
        batch_size=4,
        description="",
    )
    assert set(steps) == {False, True}
    assert CpuRecorder.recorded <= 8
    # the first step of a shape is not recorded
    assert len(steps) - 8 <= CpuRecorder.replayed < len(steps)


@torch.inference_mode()
def test_recorded_steps_keep_no_cache_on_the_device(model, monkeypatch):
    """When the texts are dropped it is freed at once, before another takes its place."""
    recording(monkeypatch)
    batch = generation.ReplayedTexts(model, 3, LIMIT, 2)
    batch.add([generation.Text([5, 6, 7]), generation.Text([8, 9])])
    for _ in range(3):
        for text, chosen in zip(batch.texts, batch.step([[], []]), strict=True):
            text.extend(chosen)
    assert CpuRecorder.replayed == 2
    kept = [weakref.ref(buffer) for buffer in batch._cache._buffers.values()]
    gc.disable()
    try:
        del batch
        assert [ref() for ref in kept] == [None] * len(kept)
    finally:
        gc.enable()


def test_a_recorder_records_as_torch_wants_it(monkeypatch):
    """On a device that is not there: the calls alone, with torch's own signatures."""
    device, other = torch.device("cuda:1"), object()
    fakes = {
        name: create_autospec(getattr(torch.cuda, name))
        for name in ("Stream", "CUDAGraph", "graph", "stream", "device")
    }
    for name, fake in fakes.items():
        fake.return_value = MagicMock()
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: other)
    recorder = devices.Recorder(device)
    done = []
    replay = recorder.record(lambda: done.append(1) or "result")
    assert done == [1]
    fakes["Stream"].assert_called_once_with(device)
    fakes["device"].assert_called_once_with(device)
    fakes["stream"].assert_called_once_with(other)
    fakes["graph"].assert_called_once_with(
        fakes["CUDAGraph"].return_value,
        pool="pool",
        stream=fakes["Stream"].return_value,
        capture_error_mode="thread_local",
    )
    assert [replay(), replay()] == ["result"] * 2
    assert done == [1]
    assert fakes["CUDAGraph"].return_value.replay.call_count == 2


@pytest.mark.usefixtures("either_device")
def test_free_places_are_taken(monkeypatch):
    monkeypatch.setattr(continuation, "REPEATING", LIMIT + 1)
    without_trying(monkeypatch)
    model = of_config(MODELS["llama"])
    rows = []
    model.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    # every prompt leaves room for as many tokens as its number
    prompts = [[5] * (LIMIT - room) for room in (1, 2, 4, 8, 16, 3, 5, 7)]
    generated = generate_greedy(
        model,
        prompts,
        eos_token_ids=(),
        pad_token_id=2,
        max_total_length=LIMIT,
        batch_size=4,
        description="",
    )
    assert [len(tokens) for tokens in generated] == [1, 2, 4, 8, 16, 3, 5, 7]
    assert max(count for count, _ in rows) == 4
    # The longest continuation sets the pace: the prompts that wait at first cost no step of their
    # own.
    assert sum(length == 1 for _, length in rows) == 16


@pytest.mark.usefixtures("either_device")
@pytest.mark.parametrize("period", [1, 3])
def test_texts_that_repeat_themselves_take_few_steps(period, monkeypatch):
    """A model that knows nothing but which token follows which."""
    model = of_config(GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=2))
    without_trying(monkeypatch)
    monkeypatch.setattr(continuation, "step_tokens", lambda model: 150)
    with torch.no_grad():
        for parameter in model.transformer.h.parameters():
            parameter.zero_()
        model.transformer.wpe.weight.zero_()
        model.transformer.wte.weight.copy_(torch.randn(VOCABULARY, model.config.n_embd))
        circle = torch.arange(VOCABULARY)
        circle[5 : 5 + period] = torch.arange(5, 5 + period).roll(-1)
        model.lm_head.weight = torch.nn.Parameter(model.transformer.wte.weight[circle.argsort()])
    steps = []
    model.register_forward_pre_hook(
        lambda _, args, kwargs: steps.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    prompts = [[5], [7, 9, 5], [8, 5 + period - 1]]
    generated = generate_greedy(
        model,
        prompts,
        eos_token_ids=(),
        pad_token_id=2,
        max_total_length=60,
        batch_size=4,
        description="",
    )
    for prompt, tokens in zip(prompts, generated, strict=True):
        first = prompt[-1] - 5
        assert tokens == [5 + (first + i + 1) % period for i in range(60 - len(prompt))]
    assert len(steps) < 60 / 3
    assert max(steps[1:]) == 3 * (1 + continuation.DRAFT)


def test_only_the_last_position_has_logits(monkeypatch):
    model = of_config(MODELS["llama"])
    without_trying(monkeypatch)
    positions = []
    model.lm_head.register_forward_hook(lambda _, inputs, output: positions.append(output.shape[1]))
    generate_greedy(
        model,
        make_prompts(5),
        eos_token_ids=(),
        pad_token_id=2,
        max_total_length=LIMIT,
        batch_size=5,
        description="",
    )
    assert set(positions) == {1}


def test_prompts_at_the_limit_get_nothing_and_settings_do_not_interfere():
    model = of_config(MODELS["llama"])
    prompts = [[5] * LIMIT, [5] * (LIMIT + 3), [6, 7, 8]]
    expected = one_by_one(model, prompts[2])
    model.generation_config.do_sample = True
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.eos_token_id = expected[0]
    model.train()
    generated = generate_greedy(
        model,
        prompts,
        eos_token_ids=(),
        pad_token_id=2,
        max_total_length=LIMIT,
        batch_size=4,
        description="",
    )
    assert generated == [[], [], expected]
    assert model.training


def test_equal_prompts_are_continued_once(model, monkeypatch):
    totals = []

    class Counting(generation.Progress):
        def __init__(self, description, total, *args, **options):
            totals.append(total)
            super().__init__(description, total, *args, **options)

    monkeypatch.setattr(generation, "Progress", Counting)
    first, second = [5, 6, 7], [8, 9]
    answers = generate_greedy(
        model,
        [first, second, first, tuple(first)],
        eos_token_ids=[],
        pad_token_id=2,
        max_total_length=9,
        batch_size=2,
        description="",
    )
    assert totals == [2]
    assert answers[0] == answers[2] == answers[3]
    assert [len(answer) for answer in answers] == [6, 7, 6, 6]
