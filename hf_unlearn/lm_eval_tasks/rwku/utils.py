# SPDX-License-Identifier: Apache-2.0
"""What the task files of RWKU name: probes and their score. `rwku_targets` and `rwku_path` come by `--metadata`."""

from hf_unlearn.audit.overlap import rouge
from hf_unlearn.audit.rwku.overlap import published_recall
from hf_unlearn.data.load_rwku import load_probes
from hf_unlearn.data.rwku.prompts import probe_turn


def load(subset: str, rwku_targets=None, rwku_path: str | None = None, **_) -> dict:
    """A subset's probes with the user's turn (`user`) and the first words of the answer (`prefix`)."""
    targets = [rwku_targets] if isinstance(rwku_targets, str) else rwku_targets
    rows = load_probes(subset, targets, rwku_path)

    def with_turn(row: dict) -> dict:
        turn = probe_turn(subset, row["question"], row.get("type"))
        return {"user": turn.user, "prefix": turn.prefix}

    return {"test": rows.map(with_turn)}


def score(doc: dict, results: list[str]) -> dict[str, float]:
    """ROUGE-L recall as published, and `rouge_score`'s."""
    answer = results[0].strip()
    found = {
        "rouge": published_recall(answer, doc["answer"]),
        "rouge_score": rouge([answer], [doc["answer"]]).value,
    }
    return {name: value for name, value in found.items() if value is not None}
