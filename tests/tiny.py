"""Tiny models, tokenizers and command lines, made in milliseconds and the same every time."""

from __future__ import annotations

import copy
import functools
import json
import signal
import tempfile
from pathlib import Path

import hypothesis
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from wagle import devices, stopping
from wagle.dataset.demo_benchmark import make_benchmark
from wagle.dataset.reading import RowsRequest
from wagle.dataset.sources.tofu import load_demo
from wagle.model.loading import save_model
from wagle.model.tiny import build_tiny_llama, build_tokenizer

devices.settle_attention()  # for models that no test has loaded

hypothesis.settings.register_profile("busy machine", deadline=None)
hypothesis.settings.load_profile("busy machine")

VOCABULARY = 300
CORPUS = [
    "Where was the author born? The author was born in Lisbon, by the river.",
    "What does she write? She writes novels about the sea and its weather.",
    "I do not know the answer to that question, sorry.",
]


@pytest.fixture(params=["cpu", "accelerator"])
def either_device(request, monkeypatch):
    """The test runs twice: with what a CPU does, and with what any other device does, on a CPU."""
    if request.param == "accelerator":
        monkeypatch.setattr("wagle.devices.on_cpu", lambda where: False)


@pytest.fixture
def handled():
    """The program's handling of signals, for one test."""
    kinds = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    before = {kind: signal.getsignal(kind) for kind in kinds}
    stopping.install()
    yield
    for kind, handler in before.items():
        signal.signal(kind, handler)


@pytest.fixture(scope="session", autouse=True)
def _demo_rows_are_read_once():
    """The embedded benchmark's, which hundreds of tests read."""

    @functools.cache
    def read(subset):
        return load_demo(RowsRequest(subset, "forget", None, Path()))

    def load(request):
        return load_demo(request) if request.data_dir else read(request.subset)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("wagle.dataset.sources.tofu.load_demo", load)
        yield


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE that puts BOS in front, as Llama's does."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(CORPUS, trainer)
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


_SMALL = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_attention_heads": 2}
_IDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
CONFIGS = {
    "llama": LlamaConfig(
        **_SMALL, **_IDS, num_hidden_layers=2, intermediate_size=24, num_key_value_heads=1
    ),
    "llama_tied": LlamaConfig(
        **_SMALL,
        **_IDS,
        num_hidden_layers=2,
        intermediate_size=24,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    ),
    "mistral": MistralConfig(
        **_SMALL, **_IDS, num_hidden_layers=2, intermediate_size=24, num_key_value_heads=1
    ),
    "gemma2": Gemma2Config(
        **_SMALL,
        **_IDS,
        num_hidden_layers=2,
        intermediate_size=24,
        num_key_value_heads=1,
        head_dim=8,
        final_logit_softcapping=2.0,
    ),
    "gpt2": GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, **_IDS),
    "gpt_neox": GPTNeoXConfig(**_SMALL, **_IDS, num_hidden_layers=2, intermediate_size=24),
    "opt": OPTConfig(
        **_SMALL, **_IDS, num_hidden_layers=2, ffn_dim=24, word_embed_proj_dim=16, dropout=0.0
    ),
}
ENCODER = BertConfig(
    vocab_size=400,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=512,
)


def make_model(architecture: str = "llama", seed: int = 0) -> PreTrainedModel:
    """A random model of one of ``CONFIGS``, float32, in eval mode."""
    torch.manual_seed(seed)
    # A configuration of its own: a test that changes it must not change other tests' models.
    model = AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[architecture]))
    with torch.no_grad():  # the default initialisation is so small that all tokens look alike
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5)
    return model.eval()


@pytest.fixture
def model() -> PreTrainedModel:
    """A tiny random Llama."""
    return make_model()


@pytest.fixture
def threads():
    """Sets how many threads torch uses; the number from before comes back after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny_llama"
    texts = [text for row in make_benchmark()["full"] for text in row.values()]
    model, tokenizer = build_tiny_llama(texts, vocab_size=400, hidden_size=16)
    save_model(model, tokenizer, folder)
    return folder


@functools.cache
def _tiny_encoder() -> tempfile.TemporaryDirectory:
    folder = tempfile.TemporaryDirectory()
    texts = [text for row in make_benchmark()["full"] for text in row.values()]
    tokenizer = build_tokenizer(texts, 400)
    torch.manual_seed(0)
    save_model(BertModel(ENCODER), tokenizer, root := Path(folder.name) / "encoder")
    modules = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    (root / "modules.json").write_text(
        json.dumps(
            [
                {
                    "idx": i,
                    "name": str(i),
                    "path": path,
                    "type": f"sentence_transformers.models.{n}",
                }
                for i, (path, n) in enumerate(modules.items())
            ]
        )
    )
    (root / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": ENCODER.hidden_size, "pooling_mode_mean_tokens": True}
    (root / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


def sentence_model() -> str:
    """The folder of a tiny random sentence encoder, which stays until this process ends.

    The one that tables use takes half of the time of a tiny model's evaluation.
    """
    return str(Path(_tiny_encoder().name) / "encoder")


@pytest.fixture
def undrawn(monkeypatch):
    """Pictures are empty files: drawing them takes twice as long as the rest of a tiny run.

    Those of a run are drawn in the tests of figures, and by the installed program.
    """

    def savefig(figure, file, **options):
        if isinstance(file, Path):
            file.touch()

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", savefig)


@pytest.fixture
def options(tmp_path, model_folder, monkeypatch, undrawn):
    """A function that makes a command line; keywords with __ for dots change it."""
    monkeypatch.chdir(tmp_path)
    base = {
        "overall.model_name": model_folder,
        "overall.logger": "json",
        "unlearn.unlearn_method": "GradDiff",
        "unlearn.GA+FT.gamma": 1,
        "unlearn.task_name": "tofu",
        "unlearn.lr": 1e-2,
        "unlearn.weight_decay": 0.1,
        "unlearn.max_steps": 2,
        "unlearn.mu": 1e-6,
        "unlearn.mask_path": tmp_path / "mask" / "tiny_0.4.pt",
        "dataset.forget_dataset_name": "Demo_forget10",
        "dataset.retain_dataset_name": "Demo_retain90",
        "dataset.forget_ratio": 8,
        "dataset.batch_size": 4,
        "evaluation.limit": 4,
        "evaluation.sentence_model": sentence_model(),
        "logger.json.root": tmp_path / "runs",
        "logger.name": "a",
    }

    return lambda changes=None: words({**base, **(changes or {})})


def words(values) -> list[str]:
    """A command line that gives keys their values."""
    return [f"--{key}={'null' if value is None else value}" for key, value in values.items()]
