"""Templates, labels, pairing, refusals, sources."""

from __future__ import annotations

import json
import random

import datasets
import pytest
import torch
from torch.utils.data import DataLoader

from wagle.dataset.columns import each_row
from wagle.dataset.encoding import IGNORED, Encoded, encode_answer, encode_text, pad_batch
from wagle.dataset.pairing import (
    FORGET,
    MISMATCHED,
    REFUSAL,
    RETAIN,
    PairCollator,
    UnlearnDataset,
    count_shared,
    draw_forget_rows,
)
from wagle.dataset.sources import load_rows
from wagle.dataset.templates import TEMPLATES, Template
from wagle.errors import ConfigError, WagleError
from wagle.shipped import CHECKOUT

OFFICIAL = CHECKOUT.parent / "shared" / "data"
LLAMA = TEMPLATES["llama2_published"]


def test_rows_in_both_sets_are_counted_by_their_questions():
    forget = [{"question": q, "answer": "a"} for q in ("1", "2", "2", "3")]
    retain = [{"question": q, "answer": "b"} for q in ("2", "4", "3", "3")]
    assert count_shared(forget, retain) == 3
    assert count_shared(forget, retain[1:2]) == 0
    assert count_shared(forget, [{"text": "2"}]) == 0


def test_published_template_spells_its_backslash():
    assert LLAMA.question("Who?") + LLAMA.answer_start + "Me." == r"[INST] Who? [\INST] Me."


def test_only_the_answer_part_is_labelled(tokenizer):
    encoded = encode_answer(tokenizer, LLAMA, "Who?", "Me.", max_length=64, eos=True)
    assert tokenizer.decode(encoded.input_ids) == r"<s>[INST] Who? [\INST] Me.</s>"
    question = tokenizer(LLAMA.question("Who?")).input_ids
    assert encoded.labels[: len(question)] == [IGNORED] * len(question)
    assert encoded.labels[len(question) :] == encoded.input_ids[len(question) :]
    assert tokenizer.decode(encoded.labels[len(question) :]) == " Me.</s>"


def test_eos_only_where_there_is_room(tokenizer):
    whole = encode_answer(tokenizer, LLAMA, "Who?", "Me.", max_length=64, eos=True)
    cut = encode_answer(
        tokenizer, LLAMA, "Who?", "Me.", max_length=len(whole.input_ids) - 1, eos=True
    )
    assert cut.input_ids == whole.input_ids[:-1]
    with pytest.raises(WagleError, match="leaves none for its answer"):
        encode_answer(tokenizer, LLAMA, "Who? " * 50, "Me.", max_length=32, eos=True)


def test_running_text_is_labelled_throughout(tokenizer):
    encoded = encode_text(tokenizer, "The sea and its weather.", max_length=5)
    assert encoded.labels == encoded.input_ids
    assert len(encoded.input_ids) == 5


def test_padding_reaches_the_longest_row_only():
    batch = pad_batch([Encoded([5, 6, 7], [IGNORED, 6, 7]), Encoded([8], [8])], pad_token_id=2)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 2, 2]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[IGNORED, 6, 7], [8, IGNORED, IGNORED]]
    assert batch["real"].tolist() == [0, 1, 2, 3]
    assert batch["predicted"].tolist() == [0, 1]


def test_forget_rows_are_drawn_as_published():
    random.seed(1000)
    assert draw_forget_rows(400, 40, seed=1000) == random.sample(range(400), 40)
    assert len(draw_forget_rows(400, 0.25, seed=0)) == 100
    assert sorted(draw_forget_rows(7, 1.0, seed=0)) == list(range(7))
    for ratio in (500, 0.001):
        with pytest.raises(ConfigError, match="forget_ratio"):
            draw_forget_rows(400, ratio, seed=0)


def make_dataset(tokenizer, views=(FORGET, RETAIN), rows=6, seed=0) -> UnlearnDataset:
    def encode(row):
        return encode_answer(
            tokenizer, LLAMA, row["question"], row["answer"], max_length=64, eos=True
        )

    def encode_refusal(row, refusal):
        return encode_answer(tokenizer, LLAMA, row["question"], refusal, max_length=64, eos=True)

    return UnlearnDataset(
        [{"question": f"Forget {i}?", "answer": f"F{i}."} for i in range(rows)],
        [{"question": f"Retain {i}?", "answer": f"R{i}."} for i in range(50)],
        encode_forget=encode,
        encode_retain=encode,
        encode_refusal=encode_refusal,
        refusals=["No.", "I cannot say.", "Not known to me."],
        views=views,
        seed=seed,
    )


def texts(tokenizer, batch, view):
    return tokenizer.batch_decode(batch[view]["input_ids"], skip_special_tokens=True)


def test_views_of_an_item(tokenizer):
    dataset = make_dataset(tokenizer, views=(FORGET, RETAIN, REFUSAL, MISMATCHED))
    item = dataset[(0, 2)].views
    decoded = {view: tokenizer.decode(item[view].input_ids[1:-1]) for view in dataset.views}
    question = r"[INST] Forget 2? [\INST]"
    assert decoded[FORGET] == f"{question} F2."
    assert decoded[REFUSAL] == f"{question} {dataset.refusals[2]}"
    retain_answer = decoded[RETAIN].partition(r"[\INST]")[2]
    assert decoded[MISMATCHED] == question + retain_answer
    prompt = sum(label == IGNORED for label in item[FORGET].labels)
    assert item[MISMATCHED].labels[:prompt] == [IGNORED] * prompt
    assert IGNORED not in item[MISMATCHED].labels[prompt:]


def test_pairing_is_a_function_of_seed_epoch_and_index(tokenizer):
    def partners(seed, epoch):
        dataset = make_dataset(tokenizer, seed=seed)
        return [dataset[(epoch, i)].views[RETAIN].input_ids for i in range(len(dataset))]

    assert partners(0, 0) == partners(0, 0)
    assert partners(0, 0) != partners(0, 1)
    assert partners(0, 0) != partners(1, 0)


@pytest.mark.parametrize("workers", [1, 2])
def test_loader_workers_do_not_change_batches(tokenizer, workers):
    def batches(workers):
        dataset = make_dataset(tokenizer)
        for epoch in range(2):
            loader = DataLoader(
                dataset,
                batch_size=4,
                sampler=dataset.order(epoch),
                num_workers=workers,
                collate_fn=PairCollator(dataset, tokenizer.pad_token_id),
            )
            for batch in loader:
                yield texts(tokenizer, batch, FORGET), texts(tokenizer, batch, RETAIN)

    plain = list(batches(0))
    assert list(batches(workers)) == plain
    first_epoch = {text for forget, _ in plain[:2] for text in forget}
    assert len(first_epoch) == 6


def test_reference_losses_travel_with_their_rows(tokenizer):
    dataset = make_dataset(tokenizer)
    dataset.reference_losses[FORGET] = torch.arange(6, dtype=torch.float32)
    batch = PairCollator(dataset, 2)([dataset[(0, 4)], dataset[(0, 1)]])
    assert batch[FORGET]["reference_loss"].tolist() == [4.0, 1.0]
    assert "reference_loss" not in batch[RETAIN]


def test_local_files(tmp_path):
    folder = tmp_path / "TOFU"
    folder.mkdir()
    rows = [{"question": "Who?", "answer": "Me."}, {"question": "Why?", "answer": "So."}]
    (folder / "forget10.json").write_text("\n".join(json.dumps(row) for row in rows))
    loaded = load_rows("Tofu_forget10", data_dir=tmp_path, cache_dir=tmp_path / "cache")
    assert list(loaded) == rows
    with pytest.raises(WagleError, match=r"no data file .*forget05.json"):
        load_rows("Tofu_forget05", data_dir=tmp_path, cache_dir=tmp_path / "cache")
    (folder / "forget05.json").write_text("this is not JSON")
    with pytest.raises(WagleError, match=r"forget05.json cannot be read as JSON lines"):
        load_rows("Tofu_forget05", data_dir=tmp_path, cache_dir=tmp_path / "cache")


@pytest.mark.skipif(
    not OFFICIAL.is_dir(), reason="the official TOFU data is not beside the project"
)
def test_official_tofu_files(tmp_path):
    expected = {"forget10": 400, "retain90": 3600, "full": 4000, "forget05_perturbed": 200}
    for subset, count in expected.items():
        rows = load_rows(f"Tofu_{subset}", data_dir=OFFICIAL, cache_dir=tmp_path)
        assert len(rows) == count
        assert {"question", "answer"} <= set(rows.column_names)


def test_hub_out_of_reach_names_both_ways_out(tmp_path):
    with pytest.raises(WagleError, match=r"hub cannot be reached.*--dataset\.data_dir"):
        load_rows("Tofu_forget10", data_dir=None, cache_dir=tmp_path)


def test_an_empty_answer_is_not_a_question_that_is_too_long(tokenizer):
    plain = Template("plain", "", "", "")
    with pytest.raises(WagleError, match="the answer '' to 'Who\\?' has no tokens"):
        encode_answer(tokenizer, plain, "Who?", "", max_length=64, eos=False)
    with pytest.raises(WagleError, match="the question fills all 8 tokens"):
        encode_answer(tokenizer, plain, "Who? " * 9, "Me.", max_length=8, eos=True)


def test_rows_come_in_order_however_many():
    rows = [{"question": f"{n}?", "others": [str(n)] * (n % 3)} for n in range(2001)]
    assert list(each_row(datasets.Dataset.from_list(rows))) == rows
    assert list(each_row(rows)) == rows
