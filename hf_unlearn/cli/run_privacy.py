# SPDX-License-Identifier: Apache-2.0
"""The membership-inference audit of a run: the retrained model and the target before training, the result after."""

from collections.abc import Callable
from pathlib import Path

from accelerate import PartialState

from ..modeling import whole_weights
from ..report.privacy import write_privacy_report
from ..report.privacy_table import add_privacy
from .audit_privacy import Prepared, attacker, described, entry, prepare
from .privacy_arguments import PrivacyArguments
from .privacy_fields import privacy_fields, read_privacy
from .recipe import Recipe


class RunPrivacy:
    """What a recipe's `privacy` asks for. The first process attacks, the others wait.

    Args:
        args ([`PrivacyArguments`]): of the audit; its models are the target and the run's folder.
        prepared ([`~audit_privacy.Prepared`]): rows and tokenizer.
        progress (`bool`): progress bars.
    """

    def __init__(self, args: PrivacyArguments, prepared: Prepared, progress: bool):
        self.args, self.prepared, self.progress = args, prepared, progress
        self._attack: Callable | None = None
        self._gold = self._target = None

    def before(self) -> None:
        """Attacks the models that are there before training: what an audit refuses is told now, not after hours."""
        if PartialState().is_main_process:
            with whole_weights():
                self._attack = attacker(self.args, self.prepared, self.progress)
                if self.args.retrained_model_name_or_path is not None:
                    self._gold = self._attack(self.args.retrained_model_name_or_path)
                self._target = self._attack(self.args.models[0], self._gold)
        PartialState().wait_for_everyone()

    def after(self, report_models: list[dict], name: str) -> None:
        """Attacks the run's result; writes `privacy/` into its folder and adds to the models of its report.

        Args:
            report_models (`list[dict]`): of a `report.json`.
            name (`str`): what the run is called.
        """
        target, result = self.args.models
        with whole_weights():
            found = self._attack(result, self._gold)
        models = [entry("target", "attacked", target, self._target), entry(name, "attacked", result, found)]
        if self._gold is not None:
            models.insert(0, entry("retrained", "retrained", self.args.retrained_model_name_or_path, self._gold))
        report = described(self.args, models)
        write_privacy_report(report, self.args.output_dir)
        add_privacy(report_models, report)


def run_privacy(recipe: Recipe) -> RunPrivacy | None:
    """The membership-inference audit that a recipe asks for; `None` where it asks for none.

    Raises:
        `ValueError`: for settings, rows or models that cannot work; no model is loaded for that.
    """
    if recipe.run.privacy is None:
        return None
    if recipe.model.model_revision not in (None, "main"):
        raise ValueError(
            f"privacy: models are attacked as they are in their main revision, not {recipe.model.model_revision!r}. "
            "Give `model_name_or_path` a folder with that one."
        )
    folder = Path(recipe.training.output_dir)
    args, qa = read_privacy(privacy_fields(recipe.resolved(), recipe.run.privacy, folder))
    target, result = args.models
    # The result is not there yet.
    args.models = [target]
    try:
        prepared = prepare(args, qa)
    except ValueError as error:
        raise ValueError(f"privacy: {error}") from error
    args.models = [target, result]
    return RunPrivacy(args, prepared, progress=not recipe.training.disable_tqdm)
