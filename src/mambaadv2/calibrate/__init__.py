"""What good images alone allow to decide, and with which guarantee.

Pure functions of scores and maps: they know no network and no file. `conformal` has p-values and
thresholds, `classes` the rule that training uses, `assumed` what stands in where images are too
few, `suspects` good images that look mislabelled, `pooled` and `crossed` ways to use few images,
`discovery` a whole batch, `regions` places in a map, `labelled` thresholds with known defects,
`drift` the watch over a stream, `watch` one for each class beside it, `colours` the heat maps'
scale, `recorded` reads a model's back.
"""

from __future__ import annotations

from mambaadv2.calibrate.assumed import assumed_limits
from mambaadv2.calibrate.classes import FALSE_ALARM_RATE, ClassCalibration, Kind, calibrate_classes
from mambaadv2.calibrate.colours import ColourScale, colour_marks, colour_scale
from mambaadv2.calibrate.conformal import (
    at_most,
    conformal_threshold,
    false_alarm_bound,
    false_alarm_range,
    largest_rank,
    needed_images,
    p_values,
    shortage,
)
from mambaadv2.calibrate.crossed import cross_guarantee, cross_p_values
from mambaadv2.calibrate.discovery import adjusted_p_values, discoveries, within
from mambaadv2.calibrate.drift import DriftState, DriftWatch
from mambaadv2.calibrate.labelled import (
    LabelledScores,
    LabelledThreshold,
    require_aim,
    threshold_for_aim,
    threshold_for_cost,
    threshold_for_f1,
    threshold_for_recall,
)
from mambaadv2.calibrate.pooled import pooled_p_value, pooled_threshold
from mambaadv2.calibrate.recorded import (
    recorded_calibration,
    recorded_labelled,
    threshold_sentence,
)
from mambaadv2.calibrate.regions import Region, RegionRule, map_threshold, regions
from mambaadv2.calibrate.suspects import suspects
from mambaadv2.calibrate.watch import DriftAlarm, StreamWatch

__all__ = [
    "FALSE_ALARM_RATE",
    "ClassCalibration",
    "ColourScale",
    "DriftAlarm",
    "DriftState",
    "DriftWatch",
    "Kind",
    "LabelledScores",
    "LabelledThreshold",
    "Region",
    "RegionRule",
    "StreamWatch",
    "adjusted_p_values",
    "assumed_limits",
    "at_most",
    "calibrate_classes",
    "colour_marks",
    "colour_scale",
    "conformal_threshold",
    "cross_guarantee",
    "cross_p_values",
    "discoveries",
    "false_alarm_bound",
    "false_alarm_range",
    "largest_rank",
    "map_threshold",
    "needed_images",
    "p_values",
    "pooled_p_value",
    "pooled_threshold",
    "recorded_calibration",
    "recorded_labelled",
    "regions",
    "require_aim",
    "shortage",
    "suspects",
    "threshold_for_aim",
    "threshold_for_cost",
    "threshold_for_f1",
    "threshold_for_recall",
    "threshold_sentence",
    "within",
]
