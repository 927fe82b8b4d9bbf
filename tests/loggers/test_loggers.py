"""Run folders and Weights & Biases, the latter with the real package, offline."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import wandb
from matplotlib.figure import Figure
from wandb.proto import wandb_internal_pb2

from wagle.commands.results import make_logger
from wagle.config import load_config
from wagle.errors import ConfigError, WagleError
from wagle.loggers import JsonLogger, Logger
from wagle.loggers.files import write_figure, write_json
from wagle.loggers.wandb_logger import WandbLogger

CONFIG = {"overall": {"seed": 3}, "unlearn": {"lr": 1e-5}}
ROW = {"question": "Who?", "answer": "Ada", "generated": "Bob", "acc": 0.0, "loss": {"answer": 2.0}}
DOCUMENT = {"protocol": "corrected", "forget": {"acc": 0.0, "rows": [ROW, ROW]}}
RESULTS = {"method": "GA+FT", "mask": None, "UE Avg": 0.4}
FILES = {"config.json", "manifest.json", "log.json", "tofu.json", "results.json", "images"}


def read(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


def picture() -> Figure:
    figure = Figure(figsize=(1, 1))
    figure.subplots().plot([1, 2])
    return figure


def live(logger: Logger) -> None:
    """A run's life up to its end."""
    assert logger.start(CONFIG, "fingerprint") is None
    logger.log_step({"step": 2, "loss": 3.0, "epoch": 0.5})
    logger.log_step({"step": 4, "loss": 1.0, "epoch": 1.0})
    logger.save("tofu.json", DOCUMENT)
    logger.save_figure("training", picture())


@pytest.fixture
def offline(tmp_path, monkeypatch) -> Iterator[Path]:
    """Another working folder, and a proxy for every connection that counts as a failure."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        address = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        for name in ("HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy"):
            monkeypatch.setenv(name, address)
        yield tmp_path
        wandb.teardown()
        proxy.settimeout(0)
        with pytest.raises(BlockingIOError):
            proxy.accept()
    assert list((tmp_path / "elsewhere").iterdir()) == []


def wandb_records(folder: Path) -> list[wandb_internal_pb2.Record]:
    """What wandb wrote: protocol buffers in LevelDB's log format, after seven bytes of its own."""
    wandb.teardown()  # its service may hold the last records back until it stops
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    data, position, records, partial = path.read_bytes(), 7, [], b""
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:  # a block's last bytes, too few for a header
            position += 32768 - position % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        partial += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            records.append(wandb_internal_pb2.Record.FromString(partial))
            partial = b""
    return records


def history(records) -> list[dict]:
    """The values of each logged step."""
    return [
        {
            ".".join(item.nested_key) or item.key: json.loads(item.value_json)
            for item in r.history.item
        }
        for r in records
        if r.HasField("history")
    ]


def summary(records) -> dict:
    updates = [item for r in records if r.HasField("summary") for item in r.summary.update]
    return {".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in updates}


def test_wandb_keeps_the_run_folder_and_logs_the_same(offline):
    folder = offline / "runs" / "a"
    logger = WandbLogger(folder, project="forgetting", mode="offline")
    live(logger)
    logger.finish(RESULTS, {"device": "cpu"})

    assert {path.name for path in folder.iterdir()} == {*FILES, "wandb"}
    assert read(folder / "results.json") == RESULTS
    assert read(folder / "manifest.json")["status"] == "finished"
    assert {path.name for path in (folder / "images").iterdir()} == {"training.png", "training.pdf"}

    records = wandb_records(folder)
    run = next(r.run for r in records if r.HasField("run"))
    assert (run.project, run.display_name) == ("forgetting", "a")
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert {key: config[key] for key in CONFIG} == CONFIG
    steps = history(records)
    assert [(s["_step"], s["train/loss"]) for s in steps if "train/loss" in s] == [
        (2, 3.0),
        (4, 1.0),
    ]
    logged = {key: value for step in steps for key, value in step.items()}
    files = next(folder.glob("wandb/offline-run-*/files"))
    table = read(files / logged["tables/tofu.path"])
    assert table["columns"] == ["set", "question", "answer", "generated", "acc"]
    assert table["data"] == [["forget", "Who?", "Ada", "Bob", 0.0]] * 2
    image = files / logged["images/training.path"]
    assert image.read_bytes() == (folder / "images" / "training.png").read_bytes()
    final = summary(records)
    assert {key: final[key] for key in RESULTS} == RESULTS
    assert next(r.exit.exit_code for r in records if r.HasField("exit")) == 0


def test_a_run_that_fails_is_marked_failed_in_both(offline):
    folder = offline / "runs" / "a"
    logger = WandbLogger(folder, project="forgetting", mode="offline")
    live(logger)
    logger.fail(WagleError("no room"), {"device": "cpu"})
    assert read(folder / "manifest.json")["error"] == "WagleError: no room"
    assert not (folder / "results.json").exists()
    records = wandb_records(folder)
    assert next(r.exit.exit_code for r in records if r.HasField("exit")) == 1
    assert summary(records)["error"] == "WagleError('no room')"
    # the folder is free again, and another try begins with an empty one
    again = JsonLogger(folder)
    assert again.start(CONFIG, "fingerprint") is None
    assert not (folder / "wandb").exists()


def test_a_finished_run_opens_no_wandb_run(tmp_path, monkeypatch):
    for _ in range(2):
        first = JsonLogger(tmp_path / "a")
        if first.start(CONFIG, "fingerprint") is None:
            first.finish(RESULTS, {})
    monkeypatch.setattr(wandb, "init", lambda **_: pytest.fail("wandb.init was called"))
    logger = WandbLogger(tmp_path / "a", project="p", mode="offline")
    assert logger.start(CONFIG, "fingerprint") == RESULTS
    with pytest.raises(ConfigError, match="another configuration"):
        logger.start(CONFIG, "other")


def test_when_wandb_cannot_start_the_message_says_what_to_do(tmp_path, monkeypatch):
    def refuse(**_):
        raise wandb.errors.UsageError("No API key configured.")

    monkeypatch.setattr(wandb, "init", refuse)
    logger = WandbLogger(tmp_path / "a", project="p", mode="online")
    with pytest.raises(WagleError, match=r"(?s)No API key.*--logger.wandb.mode offline"):
        logger.start(CONFIG, "fingerprint")
    assert read(tmp_path / "a" / "manifest.json")["status"] == "failed"
    assert JsonLogger(tmp_path / "a").start(CONFIG, "fingerprint") is None  # not locked


def test_what_happens_to_wandb_afterwards_does_not_undo_a_finished_run(offline, capsys):
    logger = WandbLogger(offline / "runs" / "a", project="forgetting", mode="offline")
    live(logger)
    run, logger._run = logger._run, None  # as a connection that breaks
    logger.finish(RESULTS, {})
    assert "has not got everything" in capsys.readouterr().err
    logger.fail(KeyboardInterrupt(), {})
    assert read(logger.folder / "manifest.json")["status"] == "finished"
    run.finish()


def test_json_and_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    live(Logger())
    Logger().finish(RESULTS, {})
    assert list(tmp_path.iterdir()) == []
    logger = JsonLogger(tmp_path / "a")
    live(logger)
    logger.finish(RESULTS, {})
    assert {path.name for path in (tmp_path / "a").iterdir()} == FILES
    assert [entry["loss"] for entry in read(tmp_path / "a" / "log.json")] == [3.0, 1.0]


@pytest.mark.parametrize(
    ("kind", "expected"), [("none", Logger), ("json", JsonLogger), ("wandb", WandbLogger)]
)
def test_the_configuration_names_the_logger(tmp_path, kind, expected):
    options = ["--overall.model_name", "m", "--overall.logger", kind, "--logger.name", "a"]
    options += ["--logger.json.root", str(tmp_path)]
    logger = make_logger(load_config(options, prog="p", description="d"))
    assert type(logger) is expected
    assert logger.folder == (None if kind == "none" else tmp_path / "a")


def test_files_are_complete_or_not_there(tmp_path):
    write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(ValueError, match="Out of range"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert read(tmp_path / "a.json") == {"x": 1}

    class Broken(Figure):
        def savefig(self, path, **options):
            Path(path).write_bytes(b"half")
            raise OSError("disk full")

    with pytest.raises(WagleError, match=r"b\.png cannot be written: disk full"):
        write_figure(tmp_path / "b", Broken())
    assert not (tmp_path / "b.png").exists()


@pytest.mark.parametrize("name", ["tofu_0.8", "tofu_0.8.png", "tofu_0.8.pdf"])
def test_figures_are_written_in_both_formats(tmp_path, name):
    paths = write_figure(tmp_path / "new" / name, picture())
    assert [path.name for path in paths] == ["tofu_0.8.png", "tofu_0.8.pdf"]
    png, pdf = (path.read_bytes() for path in paths)
    assert png.startswith(b"\x89PNG")
    assert struct.unpack(">II", png[16:24]) == (300, 300)  # an inch at 300 dots per inch
    assert b"/Type0" in pdf  # TrueType fonts, embedded
    assert b"/FontFile2" in pdf
    assert b"/Type3" not in pdf
