# SPDX-License-Identifier: Apache-2.0
"""What the task files of TOFU name: questions, answers and their scores. `tofu_path`, `chat` and `tokenizer` come by
`--metadata`."""

import math
from pathlib import Path

from hf_unlearn.audit.overlap import rouge
from hf_unlearn.data.benchmarks import TOFU_ID
from hf_unlearn.data.conversations import conversation_text
from hf_unlearn.data.formats import IGNORE_INDEX, encode
from hf_unlearn.data.qa import QAFormat
from hf_unlearn.data.sources import load_rows


def load(file: str, tofu_path: str | None = None, chat: bool = False, **_) -> dict:
    """Questions in the form that our suite gives them (`prompt`): as they are for a chat template, else in words."""
    rows = load_rows(TOFU_ID, file) if tofu_path is None else load_rows(str(Path(tofu_path) / f"{file}.json"))
    rows = rows.select_columns(["question", "answer"])
    form = QAFormat().prompt_template
    return {
        "test": rows.map(
            lambda row: {"prompt": row["question"] if chat else form.replace("{question}", row["question"])}
        )
    }


def load_scored(
    file: str, tofu_path: str | None = None, chat: bool = False, tokenizer: str | None = None, **given
) -> dict:
    """The same with the text that is scored (`completion`: the answer and what ends it) and its `tokens`."""
    from transformers import AutoTokenizer

    name = tokenizer or given.get("pretrained")
    if name is None:
        raise ValueError("Give the tokenizer's folder or Hub id: `--metadata '{\"tokenizer\": ...}'`.")
    words, qa = AutoTokenizer.from_pretrained(name), QAFormat(use_chat_template=chat)

    def with_completion(row: dict) -> dict:
        example = qa.example(row["question"], row["answer"], words)
        labels = encode(example, words)["labels"]
        if chat:
            text, ((start, _),) = conversation_text(example, words)
            completion = text[start:]
        else:
            completion = example["completion"] + words.eos_token
        return {"completion": completion, "tokens": sum(label != IGNORE_INDEX for label in labels)}

    return {"test": load(file, tofu_path, chat)["test"].map(with_completion)}


def score(doc: dict, results: list[str]) -> dict[str, float]:
    """ROUGE-L recall of an answer."""
    return {"rouge": rouge([results[0].strip()], [doc["answer"]]).value}


def score_probability(doc: dict, results: list[tuple[float, bool]]) -> dict[str, float]:
    """Probability of the answer, per token."""
    return {"probability": math.exp(results[0][0] / doc["tokens"])}
