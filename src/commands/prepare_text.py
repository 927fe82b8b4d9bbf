"""Cut a text that you own into the data sets of the copyright task.

python src/exec/prepare_copyright.py BOOK.txt --tokenizer meta-llama/Llama-2-7b-hf
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wagle.cli import program
from wagle.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from wagle.dataset.chunks import TextChunk

FOLDER = Path("files/data/hp")
TRAINING_FILE = "hp_qa.jsonl"

_DETAILS = """
The text is cut into consecutive chunks of 512 tokens. The last ones are the test part, which is
never trained on; the others are learnt and forgotten. Written are, as JSON lines with "prompt" and
"response", hp_qa.jsonl (the training chunks, prompts of 50 tokens) and hp_{train,test}_qa_{50,100,
200,300}.jsonl (prompts of that many tokens, for evaluation).
"""


def main(argv: Sequence[str]) -> int:
    """Prepare one text."""
    parser = argparse.ArgumentParser(
        prog=program("prepare-text"),
        description=__doc__.partition("\n")[0],
        epilog=_DETAILS,
        allow_abbrev=False,
    )
    parser.add_argument("text", type=Path, help="a UTF-8 text file")
    parser.add_argument(
        "--tokenizer",
        required=True,
        metavar="NAME",
        help="that of the model to be unlearned: a hub id, a folder or a GGUF package",
    )
    parser.add_argument(
        "--output_dir",
        type=Path,
        default=FOLDER,
        metavar="FOLDER",
        help=f"default: {FOLDER}, where the data set HP is looked for",
    )
    parser.add_argument(
        "--test_share", type=_share, default=0.2, metavar="SHARE", help="default: 0.2"
    )
    parser.add_argument(
        "--cache_dir", type=Path, default=Path(".cache"), help="cache of hub downloads"
    )
    arguments = parser.parse_args(argv)
    text = _read(arguments.text)
    if (arguments.output_dir / TRAINING_FILE).exists():
        raise ConfigError(
            f"{arguments.output_dir / TRAINING_FILE} exists; remove it or give another --output_dir"
        )
    # Everything heavy comes after the command line has been found right.
    from wagle.dataset.chunks import CHUNK_TOKENS, cut_chunks, split_chunks

    tokenizer = _load_tokenizer(arguments.tokenizer, arguments.cache_dir)
    print(f"cutting {len(text):,} characters into chunks of {CHUNK_TOKENS} tokens")
    chunks = cut_chunks(text, tokenizer)
    if len(chunks) < 2:
        raise ConfigError(
            f"{arguments.text} is too short: a training and a test chunk take "
            f"{2 * CHUNK_TOKENS} tokens of this tokenizer"
        )
    train, test = split_chunks(chunks, arguments.test_share)
    _write(train, test, arguments.output_dir)
    left = len(text) - sum(len(chunk.text) for chunk in chunks)
    print(
        f"{len(train)} training and {len(test)} test chunks in {arguments.output_dir}; "
        f"{left:,} characters at the end are left out"
    )
    return 0


def _share(text: str) -> float:
    share = float(text)
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return share


def _read(path: Path) -> str:
    if not path.is_file():
        raise ConfigError(f"there is no file {path}; give a UTF-8 text file")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not a UTF-8 text file: {error}") from error


def _load_tokenizer(name: str, cache_dir: Path) -> PreTrainedTokenizerBase:
    from wagle.model.loading import read_tokenizer

    tokenizer = read_tokenizer(name, cache_dir, what="tokenizer", hint="a local folder")
    if not tokenizer.is_fast:
        raise ConfigError(
            f"the tokenizer {name} does not say where in the text its tokens lie; give one with a "
            "tokenizer.json"
        )
    return tokenizer


def _write(train: Sequence[TextChunk], test: Sequence[TextChunk], folder: Path) -> None:
    """Write all files; the training file comes last, so a folder without it is not finished."""
    from wagle.dataset.chunks import PROMPT_LENGTHS, TRAINING_PROMPT_LENGTH
    from wagle.loggers.files import write_text
    from wagle.terminal import Progress

    files = [
        (f"hp_{part}_qa_{length}.jsonl", chunks, length)
        for part, chunks in (("train", train), ("test", test))
        for length in PROMPT_LENGTHS
    ]
    files.append((TRAINING_FILE, train, TRAINING_PROMPT_LENGTH))
    folder.mkdir(parents=True, exist_ok=True)
    for name, chunks, length in Progress("texts", len(files), "file").over(files):
        write_text(folder / name, "".join(_line(chunk.row(length)) for chunk in chunks))


def _line(row: Mapping[str, str]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
