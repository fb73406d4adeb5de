"""The command line: its surface is frozen here, its commands are checked against stand-ins."""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest

from mambaadv2 import __version__, cli
from mambaadv2.errors import ConfigError, DataError

# Adding to it should be rare: what only some runs need is an argument in Python.
SURFACE = {
    "": ["--help", "--version", "-h", "COMMAND"],
    "train": [
        *["--batch-size", "--device", "--encoder", "--epochs", "--help", "--image-size"],
        *[
            "--layout",
            "--limit-classes",
            "--minutes",
            "--on-error",
            "--out",
            "--precision",
            "--preset",
        ],
        *["--resume", "--seed", "--weights", "-h", "DATA"],
    ],
    "check": ["--help", "--json", "--layout", "--sheets", "-h", "DATA"],
    "evaluate": [
        *["--against", "--device", "--help", "--json", "--layout", "--on-error", "--protocol"],
        *["--report", "-h", "DATA", "RUN"],
    ],
    "predict": [
        *["--batch-size", "--device", "--fdr", "--help", "--min-area", "--out", "--raw"],
        *["--resume", "--watch", "-h", "INPUT", "RUN"],
    ],
    "calibrate": [
        *["--aim", "--batch-size", "--confidence", "--device", "--help", "--keep-suspects"],
        *["--labelled", "--layout", "--on-error", "--rate", "-h", "INPUT", "RUN"],
    ],
    "compare": ["--help", "-h", "FIRST", "SECOND"],
    "results": ["--dataset", "--help", "--protocol", "-h", "RUN"],
    "demo": ["--help", "--out", "-h"],
    "info": ["--encoder", "--help", "--image-size", "--preset", "-h"],
    "doctor": ["--help", "--json", "-h"],
}


class Recorder:
    """A stand-in for a backing function: keeps its arguments, returns or raises what it is told."""

    def __init__(self, result: object = None) -> None:
        self.result = result
        self.args: tuple[object, ...] = ()
        self.kwargs: dict[str, object] = {}

    def __call__(self, *args: object, **kwargs: object) -> object:
        self.args, self.kwargs = args, kwargs
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result


Install = Callable[..., None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Return a function that puts a stand-in module with these members in a module's place."""

    def put(module: str, **members: object) -> None:
        monkeypatch.setitem(sys.modules, module, SimpleNamespace(**members))

    return put


def subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    (action,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return dict(action.choices)


def arguments(parser: argparse.ArgumentParser) -> list[str]:
    names: list[str] = []
    for action in parser._actions:
        names += action.option_strings or [str(action.metavar)]
    return sorted(names)


def parameters_of(module: str, function: str) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(getattr(importlib.import_module(module), function)).parameters


def run_in_process(*args: str, stdout: int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    # Buffered as at a user's: with unbuffered output argparse itself hides a closed pipe.
    return subprocess.run(
        [sys.executable, "-m", "mambaadv2", *args],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        env={**os.environ, "PYTHONUNBUFFERED": ""},
    )


def test_the_surface_is_frozen() -> None:
    parser = cli.build_parser()
    parsers = {"": parser, **subparsers(parser)}
    assert {name: arguments(each) for name, each in parsers.items()} == SURFACE


def test_flags_cannot_be_abbreviated() -> None:
    with pytest.raises(SystemExit):
        cli.main(["info", "--enc", "resnet34"])


@pytest.mark.parametrize("command", [name for name in SURFACE if name])
def test_every_command_is_short_and_explains_its_arguments(command: str) -> None:
    parser = subparsers(cli.build_parser())[command]
    function = parser.get_default("command")
    assert len(inspect.getsource(function).splitlines()) <= 15
    assert all(action.help for action in parser._actions)


def test_train_passes_its_flags_by_name(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    train = Recorder(Path("runs/a"))
    install("mambaadv2.train", train=train)
    flags = "--encoder resnet18 --weights w.pth --minutes 2.5 --batch-size 4 --image-size 64"
    flags += " --preset r34 --seed 7 --device cpu --precision bfloat16 --limit-classes a,b"
    flags += " --on-error skip --resume --layout visa"
    assert cli.main(["train", "data", "--out", "runs/a", *flags.split()]) == 0
    assert train.args == ()
    assert train.kwargs == {
        "data": Path("data"),
        "out": Path("runs/a"),
        "preset": "r34",
        "encoder": "resnet18",
        "weights": Path("w.pth"),
        "epochs": None,
        "minutes": 2.5,
        "batch_size": 4,
        "image_size": 64,
        "seed": 7,
        "device": "cpu",
        "precision": "bfloat16",
        "limit_classes": ("a", "b"),
        "on_error": "skip",
        "layout": "visa",
        "resume": True,
    }
    assert "runs/a" in capsys.readouterr().out


def test_the_flags_of_train_are_its_parameters() -> None:
    args = cli.build_parser().parse_args(["train", "data", "--out", "run"])
    flags = {name: value for name, value in vars(args).items() if name != "command"}
    parameters = parameters_of("mambaadv2.train", "train")
    assert set(flags) == set(parameters) - {"progress"}
    defaults = {name: parameters[name].default for name in set(flags) - {"data", "out"}}
    assert {name: flags[name] for name in defaults} == defaults


@pytest.mark.parametrize(
    ("module", "function", "positional", "keywords"),
    [
        ("mambaadv2.evaluate", "evaluate", 2, ["json_path", "report", "on_error", "device"]),
        ("mambaadv2.predict", "load", 1, ["device"]),
        (
            "mambaadv2.predict",
            "predict_to_folder",
            3,
            [
                *["raw", "min_area", "watch", "fdr", "resume", "device", "batch_size"],
                "progress",
            ],
        ),
        (
            "mambaadv2.recalibrate",
            "recalibrate",
            2,
            ["rate", "confidence", "trim", "device", "batch_size", "progress"],
        ),
        (
            "mambaadv2.recalibrate_labelled",
            "recalibrate_labelled",
            2,
            ["aim", "layout", "on_error", "device", "batch_size", "progress"],
        ),
        ("mambaadv2.recipes", "demo", 1, []),
        ("mambaadv2.data.check", "check_data", 1, []),
        ("mambaadv2.data.sheet", "write_sheets", 2, []),
        ("mambaadv2.model.info", "describe", 3, []),
        ("mambaadv2.doctor", "as_text", 1, []),
    ],
)
def test_the_functions_behind_take_what_is_passed(
    module: str, function: str, positional: int, keywords: list[str]
) -> None:
    parameters = parameters_of(module, function)
    assert len(parameters) >= positional
    assert set(keywords) <= set(parameters)


def test_evaluate_prints_the_table(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate = Recorder(SimpleNamespace(table=lambda: "the table"))
    install("mambaadv2.evaluate", evaluate=evaluate)
    flags = (
        "--json m.json --report r.html --on-error skip --device cpu --layout visa --protocol ader "
        "--against other.json"
    )
    assert cli.main(["evaluate", "run", "data", *flags.split()]) == 0
    assert evaluate.kwargs == {
        "run": Path("run"),
        "data": Path("data"),
        "against": Path("other.json"),
        "protocol": "ader",
        "json_path": Path("m.json"),
        "report": Path("r.html"),
        "on_error": "skip",
        "layout": "visa",
        "device": "cpu",
    }
    assert capsys.readouterr().out == "the table\n"


@pytest.mark.parametrize(("failed", "code"), [(0, 0), (1, 1), (300, 1)])
def test_predict_says_whether_an_image_failed(install: Install, failed: int, code: int) -> None:
    predict = Recorder(failed)
    install("mambaadv2.predict", predict_to_folder=predict)
    assert cli.main(["predict", "run", "a.png", "folder", "--out", "o", "--raw"]) == code
    assert predict.args == (Path("run"), ["a.png", "folder"], Path("o"))
    rest = {"device": "auto", "batch_size": 8, "progress": True}
    plain = {"min_area": 1, "watch": False, "fdr": None}
    assert predict.kwargs == {"raw": True, "resume": False, **plain, **rest}
    flags = ["--resume", "--watch", "--fdr", "0.1", "--min-area", "30"]
    assert cli.main(["predict", "run", "a.png", "--out", "o", *flags]) == code
    asked = {"min_area": 30, "watch": True, "fdr": 0.1}
    assert predict.kwargs == {"raw": False, "resume": True, **asked, **rest}


@pytest.mark.parametrize("order", ["run a b --rate 0.02", "run --rate 0.02 a b"])
def test_calibrate_passes_good_images(
    install: Install, capsys: pytest.CaptureFixture[str], order: str
) -> None:
    recalibrate, words = Recorder({"screw": 1}), Recorder(["screw: 2", "  3"])
    install("mambaadv2.recalibrate", recalibrate=recalibrate, calibration_words=words)
    rest = {"device": "auto", "batch_size": 8, "progress": True}
    assert cli.main(["calibrate", *order.split()]) == 0
    assert recalibrate.args == (Path("run"), ["a", "b"])
    assert recalibrate.kwargs == {"rate": 0.02, "confidence": None, "trim": True, **rest}
    assert words.args == (Path("run"), {"screw": 1})
    assert capsys.readouterr().out == "screw: 2\n  3\n"
    assert cli.main(["calibrate", "run", "a", "--keep-suspects", "--confidence", "0.95"]) == 0
    assert recalibrate.kwargs == {"rate": 0.01, "confidence": 0.95, "trim": False, **rest}


def test_calibrate_passes_a_labelled_data_set(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    recalibrate, words = Recorder({"screw": 1}), Recorder(["screw: 2"])
    install(
        "mambaadv2.recalibrate_labelled", recalibrate_labelled=recalibrate, labelled_words=words
    )
    flags = "--labelled parts --aim recall=0.95 --layout csv --on-error skip"
    flags += " --device cpu --batch-size 2"
    assert cli.main(["calibrate", "run", *flags.split()]) == 0
    assert recalibrate.args == (Path("run"), Path("parts"))
    assert recalibrate.kwargs == {
        **{
            "aim": "recall=0.95",
            "layout": "csv",
            "on_error": "skip",
            "device": "cpu",
            "batch_size": 2,
        },
        "progress": True,
    }
    assert capsys.readouterr().out == "screw: 2\n"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("", "expected good images (INPUT), or --labelled DATA and --aim"),
        ("--labelled d", "expected good images (INPUT), or --labelled DATA and --aim"),
        ("--aim f1", "expected good images (INPUT), or --labelled DATA and --aim"),
        ("a.png --labelled d --aim f1", "got INPUT and --labelled; calibrate twice"),
        ("--labelled d --aim f1 --rate 0.02", "got --rate and --labelled"),
        ("a.png --aim f1", "got INPUT and --aim"),
    ],
)
def test_calibrate_goes_one_way(
    capsys: pytest.CaptureFixture[str], flags: str, message: str
) -> None:
    assert cli.main(["calibrate", "run", *flags.split()]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("clean", "code"), [(True, 0), (False, 1)])
@pytest.mark.parametrize("flag", ["", "--json"])
def test_check_prints_its_report(
    install: Install, capsys: pytest.CaptureFixture[str], clean: bool, code: int, flag: str
) -> None:
    report = SimpleNamespace(text=lambda: "text", to_json=lambda: "json", clean=clean)
    check, sheets = Recorder(report), Recorder()
    install("mambaadv2.data.check", check_data=check)
    install("mambaadv2.data.sheet", write_sheets=sheets)
    assert cli.main(["check", "parts", *flag.split()]) == code
    assert (check.args, check.kwargs) == ((Path("parts"),), {"layout": None})
    assert not sheets.args
    assert capsys.readouterr().out == ("json\n" if flag else "text\n")
    assert cli.main(["check", "parts", "--sheets", "d", "--layout", "mvtec"]) == code
    assert check.kwargs == {"layout": "mvtec"}
    assert sheets.args == (report, Path("d"))


def test_check_of_what_cannot_be_listed_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["check", str(tmp_path / "none")]) == 2
    assert "found nothing of that name" in capsys.readouterr().err


@pytest.mark.parametrize(("flags", "out"), [([], None), (["--out", "d"], Path("d"))])
def test_demo_prints_the_page(
    install: Install, capsys: pytest.CaptureFixture[str], flags: list[str], out: Path | None
) -> None:
    demo = Recorder(Path("d/index.html"))
    install("mambaadv2.recipes", demo=demo)
    assert cli.main(["demo", *flags]) == 0
    assert demo.args == (out,)
    assert "d/index.html" in capsys.readouterr().out


def test_info_prints_the_description(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    describe = Recorder("the model")
    install("mambaadv2.model.info", describe=describe)
    install("mambaadv2.model", info=sys.modules["mambaadv2.model.info"])
    assert cli.main(["info", "--preset", "r34", "--encoder", "resnet18"]) == 0
    assert describe.args == ("r34", "resnet18", None)
    assert capsys.readouterr().out == "the model\n"


@pytest.mark.parametrize(("flags", "shown"), [([], "a list"), (["--json"], "{}")])
@pytest.mark.parametrize(("ready", "code"), [(True, 0), (False, 1)])
def test_doctor_says_whether_anything_stops_a_run(
    install: Install,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    shown: str,
    ready: bool,
    code: int,
) -> None:
    as_text, as_json = Recorder("a list"), Recorder("{}")
    diagnose, judge = Recorder(("found",)), Recorder(ready)
    install("mambaadv2.doctor", as_text=as_text, as_json=as_json, diagnose=diagnose, ready=judge)
    assert cli.main(["doctor", *flags]) == code
    assert judge.args == (("found",),)
    assert capsys.readouterr().out == f"{shown}\n"


@pytest.mark.parametrize(
    "error",
    [
        DataError("no folder train/good in /x"),
        ConfigError("no encoder of this name"),
        PermissionError(13, "Permission denied", "/x"),
        OSError(28, "No space left on device"),
    ],
)
def test_an_error_is_a_message_and_not_a_traceback(
    install: Install, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    install("mambaadv2.recipes", demo=Recorder(error))
    assert cli.main(["demo"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"mambaadv2: error: {error}\n"


def test_a_missing_run_is_a_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", str(tmp_path / "none"), str(tmp_path)]) == 2
    assert str(tmp_path / "none") in capsys.readouterr().err


def test_a_bug_keeps_its_traceback(install: Install) -> None:
    install("mambaadv2.recipes", demo=Recorder(ZeroDivisionError("a bug")))
    with pytest.raises(ZeroDivisionError, match="a bug"):
        cli.main(["demo"])


def test_ctrl_c_is_quiet(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install("mambaadv2.recipes", demo=Recorder(KeyboardInterrupt()))
    assert cli.main(["demo"]) == 130
    assert capsys.readouterr() == ("", "")


def test_a_closed_pipe_is_quiet() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = run_in_process("--help", stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("", "COMMAND"),
        ("fit data", "invalid choice: 'fit'"),
        ("train data", "--out"),
        ("train data --out r --epochs 1 --minutes 1", "not allowed with"),
        ("train data --out r --epochs 0", "a whole number above 0, got '0'"),
        ("train data --out r --epochs 1.5", "a whole number, got '1.5'"),
        ("train data --out r --minutes nan", "a number above 0, got 'nan'"),
        ("train data --out r --minutes inf", "a number above 0, got 'inf'"),
        ("train data --out r --minutes soon", "a number above 0, got 'soon'"),
        ("train data --out r --seed -1", "a whole number, got '-1'"),
        ("train data --out r --limit-classes a,,b", "names with commas between, got 'a,,b'"),
        ("train data --out r --device tpu", "invalid choice: 'tpu'"),
        ("predict run --out o", "INPUT"),
        ("predict run a --out o --fdr 1", "a number between 0 and 1, got '1'"),
        ("predict run a --out o --min-area 0", "a whole number above 0, got '0'"),
        ("calibrate", "RUN"),
        ("calibrate run a --rate nan", "a number between 0 and 1, got 'nan'"),
    ],
)
def test_wrong_usage_names_the_argument(
    capsys: pytest.CaptureFixture[str], args: str, message: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(args.split())
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_version_and_help_as_a_process() -> None:
    assert run_in_process("--version").stdout == f"mambaadv2 {__version__}\n"
    done = run_in_process("train", "--help")
    assert done.returncode == 0
    assert "--limit-classes" in done.stdout
