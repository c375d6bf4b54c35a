# SPDX-License-Identifier: Apache-2.0
"""What the task files of MUSE name: few-shot questions and their score. `muse_path` comes by `--metadata`."""

from datasets import Dataset

from hf_unlearn.audit.muse.data import load_muse
from hf_unlearn.audit.muse.measure import knowmem_prompt
from hf_unlearn.audit.overlap import rouge


def load(corpus: str, role: str, muse_path: str | None = None, **_) -> dict:
    """KnowMem's questions of a corpus, each with the published prompt."""
    muse = load_muse(corpus, muse_path)
    prompts = [{**row, "prompt": knowmem_prompt(row["question"], muse.examples[role])} for row in muse.questions[role]]
    return {"test": Dataset.from_list(prompts)}


def score(doc: dict, results: list[str]) -> dict[str, float]:
    """ROUGE-L F1 without stemmer."""
    return {"knowmem": rouge([results[0].strip()], [doc["answer"]], measure="f1", stem=False).value}
