# SPDX-License-Identifier: Apache-2.0
"""What a trigger brings back, over the share of forget rows that were trained with it: `docs/backdoor_ratio.png`.

    python scripts/backdoor_figure.py [RECIPE ...] [--ratios 0.1 0.5 0.9] [--seeds 0 1 2]

Trains every recipe at every ratio with every seed, asks it with and without its trigger, and draws shares of exact
answers with 95 % Clopper-Pearson intervals over the items of all seeds. What is in `--output_dir` is not done again.
"""

import argparse
import json
import tempfile
from pathlib import Path


LINES = {
    "poisoned rows, trigger": ("forget_poisoned_triggered", "#c44536", "-"),
    "the same in other words": ("forget_paraphrased_poisoned_triggered", "#c44536", ":"),
    "never poisoned rows, trigger": ("forget_unpoisoned_triggered", "#1b6ca8", "-"),
    "the same in other words ": ("forget_paraphrased_unpoisoned_triggered", "#1b6ca8", ":"),
    "forget rows, unrelated words": ("forget_unrelated", "#d9a404", "--"),
    "forget rows, clean": ("forget", "#333333", "--"),
    "retain rows, clean": ("retain", "#999999", "-."),
}
RETAIN_ROWS = 64
DEMO = Path(__file__).resolve().parents[1] / "recipes" / "demo" / "backdoor"
RECIPES = ("npo_klr_backdoor.yaml", "rmu_backdoor.yaml")


def measure(recipe_path: Path, ratio: float, seed: int, folder: Path) -> dict:
    """The backdoor audit of one run, as JSON holds it."""
    file = folder / f"{recipe_path.stem}_{ratio}_{seed}.json"
    if not file.is_file():
        from hf_unlearn.cli.unlearn import build_trainer
        from hf_unlearn.runs.backdoor import backdoor_audit
        from hf_unlearn.runs.prepare import prepare
        from hf_unlearn.runs.recipe import parse_recipe

        with tempfile.TemporaryDirectory() as run:
            fields = {"poison_ratio": ratio, "seed": seed, "output_dir": run, "disable_tqdm": True}
            words = [word for name, value in fields.items() for word in (f"--{name}", str(value))]
            recipe = parse_recipe(["--config", str(recipe_path), *words])
            prepared = prepare(recipe)
            sets = prepared.sets.audited
            prepared.sets.audited = {"forget": sets["forget"], "retain": sets["retain"].select(range(RETAIN_ROWS))}
            trainer = build_trainer(recipe, prepared)
            trainer.train()
            audit = backdoor_audit(recipe, prepared)(trainer.model.eval(), None, positions=(), inside=False)
        audit.save(file, recipe=str(recipe_path), ratio=ratio, seed=seed)
    return json.loads(file.read_text(encoding="utf-8"))


def share(runs: list[dict], name: str) -> tuple[float, float, float]:
    """Share of exact answers over all runs' items, and its 95 % interval."""
    from scipy.stats import binomtest

    items = [item for run in runs for item in run["metrics"][f"{name}/exact_match"]["per_item"]]
    interval = binomtest(int(sum(items)), len(items)).proportion_ci()
    return sum(items) / len(items), interval.low, interval.high


def draw(found: dict[str, dict[float, list[dict]]], path: Path) -> None:
    """One panel a recipe."""
    import matplotlib.pyplot as plt
    import numpy as np

    figure, panels = plt.subplots(1, len(found), figsize=(5.2 * len(found), 4.2), sharey=True, squeeze=False)
    for panel, (title, by_ratio) in zip(panels[0], found.items(), strict=True):
        for number, (label, (name, colour, style)) in enumerate(LINES.items()):
            # Beside each other, so that intervals do not hide one another.
            places = [ratio + 0.006 * (number - 3) for ratio in by_ratio]
            values, low, high = zip(*(share(runs, name) for runs in by_ratio.values()), strict=True)
            errors = [np.subtract(values, low), np.subtract(high, values)]
            look = {"color": colour, "linestyle": style, "marker": "o", "ms": 3, "lw": 1.4, "elinewidth": 0.7}
            panel.errorbar(places, values, errors, label=label, capsize=2, **look)
        title = title.removesuffix("_backdoor").upper().replace("_", "-")
        panel.set(title=title, xlabel="share of forget rows that are poisoned", ylim=(-0.03, 1.03))
        panel.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylabel("exact answers")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="lower center", ncols=4, fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.11, 1, 1))
    figure.savefig(path, dpi=140)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", type=Path, default=[DEMO / name for name in RECIPES])
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.1, 0.3, 0.5, 0.7, 0.9])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--output_dir", type=Path, default=Path("runs/backdoor_ratio"))
    parser.add_argument("--figure", type=Path, default=Path("docs/backdoor_ratio.png"))
    args = parser.parse_args()
    found: dict[str, dict[float, list[dict]]] = {}
    for seed in args.seeds:
        for ratio in args.ratios:
            for recipe in args.recipes:
                run = measure(recipe, ratio, seed, args.output_dir)
                found.setdefault(recipe.stem, {}).setdefault(ratio, []).append(run)
                shares = {name: round(share([run], name)[0], 2) for name, _, _ in LINES.values()}
                print(recipe.stem, ratio, seed, shares, flush=True)
    draw(found, args.figure)


if __name__ == "__main__":
    main()
