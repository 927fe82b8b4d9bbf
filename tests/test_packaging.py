"""The wheel: what is in it, and that it does the main job where there is no checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from wagle.cli import COMMANDS
from wagle.shipped import CHECKOUT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [*("wheel", "--no-deps", "--no-build-isolation", "--quiet"), "-w", str(folder)]
    # A build leaves files in the folder that it builds: that is done to a copy.
    copy = folder / "source"
    files = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in filter(None, files.split("\0")):
        if (CHECKOUT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((CHECKOUT / name).read_bytes())
    subprocess.run([sys.executable, "-m", "pip", *build, str(copy)], check=True)
    return next(folder.glob("wagle-*.whl"))


def test_the_wheel_holds_every_module_and_all_that_ships(wheel):
    packed = set(zipfile.ZipFile(wheel).namelist())
    for path in (CHECKOUT / "src").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            assert f"wagle/{path.relative_to(CHECKOUT / 'src')}" in packed
    for folder in ("configs", "files/data/demo", "lm-evaluation-harness"):
        for path in (CHECKOUT / folder).rglob("*.*"):
            if path.is_file() and "__pycache__" not in path.parts:
                name = str(path.relative_to(CHECKOUT))
                name = name.replace("lm-evaluation-harness", "lm_evaluation_harness")
                assert f"wagle/{name}" in packed
    assert not [name for name in packed if name.startswith(("src/", "tests/"))]


def test_it_asks_for_the_requirements():
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["tool"]["setuptools"]["dynamic"]["dependencies"]["file"] == ["requirements.txt"]
    assert project["project"]["scripts"]["wagle"] == "wagle.cli:main"


@pytest.mark.slow
def test_installed_it_unlearns_from_an_empty_folder(wheel, tmp_path, model_folder):
    environment = tmp_path / "environment"
    create = [sys.executable, "-m", "venv", "--without-pip", str(environment)]
    subprocess.run(create, check=True)
    python = environment / "bin" / "python"
    install = ["--no-deps", "--quiet", "--disable-pip-version-check", str(wheel)]
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", *install]
    subprocess.run(pip, check=True)
    # The other packages are those of this environment; its .pth files, which may lead to a
    # checkout, are not read.
    (site,) = environment.glob("lib/python*/site-packages")
    here = next(path for path in sys.path if path.endswith("site-packages"))
    (site / "dependencies.pth").write_text(f"{here}\n")
    empty = tmp_path / "empty"
    empty.mkdir()
    arguments = [
        *("-C", "configs/demo/GradDiff+WAGLE.json", f"--overall.model_name={model_folder}"),
        *("--unlearn.max_steps=2", "--dataset.forget_ratio=4", "--evaluation.limit=2"),
        *("--logger.json.root=runs", "--logger.name=first"),
    ]
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    # What a TOFU run imports before it begins; the rest is imported where it is used.
    program = (
        "import sys, wagle.cli, wagle.commands.unlearn, wagle.model.unlearn\n"
        "slow = {'peft', 'lm_eval', 'sentence_transformers', 'matplotlib', 'wandb', 'nltk'}\n"
        "assert not slow & set(sys.modules), slow & set(sys.modules)\n"
        "wagle.cli.main()\n"
    )
    run = subprocess.run(
        [python, "-c", program, "unlearn", *arguments],
        cwd=empty,
        env=clean,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    results = json.loads((empty / "runs" / "first" / "results.json").read_text())
    assert results["UE Avg"] > 0
    assert (empty / "mask" / "demo_0.2.pt").is_file()
    for picture in ("training", "mask_density"):
        assert (empty / f"runs/first/images/{picture}.png").read_bytes()[:4] == b"\x89PNG"
        assert (empty / f"runs/first/images/{picture}.pdf").read_bytes()[:5] == b"%PDF-"
    manifest = json.loads((empty / "runs" / "first" / "manifest.json").read_text())
    assert manifest["git_commit"] is None
    help_text = [environment / "bin" / "wagle", "unlearn", "--help"]
    subprocess.run(help_text, cwd=empty, env=clean, capture_output=True, check=True)
    where = [str(python), "-c", "import wagle; print(wagle.__file__)"]
    printed = subprocess.run(
        where, cwd=empty, env=clean, capture_output=True, text=True, check=True
    )
    assert Path(printed.stdout.strip()).is_relative_to(environment)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_nothing_heavy(command):
    program = (
        "import atexit, sys\n"
        "heavy = {'torch', 'transformers', 'datasets', 'matplotlib', 'numpy'}\n"
        "atexit.register(lambda: print(sorted(heavy & set(sys.modules))))\n"
        f"sys.argv = ['wagle', {command!r}, '--help']\n"
        "from wagle.cli import main\n"
        "main()\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(f"usage: wagle {command}") or command == "demo"
    assert run.stdout.splitlines()[-1] == "[]"


def test_a_command_that_does_not_exist():
    program = "import sys; sys.argv = ['wagle', 'forget']; from wagle.cli import main; main()"
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert run.returncode == 2
    assert "there is no command forget" in run.stderr
    assert "  unlearn " in run.stderr
