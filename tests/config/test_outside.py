"""Code from outside the program: named on the command line, checked, fingerprinted, never trusted
by a file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from wagle.catalogue import ATTACKS, DATA_SETS, METHODS, SCORES
from wagle.commands import unlearn
from wagle.config import load_config
from wagle.config.values import checker_of
from wagle.dataset.sources import load_rows
from wagle.entries import label_of
from wagle.errors import ConfigError, WagleError
from wagle.outside import is_outside
from wagle.reporting.plan import plan_runs
from wagle.reporting.request import TableRequest
from wagle.shipped import CHECKOUT as ROOT
from wagle.unlearn.mask.file import read_provenance

TRUST = ("--overall.trust_code", "true")

METHOD = '''
from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from wagle.dataset.pairing import FORGET, RETAIN
from wagle.unlearn.objectives import Objective
from wagle.unlearn.objectives.losses import cross_entropy

Path("it_ran").touch()


@dataclass(frozen=True)
class Soft(Objective):
    """−t · CE(forget) + CE(retain)."""

    temperature: float = field(default=0.5, metadata={"above": 0, "meaning": "how hot it is"})
    steps: int = 3
    flat: bool = False
    note: str | None = None
    views = (FORGET, RETAIN)

    def terms(self, model, batch, reference):
        forget, retain = (cross_entropy(model, batch[view]) for view in (FORGET, RETAIN))
        return {FORGET: -self.temperature * forget, RETAIN: retain}
'''
SCORE = """
from wagle.entries import Score


def least(weight, gradients, inputs, where):
    return 1 / (1 + weight.abs())


LEAST = Score("least", least)
"""
DATA = """
from wagle.dataset.sources import load_rows


def _from_the_demo(name, request):
    rows = load_rows(name, data_dir=None, cache_dir=request.cache_dir)
    return [{"question": row["question"].upper(), "answer": row["answer"]} for row in rows]


def forgotten(request):
    return _from_the_demo("Demo_forget10", request)


def retained(request):
    return _from_the_demo("Demo_retain90", request)
"""
ATTACK = """
def length(attacked):
    return {"length": float(len(attacked.text))}
"""


@pytest.fixture(autouse=True)
def nothing_stays(tmp_path, monkeypatch):
    """An empty working directory; the catalogue and Python's paths are restored afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "2000")
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = [(catalogue, dict(catalogue)) for catalogue in (METHODS, SCORES, DATA_SETS, ATTACKS)]
    yield
    for catalogue, entries in before:
        catalogue.clear()
        catalogue.update(entries)


def write(name: str, text: str) -> str:
    Path(name).write_text(text, encoding="utf-8")
    return name


def load(*argv: str):
    return load_config(["--overall.model_name", "m", *argv], prog="p.py", description="d")


def error(*argv: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(*argv)
    return " ".join(str(caught.value).split())


def test_a_method_a_score_a_data_set_and_an_attack_from_files_run(tmp_path, options):
    """Nothing in the program is edited for them."""
    argv = options(
        {
            "overall.trust_code": "true",
            "unlearn.unlearn_method": write("soft.py", METHOD),
            "unlearn.GA+FT.gamma": None,
            "unlearn.Soft.temperature": 0.25,
            "unlearn.score_type": write("scores.py", SCORE),
            "unlearn.mask_path": "mask/{score}_0.4.pt",
            "dataset.forget_dataset_name": "Demo_forget10",
            "dataset.retain_dataset_name": f"{write('data.py', DATA)}:retained",
            "evaluation.attacks": f"zlib,{write('attacks.py', ATTACK)}",
        }
    )
    assert unlearn.main(argv) == 0
    folder = tmp_path / "runs" / "a"
    results, manifest, log, tofu = (
        json.loads((folder / f"{name}.json").read_text())
        for name in ("results", "manifest", "log", "tofu")
    )
    assert results["method"] == "soft.py:Soft"
    assert {"MIA zlib", "MIA length"} <= set(results)
    assert label_of(results["method"]) == "Soft"
    row = tofu["forget"]["rows"][0]
    assert row["MIA"]["length"] > len(row["answer"])
    assert set(manifest["code"]) == {"soft.py:Soft", "scores.py:LEAST", "attacks.py:length"} | {
        "data.py:retained"
    }
    assert log[0]["loss"] == pytest.approx(log[0]["forget_loss"] + log[0]["retain_loss"])
    found = read_provenance(Path("mask/LEAST_0.4.pt"))
    assert found["unlearn.score_type"] == "LEAST"
    assert found["score code"] == manifest["code"]["scores.py:LEAST"]
    assert "forget examples" not in found  # it reads no gradient

    write("scores.py", SCORE.replace("1 +", "2 +"))  # a mask of other code is not used
    with pytest.raises(WagleError, match="score code"):
        unlearn.main([*argv, "--logger.name=b"])
    write("soft.py", METHOD.replace("how hot", "how warm"))  # nor is a run
    write("scores.py", SCORE)
    with pytest.raises(ConfigError, match="another configuration"):
        unlearn.main(argv)


def test_a_forget_set_from_outside_is_like_one_of_ones_own(tmp_path, options, capsys):
    argv = options(
        {
            "overall.trust_code": "true",
            "unlearn.task_name": None,
            "unlearn.mask_path": None,
            "dataset.forget_dataset_name": f"{write('data.py', DATA)}:forgotten",
            "evaluation.tasks": None,
        }
    )
    assert unlearn.main(argv) == 0
    assert "no evaluation runs" in capsys.readouterr().err
    manifest = json.loads((tmp_path / "runs" / "a" / "manifest.json").read_text())
    assert manifest["code"].keys() == {"data.py:forgotten"}
    write("data.py", DATA.replace("upper", "lower"))
    with pytest.raises(ConfigError, match="another configuration"):
        unlearn.main(argv)
    own = ("--dataset.forget_dataset_name", "data.py:forgotten", *TRUST)
    assert "say which rows are to be retained" in error(*own)
    assert load(*own, "--dataset.retain_dataset_name", "C4")["dataset.forget_ratio"] == 1


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return [{'question': 'a'}]", "row 1: answer is missing"),
        ("return [{'text': 5}]", "row 1: text holds a number"),
        ("return []", "holds no rows"),
    ],
)
def test_rows_from_outside_are_checked(body, message):
    name = write("rows.py", f"def rows(request):\n    {body}\n")
    config = load(*TRUST, "--dataset.retain_dataset_name", name)
    with pytest.raises(WagleError, match=message):
        load_rows(config["dataset.retain_dataset_name"], data_dir=None, cache_dir=Path("c"))


def test_code_that_nobody_has_entered_is_no_data_set():
    name = write("rows.py", "open('it_ran', 'w')\ndef rows(request):\n    return []\n")
    for spelt in (name, f"{name}:rows"):
        with pytest.raises(WagleError, match="there is no data set"):
            load_rows(spelt, data_dir=None, cache_dir=Path("c"))
    assert not Path("it_ran").exists()


def test_hyper_parameters_are_the_fields_of_the_dataclass():
    chosen = (*TRUST, "--unlearn.unlearn_method", write("soft.py", METHOD))
    config = load(*chosen, "--unlearn.Soft.temperature", "2", "--unlearn.Soft.flat", "true")
    assert config.method_params == {"temperature": 2.0, "steps": 3, "flat": True, "note": None}
    assert config["unlearn.unlearn_method"] == "soft.py:Soft"
    assert "unlearn.Soft.temperature allowed: float > 0" in error(
        *chosen, "--unlearn.Soft.temperature", "0"
    )
    assert "unlearn.Soft.steps allowed: int" in error(*chosen, "--unlearn.Soft.steps", "1.5")
    assert "did you mean unlearn.Soft.steps" in error(*chosen, "--unlearn.Soft.step", "1")
    nested = config.as_dict()
    path = write("again.json", json.dumps(nested))
    assert load("-C", path, *TRUST).as_dict() == nested
    assert load("-C", path, *TRUST).fingerprint() == config.fingerprint()
    assert config.replace({"unlearn.Soft.steps": 4}).method_params["steps"] == 4
    plain = load(*chosen)
    assert plain.replace({"unlearn.unlearn_method": "GA"}).method_params == {}


def test_a_field_without_a_default_must_be_given():
    text = METHOD.replace("steps: int = 3", "steps: int = field(kw_only=True)")
    chosen = (*TRUST, "--unlearn.unlearn_method", write("soft.py", text))
    assert "unlearn.Soft.steps is required: int" in error(*chosen)
    assert load(*chosen, "--unlearn.Soft.steps", "2").method_params["steps"] == 2


def test_help_shows_the_keys_of_a_trusted_method_alone(capsys):
    chosen = ("--unlearn.unlearn_method", write("soft.py", METHOD))
    with pytest.raises(SystemExit):
        load("--help", *chosen)
    text = capsys.readouterr().out
    assert "unlearn.Soft" not in text
    assert "add --overall.trust_code true to the command line" in text
    assert not Path("it_ran").exists()
    with pytest.raises(SystemExit):
        load("--help", *chosen, *TRUST)
    (line,) = (x for x in capsys.readouterr().out.splitlines() if "Soft.temperature" in x)
    assert line.split() == [
        *("unlearn.Soft.temperature", "float", ">", "0", "0.5", "how", "hot", "it", "is"),
    ]


@pytest.mark.parametrize("name", ["c.json", "c.yaml", "command line", "replaced"])
@pytest.mark.parametrize("key", ["unlearn.unlearn_method", "evaluation.attacks"])
def test_a_file_alone_runs_nothing(name, key):
    write("soft.py", METHOD)
    content = {"overall": {"trust_code": True, "model_name": "m"}, key: "soft.py"}
    message = error("-C", write(name, json.dumps(content)))
    assert f"{key} this is code from outside the program" in message
    assert "add --overall.trust_code true to the command line" in message
    outer = {"overall.trust_code": "true", key: "soft.py:Soft"}
    error("-C", name, "-C", write("outer.json", json.dumps(outer)))
    error("-C", name, "--overall.trust_code", "false")
    assert not Path("it_ran").exists()


def test_a_file_that_asks_for_trust_is_told_that_it_has_no_effect():
    path = write("c.json", json.dumps({"overall": {"trust_code": 1}}))
    config = load("-C", path)
    assert config["overall.trust_code"] is False
    (notice,) = config.notices
    assert "overall.trust_code has no effect in a file (c.json)" in notice
    assert load("-C", path, *TRUST).notices == []
    assert load("-C", write("d.json", '{"overall": {"trust_code": false}}')).notices == []


@pytest.mark.parametrize("argument", ["--help", "--overall.seed=1"])
def test_without_trust_the_real_command_runs_nothing(argument):
    write("soft.py", METHOD)
    write("c.json", json.dumps({"overall": {"trust_code": True}, "unlearn.score_type": "soft.py"}))
    run = subprocess.run(
        [
            *(sys.executable, ROOT / "src" / "exec" / "unlearn_model.py", "-C", "c.json"),
            *("--overall.model_name=m", "--unlearn.unlearn_method=soft.py:Soft", argument),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == (0 if argument == "--help" else 2)
    assert "--overall.trust_code true" in run.stdout + run.stderr
    assert not Path("it_ran").exists()


def test_fingerprints_see_what_the_code_says_and_not_where_it_lies():
    chosen = (*TRUST, "--unlearn.unlearn_method", write("soft.py", METHOD))
    first = load(*chosen).fingerprint()
    Path("elsewhere").mkdir()
    other = write("elsewhere/soft.py", METHOD)
    assert load(*TRUST, "--unlearn.unlearn_method", f"{other}:Soft").fingerprint() == first
    write("soft.py", METHOD.replace("-self.temperature", "self.temperature"))
    assert load(*chosen).fingerprint() != first
    attacked = load(*TRUST, "--evaluation.attacks", write("attacks.py", ATTACK))
    write("attacks.py", ATTACK.replace("float(", "-float("))
    again = load(*TRUST, "--evaluation.attacks", "attacks.py")
    assert again.fingerprint() != attacked.fingerprint()
    assert again.training_fingerprint() == attacked.training_fingerprint()


def test_objects_of_packages_are_found_from_the_working_directory():
    Path("my_losses").mkdir()
    write("my_losses/__init__.py", "")
    write("my_losses/helper.py", "VALUE = 1\n")
    write("my_losses/soft.py", METHOD)
    config = load(*TRUST, "--unlearn.unlearn_method", "my_losses.soft:Soft")
    assert config["unlearn.unlearn_method"] == "my_losses.soft:Soft"
    assert config.method_params["steps"] == 3
    first = config.fingerprint()
    write("my_losses/helper.py", "VALUE = 2\n")
    assert load(*TRUST, "--unlearn.unlearn_method", "my_losses.soft:Soft").fingerprint() != first


@pytest.mark.parametrize(
    ("key", "value", "text", "message"),
    [
        ("unlearn.unlearn_method", "no.py", None, "no.py cannot be run: FileNotFoundError"),
        ("unlearn.unlearn_method", "a.py", "1 / 0", "a.py cannot be run: ZeroDivisionError"),
        ("unlearn.unlearn_method", "a.py", "x = 1", "a.py holds no class that derives from Obj"),
        ("unlearn.unlearn_method", "a.py:Hard", METHOD, "a.py has no Hard"),
        ("unlearn.unlearn_method", "a.py:Objective", METHOD, "a.py:Objective is no class that"),
        ("unlearn.unlearn_method", "no_module:Soft", None, "no_module cannot be run: ModuleNotF"),
        (
            "unlearn.unlearn_method",
            "a.py",
            METHOD.replace("@dataclass(frozen=True)\n", ""),
            "put @dataclass above it",
        ),
        (
            "unlearn.unlearn_method",
            "a.py",
            METHOD.replace("int = 3", "list = ()"),
            "is none of int, float, bool and str",
        ),
        ("unlearn.unlearn_method", "a.py", METHOD.replace("above", "over"), "takes meaning, above"),
        (
            "unlearn.unlearn_method",
            "a.py",
            METHOD.replace("class Soft", "class GradDiff"),
            "give the class another name",
        ),
        (
            "unlearn.unlearn_method",
            "a.py",
            METHOD + "\n\nclass Other(Soft):\n    pass\n",
            "a.py holds several; say which: a.py:Soft, a.py:Other",
        ),
        ("unlearn.score_type", "a.py:least", SCORE, "a.py:least is no wagle.entries.Score"),
        (
            "unlearn.score_type",
            "a.py",
            SCORE.replace("least)", "least, gradients=('past',))"),
            "there are forget, retain, refusal",
        ),
        (
            "unlearn.score_type",
            "a.py",
            SCORE.replace("LEAST", "Wagle"),
            "there is another mask called Wagle",
        ),
        (
            "dataset.forget_dataset_name",
            "a.py",
            DATA,
            "a.py holds several; say which: a.py:forgotten, a.py:retained",
        ),
        ("evaluation.attacks", "loss,a.py", "X = 1", "a.py holds no function of an AttackedText"),
    ],
)
def test_code_that_is_something_else(key, value, text, message):
    if text is not None:
        write("a.py", text)
    assert message in error(*TRUST, f"--{key}", value)


def test_what_is_code_from_outside():
    for name in ("a.py", "/x/a.py", "../a.py:B", "~/a b.py:B", "a:B", "a.b_c.d:B"):
        assert is_outside(name), name
    for name in (*METHODS, *SCORES, "", "a", "a.b", "a.pyc", "a:b:c", "org/name:part", "x.json"):
        assert not is_outside(name), name


def test_kinds_of_fields():
    for kind, value, wanted in ((int, "3", 3), (float, 1, 1.0), (bool, "true", True)):
        for annotated in (kind, kind | None):
            found = checker_of(annotated).check(value)
            assert (found, type(found)) == (wanted, kind)
    for kind in (list, int | float, dict[str, int], object):
        with pytest.raises(TypeError):
            checker_of(kind)


def test_tables_pass_trust_on_to_their_runs(options):
    write("soft.py", METHOD)
    write("scores.py", SCORE)
    write("c.json", json.dumps({"dataset.forget_dataset_name": "Demo_forget10"}))
    common = ("--overall.model_name", "m", "--dataset.retain_dataset_name", "Demo_retain90")
    request = {
        "methods": ["soft.py", "GradDiff"],
        "masks": ["Dense", "scores.py"],
        "seeds": [0],
        "ratios": [0.5],
    }
    with pytest.raises(ConfigError, match="code from outside"):
        plan_runs(TableRequest("tofu", Path("c.json"), Path("out"), overrides=common, **request))
    assert not Path("it_ran").exists()
    runs = plan_runs(
        TableRequest("tofu", Path("c.json"), Path("out"), overrides=(*common, *TRUST), **request)
    )
    assert [run.row.name for run in runs] == [
        *("Original", "Soft+Dense", "Soft+LEAST_0.5", "GradDiff+Dense", "GradDiff+LEAST_0.5"),
    ]
    for run in runs:
        again = load_config(run.arguments, prog="p.py", description="d")
        assert again.fingerprint() == run.fingerprint
        assert again["overall.trust_code"]
    masks = {Path(run.config["unlearn.mask_path"] or "") for run in runs if run.row.ratio}
    (mask,) = masks  # both methods share it
    assert mask.name == "LEAST_0.5.safetensors"
