"""The command `mambaadv2`: reads arguments, calls one function, prints what it returns.

Everything heavy is imported inside the commands, so that `--help` answers at once. The commands and
flags are frozen by tests/test_cli.py: what is rarely needed belongs in Python, not in a flag.

Exit codes: 0 done; 1 some images could not be used, or doctor or check found a problem; 2 wrong
arguments, or an error whose message says it all; 130 interrupted and 143 terminated, with what can
be saved saved; 141 the reader of the output went away.
"""

from __future__ import annotations

import argparse
import functools
import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mambaadv2 import __version__
from mambaadv2.cli_calibrate import add_calibrate_arguments, calibrate, share
from mambaadv2.device import DEVICES
from mambaadv2.errors import MambaADv2Error, TrainingInterruptedError
from mambaadv2.model.presets import PRESETS
from mambaadv2.protocols import PROTOCOLS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PRECISIONS = ("float32", "bfloat16")

_EXIT_ERROR = 2
_EXIT_SIGNAL = 128  # plus the signal's number
_EXIT_INTERRUPTED = 130
_EXIT_CLOSED_PIPE = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; `argv` is without the program's name."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A file's name may be no text; printing it must not end a command.
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            args = build_parser().parse_args(argv)
            code: int = args.command(args)
            return code
        finally:
            # Here rather than at exit, where a closed pipe could only be reported as a traceback.
            sys.stdout.flush()
    except KeyboardInterrupt:
        return _EXIT_INTERRUPTED
    except BrokenPipeError:
        # What is still buffered has nowhere to go; without this, Python's exit would try again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _EXIT_CLOSED_PIPE
    except (MambaADv2Error, OSError) as error:
        print(f"mambaadv2: error: {error}", file=sys.stderr)
        if isinstance(error, TrainingInterruptedError):
            return _EXIT_SIGNAL + error.signal
        return _EXIT_ERROR


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; `args.command` is the function to call with the parsed arguments."""
    parser = argparse.ArgumentParser(
        prog="mambaadv2",
        description="Find visual anomalies with one model for many classes, "
        "trained on good images only.",
        epilog="'mambaadv2 COMMAND --help' explains a command.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"mambaadv2 {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    add = functools.partial(commands.add_parser, allow_abbrev=False)

    train = add("train", help="learn from good images, write a run folder")
    _add_train_arguments(train)
    train.set_defaults(command=_train)

    check = add("check", help="look at a data set before training, without any model")
    _add_data(check)
    check.add_argument("--json", action="store_true", help="print JSON instead of text")
    check.add_argument(
        "--sheets", type=Path, metavar="DIR", help="also write a contact sheet per class and label"
    )
    check.set_defaults(command=_check)

    evaluate = add("evaluate", help="measure a run on labelled images")
    _add_evaluate_arguments(evaluate)
    evaluate.set_defaults(command=_evaluate)

    _add_comparisons(add)

    predict = add("predict", help="score images and write heat maps")
    _add_predict_arguments(predict)
    predict.set_defaults(command=_predict)

    calibration = add("calibrate", help="new thresholds from images that the run has not seen")
    _add_calibrate_arguments(calibration)
    calibration.set_defaults(command=calibrate)

    demo = add("demo", help="train and test on generated images, write a page")
    demo.add_argument("--out", type=Path, metavar="DIR", help="folder to write (default: chosen)")
    demo.set_defaults(command=_demo)

    info = add("info", help="describe a model: stages, parameters, operations")
    _add_model(info)
    info.set_defaults(command=_info)

    doctor = add("doctor", help="check this machine for training and prediction")
    doctor.add_argument("--json", action="store_true", help="print JSON instead of a list")
    doctor.set_defaults(command=_doctor)
    return parser


def _train(args: argparse.Namespace) -> int:
    from mambaadv2.train import train

    # The flags are named as the parameters, so a flag without its parameter fails at once.
    run = train(**{name: value for name, value in vars(args).items() if name != "command"})
    print(f"Run folder: {run}")
    return 0


def _check(args: argparse.Namespace) -> int:
    from mambaadv2.data.check import check_data

    report = check_data(args.data, layout=args.layout)
    print(report.to_json() if args.json else report.text())
    if args.sheets is not None:
        from mambaadv2.data.sheet import write_sheets

        write_sheets(report, args.sheets)
    return 0 if report.clean else 1


def _evaluate(args: argparse.Namespace) -> int:
    from mambaadv2.evaluate import evaluate

    # As in `_train`.
    found = evaluate(**{name: value for name, value in vars(args).items() if name != "command"})
    print(found.table())
    return 0


def _compare(args: argparse.Namespace) -> int:
    from mambaadv2.compare import compare

    print(compare(args.first, args.second))
    return 0


def _results(args: argparse.Namespace) -> int:
    from mambaadv2.evaluation_file import read_evaluation
    from mambaadv2.published import results_table

    own = None if args.run is None else read_evaluation(args.run)
    print(results_table(args.dataset, own, args.protocol))
    return 0


def _predict(args: argparse.Namespace) -> int:
    from mambaadv2.predict import predict_to_folder

    # The flags are named as the parameters.
    names = ("raw", "min_area", "watch", "fdr", "resume", "device", "batch_size")
    flags = {name: getattr(args, name) for name in names}
    failed = predict_to_folder(args.run, args.inputs, args.out, progress=True, **flags)
    return 1 if failed else 0


def _demo(args: argparse.Namespace) -> int:
    from mambaadv2.recipes import demo

    print(f"Page: {demo(args.out)}")
    return 0


def _info(args: argparse.Namespace) -> int:
    from mambaadv2.model.info import describe

    print(describe(args.preset, args.encoder, args.image_size))
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from mambaadv2.doctor import as_json, as_text, diagnose, ready

    findings = diagnose()
    print(as_json(findings) if args.json else as_text(findings))
    return 0 if ready(findings) else 1


def _add_train_arguments(parser: argparse.ArgumentParser) -> None:
    _add_data(parser)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="RUN", help="run folder to write"
    )
    _add_model(parser)
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="PATH",
        help="weights file of the encoder (default: found by its name)",
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=_positive_int, metavar="N", help="passes over the images")
    length.add_argument(
        "--minutes", type=_positive_float, metavar="M", help="stop after about M minutes"
    )
    parser.add_argument("--batch-size", type=_positive_int, metavar="B", help="images per step")
    parser.add_argument(
        "--seed", type=_natural_int, default=0, metavar="S", help="of every random choice"
    )
    _add_device(parser)
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="float32", help="of the training arithmetic"
    )
    parser.add_argument(
        "--limit-classes", type=_names, metavar="A,B", help="learn only these classes"
    )
    _add_on_error(parser)
    parser.add_argument(
        "--resume", action="store_true", help="go on with the interrupted run in RUN"
    )


def _add_evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    _add_data(parser)
    parser.add_argument(
        "--json",
        type=Path,
        dest="json_path",
        metavar="FILE",
        help="also write the numbers to FILE",
    )
    parser.add_argument(
        "--report",
        type=Path,
        metavar="FILE.html",
        help="also write a page: charts, worst misses and false alarms, how it was measured",
    )
    parser.add_argument(
        "--against",
        type=Path,
        metavar="FILE.json",
        help="compare in the page with another run's --json, of the same images",
    )
    parser.add_argument(
        "--protocol",
        choices=PROTOCOLS,
        default="exact",
        help="rules of the numbers: ours, or those of published tables",
    )
    _add_on_error(parser)
    _add_device(parser)


def _add_comparisons(add: Callable[..., argparse.ArgumentParser]) -> None:
    compare = add("compare", help="two evaluations: what differs, and by how much")
    for name in ("first", "second"):
        compare.add_argument(
            name, type=Path, metavar=name.upper(), help="JSON of an evaluation, or a run folder"
        )
    compare.set_defaults(command=_compare)

    results = add("results", help="published numbers, beside one's own run")
    results.add_argument(
        "run", nargs="?", type=Path, metavar="RUN", help="own evaluation: its JSON or run folder"
    )
    results.add_argument(
        "--dataset", required=True, metavar="NAME", help="for example mvtec, visa, real-iad"
    )
    results.add_argument("--protocol", choices=PROTOCOLS, help="only numbers by these rules")
    results.set_defaults(command=_results)


def _add_predict_arguments(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="image, folder of images or pattern such as 'shift2/*.tif'",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--raw", action="store_true", help="also write the raw maps (.npy)")
    parser.add_argument(
        "--min-area", type=_positive_int, default=1, metavar="N", help="pixels of a region at least"
    )
    parser.add_argument(
        "--watch",
        action="store_true",
        help="say when the images, in their order, are no longer as they were: another camera, "
        "light or product",
    )
    parser.add_argument(
        "--fdr",
        type=share,
        metavar="Q",
        help="at the end, call defects of the whole batch, of which on average at most a share Q "
        "is good",
    )
    parser.add_argument(
        "--resume", action="store_true", help="keep the lines in DIR and add those that are missing"
    )
    _add_batch_size(parser)
    _add_device(parser)


def _add_calibrate_arguments(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    add_calibrate_arguments(parser)
    _add_batch_size(parser)
    _add_device(parser)


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder written by 'train'")


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data",
        type=Path,
        metavar="DATA",
        help="data set, one class of it, or a manifest (.csv, .jsonl, .parquet)",
    )
    parser.add_argument(
        "--layout", metavar="NAME", help="how the data set is laid out (default: recognised)"
    )


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", choices=PRESETS, default="lite", help="size of the model")
    parser.add_argument("--encoder", metavar="NAME", help="timm name (default: the preset's)")
    parser.add_argument(
        "--image-size", type=_positive_int, metavar="S", help="side the images are resized to"
    )


def _add_on_error(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--on-error",
        choices=("stop", "skip"),
        default="stop",
        help="at files that cannot be used: list them all and stop, or go on without them",
    )


def _add_batch_size(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--batch-size", type=_positive_int, default=8, metavar="B", help="images at once"
    )


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=DEVICES, default="auto", help="where to compute")


def _positive_int(text: str) -> int:
    value = _natural_int(text)
    if value == 0:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return value


def _natural_int(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"expected a whole number, got {text!r}")
    return int(text)


def _positive_float(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise argparse.ArgumentTypeError(f"expected names with commas between, got {text!r}")
    return names
