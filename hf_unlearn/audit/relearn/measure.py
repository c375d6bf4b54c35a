# SPDX-License-Identifier: Apache-2.0
"""Does a little training bring back what was forgotten?"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

from ...cache import cache_root
from ...files import read_json, write_json
from ...models.wrappers import beside_weights
from ...stored.key import hash_json, hash_tensors
from ...versions import versions
from ..generation import pad_token_id
from ..robustness.kind import RobustnessKind
from ..robustness.measured import Measured, RowScores, mean_of
from ..robustness.weights import check_not_quantized, merged
from ..sets import rows_digest
from .arguments import RelearnArguments
from .finetune import Plan, finetune, trainable
from .rows import Attack, attack_rows, shuffled_rows


logger = logging.getLogger(__name__)
# Raised when a run measures more, or otherwise, than those that are kept.
VERSION = 1


class RelearnAudit(RobustnessKind):
    """Some steps of fine-tuning, at several learning rates and seeds, each from the model as it is. An adapter of the
    audited model is merged first."""

    name, arguments = "relearn", RelearnArguments

    def check(self, args: RelearnArguments, prepared) -> None:
        check_not_quantized(args)
        prepared.more["attacks"] = attack_rows(args, prepared)

    def attack(self, model, args: RelearnArguments, prepared, context) -> Iterator[Measured]:
        start = merged(model)
        weights = [hash_tensors(start.state_dict().items(), progress=context.progress), beside_weights(start)]
        runs = [*product(args.learning_rates, args.seeds)]
        for i, (rate, seed) in enumerate(runs):
            plan = Plan(rate, seed, args.max_steps, args.batch_size, args.warmup_steps, args.adapter, args.lora_r,
                        args.lora_alpha)  # fmt: skip
            attack: Attack = prepared.more["attacks"][seed]
            desc = f"Relearning {i + 1}/{len(runs)}: learning_rate {rate:g}, seed {seed}"

            def run(rows, which: Mapping[str, Sequence[int]], plan=plan, desc=desc) -> dict[int, dict[str, Any]]:
                return self._run(start, rows, which, plan, desc, weights, args, prepared, context)

            asked = {"forget": attack.tested, "retain": attack.retain}
            asked |= {} if attack.apart else {"holdout": attack.holdout}
            main = run(attack.shown, asked)
            apart = run(attack.apart, {"holdout": attack.holdout}) if attack.apart else {}
            mixed = run(shuffled_rows(args, prepared, seed), {"forget": attack.tested}) if args.shuffled else {}
            for step, found in main.items():
                one = Measured(f"learning_rate {rate:g}", found["forget"], seed=seed, step=step)
                one.retain = found.get("retain")
                one.holdout = apart.get(step, found).get("holdout")
                one.more = {"attack": attack.about, "changed": found["changed"], "merged": start is not model}
                if mixed:
                    one.more["shuffled"] = {name: mean_of(mixed[step]["forget"].values(name)) for name in _PLAIN}
                if failed := found.get("failed") or apart.get(step, {}).get("failed"):
                    one.more["failed"] = failed
                yield one

    def _run(
        self, model, rows, which: Mapping[str, Sequence[int]], plan: Plan, desc, weights, args, prepared, context
    ) -> dict[int, dict[str, Any]]:
        """What one run finds after each step that is evaluated: read, if it was made before. A long attack that was
        ended goes on with its next run."""
        about = {
            "version": VERSION,
            "weights": weights,
            "plan": asdict(plan),
            "rows": rows_digest(rows),
            "asked": {name: [[*places], rows_digest(prepared.rows.get(name, []))] for name, places in which.items()},
            "steps": args.eval_steps,
            "batch": args.audit_batch_size,
            "device": next(model.parameters()).device.type,
            "versions": versions(),
        }
        path = cache_root() / "relearn_runs" / f"{hash_json(about)[:32]}.json"
        if (found := _read(path)) is None:
            found = self._trained(model, rows, which, plan, desc, args, prepared, context)
            write_json(path, {"about": about, "steps": _plain(found)})
        return found

    def _trained(self, model, rows, which, plan: Plan, desc, args, prepared, context) -> dict[int, dict[str, Any]]:
        found: dict[int, dict[str, Any]] = {}
        with trainable(model, plan) as (trained, parameters):

            def evaluate(step: int, changed: int) -> None:
                found[step] = {"changed": changed}
                for name, places in which.items():
                    if places:
                        found[step][name] = self.scored(
                            trained, args, prepared, replace(context, progress=False), name, places
                        )

            ended = finetune(trained, parameters, rows, plan, evaluate, args.eval_steps,
                             pad_token_id(prepared.tokenizer), context.progress, desc)  # fmt: skip
        still = ended is None and not found[args.eval_steps[-1]]["changed"]
        for step in args.eval_steps:
            if ended is not None and step >= ended:
                nothing = {name: RowScores.undefined(places) for name, places in which.items() if places}
                found[step] = {"changed": None, **nothing, "failed": f"training diverged at step {ended}"}
            elif still:
                found[step]["failed"] = f"training at learning rate {plan.learning_rate:g} changed no weight"
        return found


_PLAIN = ("probability", "exact_match")


def _plain(found: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    return {
        str(step): {key: asdict(value) if isinstance(value, RowScores) else value for key, value in one.items()}
        for step, one in found.items()
    }


def _read(path: Path) -> dict[int, dict[str, Any]] | None:
    """The steps of a run that was kept; a file that cannot be read is made anew."""
    if not path.is_file():
        return None
    try:
        saved = read_json(path)["steps"]
    except (ValueError, KeyError, TypeError) as error:
        logger.warning("A kept run of the attack is made anew: %s", error)
        return None
    return {
        int(step): {key: RowScores(**value) if isinstance(value, dict) else value for key, value in one.items()}
        for step, one in saved.items()
    }
