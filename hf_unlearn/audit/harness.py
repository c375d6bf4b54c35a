# SPDX-License-Identifier: Apache-2.0
"""Tasks of lm-eval (the LM Evaluation Harness) on a model that is loaded already, beside an audit."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from .as_saved import as_saved
from .result import MetricResult, finite


# Our own task files, for `lm_eval --include_path` too.
TASKS = Path(__file__).parents[1] / "lm_eval_tasks"


def check_tasks(tasks: Sequence[str]) -> None:
    """Refuses tasks that cannot be run.

    Raises:
        `ValueError`: if lm-eval is not installed, or knows no such task.
    """
    if find_spec("lm_eval") is None:
        raise ValueError(f"The tasks {', '.join(tasks)} need lm-eval. Run `pip install 'hf-unlearn[lm-eval]'`.")
    known = _manager(_ours(tasks)).all_tasks
    for task in tasks:
        if task not in known:
            near = get_close_matches(task, known, n=3)
            hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
            raise ValueError(f"lm-eval knows no task {task!r}.{hint} `lm_eval ls tasks` lists them.")


def run_tasks(
    model: torch.nn.Module,
    tokenizer: Any,
    tasks: Sequence[str],
    *,
    chat: bool | None = None,
    metadata: Mapping[str, Any] | None = None,
    limit: int | None = None,
    batch_size: int = 8,
) -> dict[str, MetricResult]:
    """Metrics of lm-eval's tasks, by lm-eval's own definitions.

    Args:
        model (`transformers.PreTrainedModel` or `peft.PeftModel`):
            In one piece, on one device; its mode is left as found.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer.
        tasks (`Sequence[str]`):
            Tasks or groups: lm-eval's (`mmlu`, `bbh`, `truthfulqa_mc1`, `triviaqa`, ...; their rows come from the
            Hub) or ours (`hf-unlearn tasks`).
        chat (`bool`, *optional*):
            Whether prompts go through the chat template; by default if the tokenizer has one.
        metadata (`Mapping`, *optional*):
            What our own tasks read: `rwku_path`, `rwku_targets`, `tofu_path`, `muse_path`, `tokenizer`.
        limit (`int`, *optional*):
            At most so many rows a task.
        batch_size (`int`):
            Rows at a time.

    Returns:
        `dict[str, MetricResult]`: `"<task>/<metric>"`; the interval is 1.96 of lm-eval's standard errors.

    Raises:
        `ValueError`: for tasks that lm-eval does not know, or if it is not installed.
    """
    check_tasks(tasks)
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    chat = tokenizer.chat_template is not None if chat is None else chat
    given = {"chat": chat, **(metadata or {})}
    manager = TaskManager(include_path=str(TASKS), include_defaults=not _ours(tasks), metadata=given)
    with as_saved(model):
        found = simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
            tasks=list(tasks),
            task_manager=manager,
            limit=limit,
            apply_chat_template=chat,
            log_samples=False,
            # Training that goes on afterwards draws from these generators.
            random_seed=None,
            numpy_random_seed=None,
            torch_random_seed=None,
        )
    return {name: result for task in tasks for name, result in _metrics(found, task).items()}


@lru_cache(maxsize=2)
def _manager(ours: bool):
    """The tasks that there are. Reading lm-eval's own takes some twenty seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(TASKS), include_defaults=not ours)


def _ours(tasks: Sequence[str]) -> bool:
    return set(tasks) <= set(_manager_of_ours())


@lru_cache(maxsize=1)
def _manager_of_ours() -> tuple[str, ...]:
    return tuple(_manager(True).all_tasks)


def _metrics(found: Mapping[str, Any], task: str) -> dict[str, MetricResult]:
    """A task's metrics; of a group without any, those of what is in it."""
    parts = found.get("group_subtasks", {}).get(task) or []
    numbers = found.get("groups", {}).get(task) or found["results"].get(task) or {}
    keys = [key for key in numbers if "," in key and "_stderr," not in key]
    if not keys:
        return {name: result for part in parts for name, result in _metrics(found, part).items()}
    about = f"lm-eval {found.get('lm_eval_version', '')}, {_shots(found, task)}"
    results = {}
    for key in keys:
        metric, how = key.split(",", 1)
        name = metric if how == "none" else f"{metric}_{how.replace('-', '_')}"
        value, error = finite(numbers[key]), numbers.get(f"{metric}_stderr,{how}")
        error = finite(error) if isinstance(error, (int, float)) else None
        known = value is not None and bool(error)
        results[f"{task}/{name}"] = MetricResult(
            name,
            value,
            _count(found, task),
            _direction(found, task, metric),
            interval=(value - 1.96 * error, value + 1.96 * error) if known else None,
            interval_method="normal, standard error of lm-eval" if known else None,
            variant=about,
        )
    return results


def _leaves(found: Mapping[str, Any], task: str) -> list[str]:
    parts = found.get("group_subtasks", {}).get(task) or []
    return [leaf for part in parts for leaf in _leaves(found, part)] if parts else [task]


def _count(found: Mapping[str, Any], task: str) -> int:
    sizes = found.get("n-samples", {})
    return sum(sizes[leaf]["effective"] for leaf in _leaves(found, task) if leaf in sizes)


def _shots(found: Mapping[str, Any], task: str) -> str:
    shots = {found.get("n-shot", {}).get(leaf) for leaf in _leaves(found, task)}
    return ", ".join(f"{n}-shot" for n in sorted(n for n in shots if n is not None))


def _direction(found: Mapping[str, Any], task: str, metric: str) -> str:
    better = {found.get("higher_is_better", {}).get(leaf, {}).get(metric) for leaf in _leaves(found, task)}
    return {True: "higher", False: "lower", None: "none"}[better.pop() if len(better) == 1 else None]
