# SPDX-License-Identifier: Apache-2.0
"""What every kind of audit is: settings, a check before any model is loaded, a measurement, and how it reads."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

from ..data.qa import QAFormat
from ..files import read_json, write_json
from .result import MetricResult, check_saved


class SavedResult:
    """What a dataclass of one model's results needs to be JSON both ways: `metrics`, `settings`, and further fields.

    Attributes:
        kind (`str`): in the file's `<kind>_version`, and in errors.
        version (`int`): of the file.
    """

    kind: ClassVar[str]
    version: ClassVar[int] = 1
    metrics: dict[str, MetricResult]
    settings: dict[str, Any]

    def values(self) -> dict[str, float | None]:
        """The bare numbers by metric; `None` for what is undefined or unresolved."""
        return {name: result.value for name, result in self.metrics.items()}

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON holds it."""
        metrics = {name: result.to_dict(per_item=True) for name, result in self.metrics.items()}
        more = {part.name: getattr(self, part.name) for part in fields(self)}
        return {f"{self.kind}_version": self.version, "settings": self.settings, **more, "metrics": metrics}

    @classmethod
    def from_dict(cls, saved: dict[str, Any]):
        """The result that `to_dict` wrote.

        Raises:
            `ValueError`: for another kind's, another version's, or one that lacks a part.
        """
        needed = [part.name for part in fields(cls) if part.name not in cls.optional_parts()]
        check_saved(saved, cls.kind, cls.version, needed)
        metrics = {name: MetricResult.from_dict(cls.metric_name(name), m) for name, m in saved["metrics"].items()}
        return cls(**{part.name: saved.get(part.name) for part in fields(cls)} | {"metrics": metrics})

    @classmethod
    def optional_parts(cls) -> Sequence[str]:
        """Fields that a file may lack."""
        return ()

    @staticmethod
    def metric_name(key: str) -> str:
        """A metric's own name of its key: `"probability"` of `"forget/probability"`."""
        return key.rsplit("/", 1)[-1]

    def compare(self, retrained: Any) -> dict[str, MetricResult]:
        """What the retrained model's result (and, for kinds that measure it, the original's) adds to `metrics`;
        nothing where a kind does not compare."""
        return {}

    def save(self, path: str | Path, **more: Any) -> Path:
        """Writes the result to a JSON file; `more` keys come first."""
        return write_json(path, {**more, **self.to_dict()}, indent=1, ensure_ascii=False, allow_nan=False)

    @classmethod
    def load(cls, path: str | Path):
        """Reads a result that `save` wrote.

        Raises:
            `ValueError`: in one line, where there is none or a damaged one.
        """
        if not Path(path).is_file():
            what = cls.kind.replace("_", " ")
            raise ValueError(f"No {what} at {path}: give the JSON file that `{cls.__name__}.save` wrote.")
        return cls.from_dict(read_json(path, "Audit the checkpoint again."))


@dataclass
class AuditResult(SavedResult):
    """What an audit measured of one model.

    Args:
        metrics (`dict[str, MetricResult]`):
            By name.
        settings (`dict`):
            What the numbers depend on besides the model: models whose settings differ are not compared.
        cost (`dict`):
            What it took, such as `seconds` and `tokens`.
    """

    kind: ClassVar[str] = "audit_result"

    metrics: dict[str, MetricResult]
    settings: dict[str, Any] = field(default_factory=dict)
    cost: dict[str, Any] = field(default_factory=dict)


@dataclass
class Prepared:
    """What an audit needs besides models, found and checked before any is loaded.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): the models', or a classifier's processor.
        rows (`Mapping[str, Sequence[dict]]`): by what they are.
    """

    tokenizer: Any
    rows: Mapping[str, Sequence[Mapping[str, Any]]]

    @property
    def beside(self) -> dict[str, Any]:
        """What results depend on beside `rows`, by name; JSON values."""
        return {}


@dataclass
class Context:
    """What a measurement is given beside the model.

    Args:
        load (`Callable[[str], Module]`):
            Loads another model that the arguments name.
        retrained (`Callable[[], Module]`, *optional*):
            Loads the retrained model, where it is not measured itself or is read for others.
        original (`Callable[[], Module]`, *optional*):
            Loads the model before unlearning, where it is read for others.
        accelerator (`accelerate.Accelerator`, *optional*):
            Its processes share the work, for kinds that do so.
        progress (`bool`):
            Progress bars.
        is_retrained (`bool`):
            Whether the model is the retrained one.
    """

    load: Callable[[str], Any]
    retrained: Callable[[], Any] | None = None
    original: Callable[[], Any] | None = None
    accelerator: Any = None
    progress: bool = True
    is_retrained: bool = False


class AuditKind(ABC):
    """One kind of audit. From its line in `AUDITS` follow the command `hf-unlearn audit <name>`, the recipe's
    `audits: {<name>: {...}}`, columns of sweeps, a section of reports, gates on `<name>/<metric>` and the card's
    lines.

    Attributes:
        name (`str`):
            In `AUDITS`.
        arguments (`type`):
            Dataclass of the fields of the command and of the recipe's block; see
            [`~hf_unlearn.audit.arguments.ModelArguments`].
        result (`type`):
            What `measure` returns: a [`SavedResult`].
        when (`tuple[str]`):
            Of a run: `"before"` (the target) and `"after"` (what came of it).
        retrained_is_measured (`bool`):
            Whether the retrained model is audited itself; otherwise `measure` is given a function that loads it.
        original_is_measured (`bool`):
            Whether the model before unlearning (`original_model_name_or_path`) is audited too, and results are
            compared with it: `result.compare(retrained, original)`.
        shares_work (`bool`):
            Whether the command may run on several processes.
        kept (`bool`):
            Whether what was measured of a local checkpoint is kept and read again.
        reads_others (`bool`):
            Whether what is measured of a model depends on the original and the retrained one, too.
        called (`str`):
            What a model in the kind's file is, beside `"retrained"`.
        own (`tuple[str]`):
            Fields that a recipe's block cannot give: they are each run's own.
        not_taken (`tuple[str]`):
            Fields that a recipe's block does not take over from the recipe.
    """

    name: ClassVar[str]
    arguments: ClassVar[type]
    result: ClassVar[type] = AuditResult
    when: ClassVar[tuple[str, ...]] = ("before", "after")
    retrained_is_measured: ClassVar[bool] = True
    original_is_measured: ClassVar[bool] = False
    shares_work: ClassVar[bool] = False
    kept: ClassVar[bool] = True
    reads_others: ClassVar[bool] = False
    called: ClassVar[str] = "audited"
    own: ClassVar[tuple[str, ...]] = ("model_name_or_path", "model_revision", "output_dir")
    not_taken: ClassVar[tuple[str, ...]] = ("seed",)

    @property
    def view(self):
        """How results read: an [`~hf_unlearn.audit.view.AuditView`], the `VIEW` of the folder's `view.py`."""
        return import_module(f"{type(self).__module__.rpartition('.')[0]}.view").VIEW

    @abstractmethod
    def prepare(self, args: Any, qa: Any) -> Prepared:
        """Finds and checks everything but models' weights.

        Args:
            args: an instance of `arguments`.
            qa ([`~hf_unlearn.data.qa.QAFormat`]): the form of questions and answers.

        Raises:
            `ValueError`: for what cannot work.
        """

    @abstractmethod
    def measure(self, model: Any, args: Any, prepared: Prepared, context: Context) -> Any:
        """Measures one model.

        Args:
            model (`torch.nn.Module`): any checkpoint, on its device.
            args, prepared: as in `prepare`.
            context ([`Context`]): what else may be needed.

        Returns:
            `result`
        """

    def models(self, args: Any) -> list[str]:
        """What the command audits, beside the retrained model."""
        return [args.model_name_or_path]

    def default_folder(self, args: Any) -> str:
        """Where the command writes, if it is not said."""
        return f"runs/audit/{Path(args.model_name_or_path).name}"

    def taken_over(self, recipe: Mapping[str, Any]) -> dict[str, Any]:
        """What a recipe's block takes over from the recipe: fields of the same name."""
        known = {part.name for part in (*fields(self.arguments), *fields(QAFormat))} - {*self.own, *self.not_taken}
        return {name: value for name, value in recipe.items() if name in known and value is not None}

    def of_run(self, recipe: Mapping[str, Any], folder: str) -> dict[str, Any]:
        """The fields in `own`, of a run of this recipe in this folder."""
        own = {"model_name_or_path": recipe["model_name_or_path"], "output_dir": f"{folder}/{self.name}"}
        return own | {"model_revision": recipe["model_revision"]} if "model_revision" in recipe else own

    def read_too(self, args: Any) -> list[str]:
        """Models that are read for what is measured, beside the original and the retrained one."""
        return []

    def of_target(self, args: Any) -> Any:
        """The arguments of a run while only its target is there."""
        return args

    def notes(self, args: Any) -> list[str]:
        """What a reader of the numbers must know."""
        return []
