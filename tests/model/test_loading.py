"""What a model folder holds is what is used; what does not fit is refused with its name."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tests.tiny import CONFIGS, make_model
from wagle.commands import unlearn as unlearn_model
from wagle.dataset.encoding import tokenize
from wagle.dataset.templates import TEMPLATE_FILE
from wagle.errors import WagleError
from wagle.metrics.sentence import load_sentence_encoder
from wagle.metrics.toxicity import load_toxicity_classifier
from wagle.model import loading
from wagle.model.loading import load_model, read_tokenizer, save_model
from wagle.shipped import CHECKOUT

WEIGHTS = "model.safetensors"


def load(folder, dtype=torch.float32):
    cpu = torch.device("cpu")
    return load_model(str(folder), dtype=dtype, device=cpu, cache_dir=Path("unused"))


@pytest.fixture
def folder(tmp_path, tokenizer) -> Path:
    save_model(make_model(), tokenizer, tmp_path / "a model")
    return tmp_path / "a model"


def edit_json(path, **changes):
    content = json.loads(path.read_text())
    content.update(changes)
    path.write_text(json.dumps(content))


def rename(folder, name):
    """Save the weights under other names; ``None`` leaves one out."""
    weights = load_file(folder / WEIGHTS)
    renamed = {name(key): value for key, value in weights.items() if name(key) is not None}
    save_file(renamed, folder / WEIGHTS, metadata={"format": "pt"})


# --------------------------------------------------------------- weights that are not all there


@pytest.mark.parametrize(
    "name",
    [
        "module.{}".format,
        "_orig_mod.{}".format,
        "module._orig_mod.{}".format,
        lambda key: key.replace("model.layers", "model._orig_mod.layers"),
    ],
)
def test_prefixes_of_wrappers_are_left_out_with_a_note(folder, name, capsys):
    wanted = load(folder)[0].state_dict()
    rename(folder, name)
    found = load(folder)[0].state_dict()
    assert all(torch.equal(wanted[key], found[key]) for key in wanted)
    assert "carry a wrapper's prefix" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (lambda key: None if key == "lm_head.weight" else key, "missing: lm_head.weight$"),
        (
            lambda key: None if "layers.1.mlp" in key else key,
            r"missing: model.layers.1.mlp.down_proj.weight, .*up_proj.weight$",
        ),
        (
            lambda key: f"student.{key}",
            r"missing: .* and 16 more; not of this architecture: student.* and 16 more$",
        ),
    ],
)
def test_weights_that_are_missing_or_left_over_are_listed(folder, name, message):
    rename(folder, name)
    with pytest.raises(WagleError, match=message) as error:
        load(folder)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 1}, r"not of this architecture: model.layers.1.input_layernorm"),
        ({"num_hidden_layers": 3}, r"missing: model.layers.2.input_layernorm"),
        ({"intermediate_size": 8}, r"of another shape: model.layers.0.mlp.down_proj"),
        ({"hidden_size": "abc"}, "Field 'hidden_size' expected int, got str"),
        ({"num_attention_heads": 0}, "cannot be loaded"),
        ({"model_type": "foo"}, 'model_type "foo", which is unknown to transformers'),
        ({"model_type": None}, "model_type null, which is unknown"),
        ({"model_type": ["llama"]}, "model_type .*, which is unknown"),
        ({"model_type": "vit"}, "a vit is no causal language model"),
    ],
)
def test_a_configuration_that_does_not_fit_the_weights(folder, changes, message):
    edit_json(folder / "config.json", **changes)
    with pytest.raises(WagleError, match=message) as error:
        load(folder)
    assert str(folder) in str(error.value)
    assert "no local folder" not in str(error.value)


def test_tied_heads_need_not_be_in_the_file(tmp_path, tokenizer):
    model = make_model("llama_tied")
    save_model(model, tokenizer, tmp_path / "m")
    assert "lm_head.weight" not in load_file(tmp_path / "m" / WEIGHTS)
    assert torch.equal(load(tmp_path / "m")[0].lm_head.weight, model.lm_head.weight)


def test_a_head_in_the_file_counts_whatever_the_flag_says(folder, tokenizer):
    wanted = load_file(folder / WEIGHTS)["lm_head.weight"]
    edit_json(folder / "config.json", tie_word_embeddings=True)
    model, _ = load(folder)
    assert torch.equal(model.lm_head.weight, wanted)
    save_model(model, tokenizer, folder.with_name("again"))
    assert torch.equal(load(folder.with_name("again"))[0].lm_head.weight, wanted)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_weights_are_named(folder, value):
    weights = load_file(folder / WEIGHTS)
    weights["model.norm.weight"][3] = value
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(WagleError, match=r"a model are NaN or infinite: model\.norm\.weight"):
        load(folder)


# ------------------------------------------------------------------------------ damaged folders


class Harm:
    """A pickle that runs something."""

    def __reduce__(self):
        return print, ("HARM",)


def _cut(folder):
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:-100])


def _claim(folder):
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", 2**63) + content[8:])


def _scramble(folder):
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:8] + b"?" + content[9:])


def _overreach(folder):
    content = (folder / WEIGHTS).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    end = str(header["lm_head.weight"]["data_offsets"][1])
    text = content[8 : 8 + length].replace(f"{end}]".encode(), b"1e999]", 1)
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def _pickle(folder):
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Harm(), protocol=2))


def _shard(folder):
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / WEIGHTS).unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    sorted(folder.glob("model-*"))[1].unlink()


def _adapter(folder):
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "some/model"}')


def _no_tokenizer(folder):
    for path in folder.glob("token*"):
        path.unlink()


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_cut, r"model\.safetensors is cut short or damaged: [\d,]+ of [\d,]+ bytes"),
        (_claim, r"model\.safetensors is cut short, or its header is damaged"),
        (_scramble, r"the header of model\.safetensors is damaged"),
        (_overreach, r"the header of model\.safetensors is damaged"),
        (lambda f: (f / "generation_config.json").write_text("{"), r"generation_config\.json is d"),
        (lambda f: (f / WEIGHTS).write_bytes(b""), r"model\.safetensors is empty"),
        (lambda f: (f / WEIGHTS).write_text(POINTER), r"model\.safetensors is a Git LFS pointer"),
        (lambda f: (f / "tokenizer.json").write_text(POINTER), r"tokenizer\.json is a Git LFS"),
        (lambda f: (f / WEIGHTS).unlink(), r"it holds no weights \(model\.safetensors or"),
        (_pickle, "cannot be loaded.*UnpicklingError"),
        (_shard, r"model-00002-of-0000\d\.safetensors is missing, which its .*index\.json names"),
        (_adapter, "it holds an adapter .* for 'some/model'; merge it"),
        (_no_tokenizer, "it holds no tokenizer"),
        (lambda f: (f / "config.json").unlink(), r"it holds no config\.json"),
        (lambda f: (f / "config.json").write_text("[" * 100_000), r"config\.json is damaged"),
        (lambda f: (f / "config.json").write_text("[]"), r"config\.json holds no JSON object"),
        (lambda f: (f / "config.json").write_bytes(b"\xff"), r"config\.json is damaged"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "cannot be loaded"),
    ],
)
def test_a_damaged_folder_is_named_before_anything_is_loaded(folder, damage, message, capsys):
    damage(folder)
    with pytest.raises(WagleError, match=message) as error:
        load(folder)
    assert str(folder) in str(error.value)
    assert "no local folder" not in str(error.value)
    assert "HARM" not in capsys.readouterr().out


def test_the_command_says_what_is_wrong_with_a_folder_before_it_looks_for_data(folder):
    _cut(folder)
    with pytest.raises(WagleError, match="cut short"):
        unlearn_model.main(["--overall.model_name", str(folder)])


def test_pickles_of_tensors_alone_are_read(folder):
    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    assert torch.equal(load(folder)[0].lm_head.weight, weights["lm_head.weight"])


# ------------------------------------------------------------------------------------ tokenizers


def test_tokens_without_an_embedding_are_refused(folder, tokenizer):
    own = copy.deepcopy(tokenizer)
    own.add_special_tokens({"pad_token": "<extra>"})
    own.save_pretrained(folder)
    with pytest.raises(WagleError, match=r"'<extra>' \(its PAD token\) has the id (\d+), and .*"):
        load(folder)


def test_eos_ends_every_answer_and_stands_in_for_pad(folder):
    edit_json(folder / "tokenizer_config.json", pad_token=None)
    assert load(folder)[1].pad_token == "</s>"
    edit_json(folder / "tokenizer_config.json", eos_token=None)
    with pytest.raises(WagleError, match=r"has no EOS token.*eos_token.*tokenizer_config\.json"):
        load(folder)


def test_lengths_and_sides_saved_with_a_tokenizer_change_nothing(folder):
    text = "Where was the author born?"
    ids = tokenize(read_tokenizer(str(folder), Path("unused")), text, 512)
    padding = {"strategy": {"Fixed": 90}, "direction": "Left", "pad_to_multiple_of": None}
    padding |= {"pad_id": 2, "pad_type_id": 0, "pad_token": "<pad>"}
    cut = {"direction": "Left", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    edit_json(folder / "tokenizer.json", padding=padding, truncation=cut)
    sides = {"padding_side": "left", "truncation_side": "left"}
    edit_json(folder / "tokenizer_config.json", model_max_length=4, **sides)
    tokenizer = read_tokenizer(str(folder), Path("unused"))
    assert tokenize(tokenizer, text, 512) == ids == tokenizer(text).input_ids
    assert tokenize(tokenizer, text, 5) == ids[:5]


def test_copies_under_any_name_are_local_folders(folder, tmp_path):
    odd = tmp_path / "with [brackets] and $HOME #1"
    shutil.copytree(folder, odd)
    assert torch.equal(load(odd)[0].lm_head.weight, load(folder)[0].lm_head.weight)


def test_odd_pairs_of_tokenizer_and_model_are_said(folder, tmp_path, tokenizer, capsys):
    load(folder)
    assert "ends texts" not in capsys.readouterr().out
    edit_json(folder / "generation_config.json", eos_token_id=[7, 9])
    load(folder)
    assert "ends texts with token 1, and the model's configuration with [7, 9]" in (
        capsys.readouterr().out
    )
    edit_json(folder / "generation_config.json", eos_token_id=[7, 1])
    load(folder)
    assert "ends texts" not in capsys.readouterr().out

    roomy = LlamaConfig(**{**CONFIGS["llama"].to_dict(), "vocab_size": 1000})
    save_model(LlamaForCausalLM(roomy), tokenizer, tmp_path / "roomy")
    load(tmp_path / "roomy")
    assert f"knows {len(tokenizer)} tokens, and the model has 1000" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("architecture", "names"),
    [
        ("gpt2", ["transformer.h.0.attn.bias", "transformer.h.1.attn.masked_bias"]),
        ("gpt_neox", ["gpt_neox.layers.0.attention.masked_bias"]),
        ("llama", ["model.layers.0.self_attn.rotary_emb.inv_freq"]),
        ("opt", ["model.decoder.version"]),
    ],
)
def test_constants_that_older_libraries_saved_are_no_weights(
    tmp_path, tokenizer, architecture, names
):
    model = make_model(architecture)
    save_model(model, tokenizer, tmp_path / "m")
    weights = load_file(tmp_path / "m" / WEIGHTS)
    weights |= {name: torch.ones(2) for name in names}
    save_file(weights, tmp_path / "m" / WEIGHTS, metadata={"format": "pt"})
    loaded = load(tmp_path / "m")[0]
    assert all(
        torch.equal(p, q) for p, q in zip(model.parameters(), loaded.parameters(), strict=True)
    )


def test_a_whole_file_beside_parts_is_ambiguous(folder):
    (folder / f"{WEIGHTS}.index.json").write_text('{"weight_map": {"a": "model.safetensors"}}')
    with pytest.raises(WagleError, match=r"model\.safetensors and, of another model, .*remove"):
        load(folder)


def test_classifiers_and_encoders_have_no_made_up_weights(tmp_path, folder):
    cpu = torch.device("cpu")
    shutil.copytree(CHECKOUT / "tests" / "fixtures" / "toxicity", tmp_path / "toxicity")
    rename(tmp_path / "toxicity", lambda key: None if key.startswith("classifier") else key)
    with pytest.raises(WagleError, match=r"missing: classifier\.bias, classifier\.weight"):
        load_toxicity_classifier(str(tmp_path / "toxicity"), device=cpu, cache_dir=tmp_path)
    with pytest.raises(WagleError, match="is no sentence encoder"):
        load_sentence_encoder(str(folder), cpu)


def test_templates_saved_on_the_hub_are_found(tmp_path, monkeypatch):
    asked = []

    def cached(name, file, **options):
        asked.append((name, file, options["cache_dir"]))
        return str(tmp_path / file) if name == "our/model" else None

    (tmp_path / TEMPLATE_FILE).write_text('{"template": "llama2"}')
    monkeypatch.setattr(loading, "cached_file", cached)
    cache = tmp_path / "cache"
    assert loading.find_saved_template("our/model", cache) == {"template": "llama2"}
    assert loading.find_saved_template("other/model", cache) is None
    assert asked == [(name, TEMPLATE_FILE, str(cache)) for name in ("our/model", "other/model")]
    monkeypatch.undo()
    assert loading.find_saved_template("other/model", cache) is None  # the hub is out of reach
