"""Output: nothing that happens to it decides over a run, and nothing in it commands a terminal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from wagle import terminal
from wagle.shipped import CHECKOUT as ROOT
from wagle.terminal import Progress, plain, say, say_phase

PROGRAM = """
import sys
from wagle.cli import run_main
def main(argv):
    {}
run_main(main, sys.argv[1:])
"""


def command(body: str) -> list[str]:
    return [sys.executable, "-c", PROGRAM.format(body.replace("\n", "\n    "))]


def run(body: str, **options) -> subprocess.CompletedProcess:
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run(command(body), cwd=ROOT, text=True, check=False, **options)


def shell(body: str, redirection: str, tmp_path) -> int:
    """The exit status with the streams as a shell redirects them."""
    (tmp_path / "program.py").write_text(PROGRAM.format(body.replace("\n", "\n    ")))
    line = f'"{sys.executable}" "{tmp_path}/program.py" {redirection}'
    return subprocess.run(["bash", "-c", line], check=False).returncode


WORK = """
from pathlib import Path
from wagle.terminal import Progress, say
from wagle.shipped import CHECKOUT as ROOT
from rich.console import Console
for n in Progress("work", 3).over(range(3)):
    print("x" * 9999)
    say("line")
    print("y" * 9999, file=sys.stderr)
    Console().print("table")
open("WHERE", "w").write("done")
return 0
"""


@pytest.mark.parametrize(
    "redirection",
    ["| true", ">&-", "2>&-", ">&- 2>&- <&-", ">/dev/full", "2>/dev/full", ">/dev/full 2>&1"],
)
def test_output_never_decides_over_a_run(redirection, tmp_path):
    if "full" in redirection and not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    result = tmp_path / "result"
    status = shell(WORK.replace("WHERE", str(result)), f"{redirection}", tmp_path)
    assert status == 0
    assert result.read_text() == "done"  # and nothing that was printed went into the file


def test_what_a_stream_cannot_encode_is_escaped():
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = run("print(chr(0x3C1), chr(0xD800))\nreturn 0", env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, r"\u03c1 \ud800" + "\n", "")


def test_a_reader_that_has_seen_enough_is_no_error():
    body = "for _ in range(10**5):\n    print('x' * 99)\nreturn 0"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command(body), cwd=ROOT, **pipes) as process:
        assert process.stdout.readline() == "x" * 99 + "\n"
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        *((signal.SIGINT, 130), (signal.SIGTERM, 143)),
        *((signal.SIGHUP, 129), (signal.SIGUSR1, 138)),
    ],
)
def test_signals_end_a_program_in_order(kind, status):
    body = "import time\ntry:\n    print('ready', flush=True); time.sleep(60)\n"
    body += "finally:\n    print('closed')"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command(body), cwd=ROOT, **pipes) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(kind)
        output, errors = process.communicate()
    assert (process.returncode, output) == (status, "closed\n")
    assert errors.startswith("interrupted")
    assert "Traceback" not in errors


def test_errors_of_the_machine_are_messages_and_mistakes_keep_their_traceback():
    full = run("import errno\nraise OSError(errno.ENOSPC, 'No space left on device', 'a/b')")
    assert (full.returncode, full.stderr) == (1, "error: a/b: No space left on device\n")
    mistake = run("raise KeyError('x')")
    assert mistake.returncode == 1
    assert "Traceback" in mistake.stderr
    colours = run("from wagle.errors import WagleError\nraise WagleError('a\x1b[31mb')")
    assert colours.stderr == "error: a\\x1b[31mb\n"


def test_text_commands_no_terminal(capsys):
    assert plain("a\x1b[2J\r\u202eb\x9b\ud800\t\n") == r"a\x1b[2J\r\u202eb\x9b\ud800" + "\t\n"
    assert plain("ρ = ½ 中文 🙂") == "ρ = ½ 中文 🙂"
    say("[red]x[/red]\x1b[0m")
    assert capsys.readouterr().out == "[red]x[/red]\\x1b[0m\n"


def test_a_log_file_has_lines_now_and_then(capsys, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(terminal, "_last_line", now[0])
    say_phase("training")
    with Progress("training", 100, "step") as progress:
        for step in range(100):
            now[0] += 1
            progress.update(loss=2.0 / (step + 1))
    with Progress("quick work", 3) as progress:
        progress.update(3)
    phase, *lines = capsys.readouterr().err.splitlines()
    assert phase.endswith("] training")
    assert len(lines) == 7  # every 15 of 100 seconds, and the end
    assert lines[0].startswith("training:  15%")
    assert "15/100" in lines[0]
    assert "00:15<01:25" in lines[0]
    assert "1.00step/s" in lines[0]
    assert "loss=0.1333" in lines[0]
    assert "100/100" in lines[-1]


def test_work_of_unknown_length_counts(capsys, monkeypatch):
    monkeypatch.setattr(terminal, "LINE_SECONDS", 0)
    assert list(Progress("batches", None, "batch").over("ab")) == ["a", "b"]
    assert "2batch" in capsys.readouterr().err
