"""The command `calibrate`: its arguments, and what it prints."""

from __future__ import annotations

import argparse
from pathlib import Path

from mambaadv2.errors import ConfigError

AIMS = "f1, recall=R, cost=C (of a miss, in false alarms) or cost=C,defects=D (share in production)"


def add_calibrate_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what is the command's own; the run, the device and the batch are as of others."""
    parser.usage = (
        "mambaadv2 calibrate RUN INPUT [INPUT ...] [--rate R] [--confidence C] [--keep-suspects]\n"
        "       mambaadv2 calibrate RUN --labelled DATA --aim AIM [--layout NAME] [--on-error skip]"
    )
    inputs = parser.add_argument(
        "inputs",
        nargs="+",
        default=[],
        metavar="INPUT",
        help="good images that the run has not seen: files, folders or patterns",
    )
    # "+" and not "*": that would take nothing, and be done, where an option follows RUN.
    inputs.required = False
    good = parser.add_argument_group("from good images")
    good.add_argument(
        "--rate",
        type=share,
        metavar="R",
        help="share of good images to be flagged at most, on average (default: 0.01)",
    )
    good.add_argument(
        "--confidence",
        type=share,
        metavar="C",
        help="keep to the rate itself in this share of calibrations (0.95); needs more images",
    )
    good.add_argument(
        "--keep-suspects",
        action="store_true",
        help="keep good images that look mislabelled. By default, of 20 or more of a class, those "
        "that score far above the rest (1 in 20 at most) are left out and shown in suspects.png: a "
        "few defects among the good images would ruin the threshold. If they are good after all, "
        "the guarantee is a little weaker, as printed; keeping them makes it exact",
    )
    known = parser.add_argument_group("with known defects")
    known.add_argument(
        "--labelled",
        type=Path,
        metavar="DATA",
        help="data set with good images and defects in its split 'validation', never 'test'",
    )
    known.add_argument("--aim", metavar="AIM", help=f"what the threshold is for: {AIMS}")
    known.add_argument(
        "--on-error",
        choices=("stop", "skip"),
        default="stop",
        help="at files of DATA that cannot be used: list them all and stop, or go on without them",
    )
    known.add_argument(
        "--layout", metavar="NAME", help="how DATA is laid out (default: recognised)"
    )


def calibrate(args: argparse.Namespace) -> int:
    """Run the command and print a paragraph for each class."""
    _require_one_way(args)
    for line in _from_good(args) if args.labelled is None else _from_labelled(args):
        print(line)
    return 0


def share(text: str) -> float:
    """Read a number between 0 and 1, both left out."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < 1.0:
        raise argparse.ArgumentTypeError(f"expected a number between 0 and 1, got {text!r}")
    return value


def _require_one_way(args: argparse.Namespace) -> None:
    good = {
        "INPUT": args.inputs,
        "--rate": args.rate,
        "--confidence": args.confidence,
        "--keep-suspects": args.keep_suspects,
    }
    known = {
        "--labelled": args.labelled,
        "--aim": args.aim,
        "--layout": args.layout,
        "--on-error": args.on_error != "stop",
    }
    given = [[name for name, value in way.items() if value] for way in (good, known)]
    if all(given):
        raise ConfigError(
            f"expected either good images or a labelled data set, got {given[0][0]} and "
            f"{given[1][0]}; calibrate twice if both are wished, the later one decides"
        )
    if not args.inputs and not (args.labelled and args.aim):
        raise ConfigError(
            f"expected good images (INPUT), or --labelled DATA and --aim; an aim is {AIMS}"
        )


def _from_good(args: argparse.Namespace) -> list[str]:
    from mambaadv2.calibrate import FALSE_ALARM_RATE
    from mambaadv2.recalibrate import calibration_words, recalibrate

    classes = recalibrate(
        args.run,
        args.inputs,
        rate=args.rate or FALSE_ALARM_RATE,
        confidence=args.confidence,
        trim=not args.keep_suspects,
        device=args.device,
        batch_size=args.batch_size,
        progress=True,
    )
    return list(calibration_words(args.run, classes))


def _from_labelled(args: argparse.Namespace) -> list[str]:
    from mambaadv2.recalibrate_labelled import labelled_words, recalibrate_labelled

    thresholds = recalibrate_labelled(
        args.run,
        args.labelled,
        aim=args.aim,
        layout=args.layout,
        on_error=args.on_error,
        device=args.device,
        batch_size=args.batch_size,
        progress=True,
    )
    return list(labelled_words(args.run, thresholds))
