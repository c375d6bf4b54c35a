# SPDX-License-Identifier: Apache-2.0
"""Two stages: every setting on the tuning seed, then of each method the one that was chosen on the other seeds."""

from pathlib import Path

from ..report.sweep.means import selection_of
from .collect import collect, variant_of
from .expand import Run
from .manifest import rows_of
from .progress import DONE, privacy_done, state_of
from .spec import Spec


def planned(spec: Spec, runs: list[Run], folder: Path) -> list[Run]:
    """What is to be run as far as that is known: with two stages, the tuning seed's runs, and of methods whose tuning
    is finished the others at the setting that the sweep's rule chose.

    Args:
        spec ([`Spec`]): of the sweep.
        runs (`list[Run]`): all that it may come to.
        folder (`Path`): of the sweep.
    """
    if spec.stages == 1:
        return runs
    first = [run for run in runs if run.tuning]
    open_ = {run.label for run in first if state_of(run) != DONE or not privacy_done(run)}
    tuned = [run for run in first if run.label not in open_]
    if not tuned:
        return first
    found = collect(folder, (rows_of(folder, tuned), spec.settings()))
    chosen = {(point.run["label"], point.run["variant"]) for point in selection_of(found)[3].points}
    return first + [run for run in runs if not run.tuning and (run.label, variant_of(run.setting)) in chosen]
