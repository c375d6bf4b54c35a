# SPDX-License-Identifier: Apache-2.0
"""Modules under the names that they had before: importing one gives the module of today, with a warning."""

import sys
import warnings
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec


# Old name -> name of today, below the package. What is below a module of the table moved with it.
MOVED = {
    "activations": "models.activations",
    "align": "methods.align_then_unlearn",
    "audit.backdoor_conditions": "audit.backdoor.conditions",
    "audit.backdoor_inside": "audit.backdoor.inside",
    "audit.backdoor_paired": "audit.backdoor.paired",
    "audit.backdoor_probes": "audit.backdoor.probes",
    "audit.backdoor_sets": "audit.backdoor.probe_sets",
    "audit.backdoor_store": "audit.backdoor.result",
    "audit.muse_data": "audit.muse.data",
    "audit.muse_privleak": "audit.muse.privleak",
    "audit.rwku_fluency": "audit.rwku.fluency",
    "audit.rwku_members": "audit.rwku.members",
    "audit.rwku_overlap": "audit.rwku.overlap",
    "audit.vqa_cka": "audit.vqa.cka",
    "audit.vqa_rows": "audit.vqa.predictions",
    "classify": "families.classifier",
    "classify.rows": "families.classifier.predictions",
    "cli.arguments": "runs.arguments",
    "cli.assemble": "runs.assemble",
    "cli.audit_cache": "runs.audit_cache",
    "cli.audits": "runs.suite_audits",
    "cli.field_names": "runs.field_names",
    "cli.final_audits": "runs.final_audits",
    "cli.help": "runs.help",
    "cli.launch": "runs.launch",
    "cli.methods_named": "runs.methods_named",
    "cli.models": "audit.checkpoints",
    "cli.output": "runs.output",
    "cli.parser": "runs.parser",
    "cli.picture_audit": "runs.picture_audit",
    "cli.places": "places",
    "cli.prepare": "runs.prepare",
    "cli.quick": "runs.quick",
    "cli.recipe": "runs.recipe",
    "cli.report_runs": "runs.finished",
    "cli.run_backdoor": "runs.backdoor",
    "cli.sets": "data.sets",
    "config": "training.config",
    "data.rwku.fixture": "data.worlds.rwku.fixture",
    "data.rwku.load": "data.load_rwku",
    "data.rwku.world": "data.worlds.rwku.world",
    "data.synthetic": "data.worlds.people",
    "data.synthetic.cache": "data.worlds.folders",
    "data.vqa.world": "data.worlds.pictures",
    "data.vqa.world.rows": "data.worlds.pictures.splits",
    "evaluation_rows": "training.evaluation_rows",
    "forward.predicted": "fused.predicted",
    "forward.rows": "forward.role_rows",
    "fused.rows": "fused.tile_rows",
    "methods.fisher_config": "methods.fisher.config",
    "methods.fisher_noise": "methods.fisher.noise",
    "methods.layer_choice": "models.layer_choice",
    "methods.mu_align_config": "methods.mu_align.config",
    "methods.mu_align_noise": "methods.mu_align.noise",
    "methods.mu_align_short": "methods.mu_align.short",
    "methods.mu_align_tails": "methods.mu_align.tails",
    "methods.mu_align_terms": "methods.mu_align.terms",
    "methods.rmu_movement": "methods.rmu.movement",
    "methods.scrub_config": "methods.scrub.config",
    "methods.scrub_phases": "methods.scrub.phases",
    "methods.scrub_rewind": "methods.scrub.rewind",
    "methods.gradient_conflict": "addons.gradient_conflict",
    "methods.scrub_warmup": "methods.scrub.warmup",
    "methods.sensitive_rows": "methods.amnesiac.sensitive_rows",
    "methods.step_deltas": "methods.amnesiac.step_deltas",
    "methods.step_record": "methods.amnesiac.step_record",
    "other_arguments": "training.other_arguments",
    "report.backdoor_figure": "report.backdoor.figure",
    "report.gates_numbers": "report.gates.numbers",
    "report.gates_spec": "report.gates.spec",
    "report.gates_view": "report.gates.view",
    "report.privacy_figures": "report.privacy.figures",
    "report.privacy_markdown": "report.privacy.markdown",
    "report.privacy_table": "report.privacy.table",
    "report.privacy_view": "report.privacy.view",
    "report.sweep_curves": "report.sweep.curves",
    "report.sweep_figures": "report.sweep.figures",
    "report.sweep_long": "report.sweep.long_form",
    "report.sweep_looks": "report.sweep.looks",
    "report.sweep_numbers": "report.sweep.means",
    "report.sweep_privacy_figures": "report.sweep.privacy_figures",
    "report.sweep_rules": "report.sweep.rules",
    "report.sweep_tables": "report.sweep.tables",
    "running": "training",
    "stored.reference": "reference.cached",
    "stored.rows": "stored.row_cache",
    "trainer": "training.trainer",
    "unused": "training.unused",
    "value_norms": "addons.value_norms",
}


class _Moved(MetaPathFinder, Loader):
    def find_spec(self, fullname, path=None, target=None):
        return ModuleSpec(fullname, self) if today(fullname) else None

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        name = today(module.__name__)
        warnings.warn(f"{module.__name__} is {name} now.", DeprecationWarning, stacklevel=2)
        # The import system takes what stands here afterwards.
        sys.modules[module.__name__] = import_module(name)


def today(fullname: str) -> str | None:
    """Today's full name of a module that moved, by its full name of before."""
    package, _, name = fullname.partition(".")
    if package != __package__:
        return None
    old = next((old for old in _LONGEST_FIRST if name == old or name.startswith(f"{old}.")), None)
    return None if old is None else f"{package}.{MOVED[old]}{name[len(old) :]}"


_LONGEST_FIRST = sorted(MOVED, key=len, reverse=True)


def install() -> None:
    """Before the finders of files: a package that moved still has a folder, in which they would look."""
    if not any(isinstance(finder, _Moved) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Moved())
