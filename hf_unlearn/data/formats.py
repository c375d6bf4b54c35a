# SPDX-License-Identifier: Apache-2.0
"""From one example of any TRL dataset type to `input_ids` and `labels`.

| columns                    | trained tokens (labels other than -100)                    |
|----------------------------|------------------------------------------------------------|
| `input_ids` (+ `labels`)   | as given; every token where `labels` is absent (without    |
|                            | those that an `attention_mask` leaves out)                 |
| `messages`                 | every assistant turn                                       |
| `prompt`, `completion`     | the completion (strings or lists of messages)              |
| `text`                     | every token                                                |

As in TRL, a conversational row may bring `chat_template_kwargs`.
"""

import logging
from collections.abc import Iterable, Mapping
from typing import Any


logger = logging.getLogger(__name__)

IGNORE_INDEX = -100
ALLOWED_COLUMNS = "`input_ids` (+ `labels`), `messages`, `prompt` + `completion`, or `text`"


def dataset_type(columns: Iterable[str]) -> str:
    """Names the dataset type of a set of columns: `"tokenized"`, `"messages"`, `"prompt_completion"` or `"text"`.

    Raises:
        `ValueError`: if no usable column is there.
    """
    columns = set(columns)
    if "input_ids" in columns:
        return "tokenized"
    if "messages" in columns:
        return "messages"
    if {"prompt", "completion"} <= columns:
        return "prompt_completion"
    if "text" in columns:
        return "text"
    raise ValueError(f"No usable column among {sorted(columns)}. Give {ALLOWED_COLUMNS}.")


def encode_prompt(example: Mapping[str, Any], tokenizer) -> list[int]:
    """Tokens of an example's `prompt`, ready for generation."""
    prompt = example["prompt"]
    if not isinstance(prompt, str):
        return _template(prompt, tokenizer, example, generation=True)
    ids = list(tokenizer(prompt)["input_ids"])
    # Tokenizers that close every text with EOS would tell the model that the answer is over before it began.
    return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids


def encode(example: Mapping[str, Any], tokenizer, max_length: int | None = None) -> dict[str, list[int]]:
    """Encodes one example; `labels` are `-100` wherever a token is not to be trained on.

    Text and prompt-completion strings are closed with EOS; conversations end as their chat template ends them. What is
    longer than `max_length` tokens loses its end.

    Args:
        example (`Mapping`):
            One row of any supported type (see the module's table).
        tokenizer (`PreTrainedTokenizerBase`):
            Its chat template is used for conversational rows.
        max_length (`int`, *optional*):
            Longest row in tokens.

    Returns:
        `dict`: `input_ids` and `labels`, two lists of one length.
    """
    kind = dataset_type(name for name, value in example.items() if value is not None)
    if kind == "tokenized":
        ids, labels = _tokenized(example)
    elif kind == "messages":
        ids, labels = _encode_messages(example, tokenizer)
    elif kind == "prompt_completion":
        ids, labels = _encode_prompt_completion(example, tokenizer)
    else:
        ids = _with_eos(tokenizer(example["text"])["input_ids"], tokenizer)
        labels = list(ids)
    return {"input_ids": ids[:max_length], "labels": labels[:max_length]}


def _tokenized(example: Mapping[str, Any]) -> tuple[list[int], list[int]]:
    """Tokens and labels as given, without what `attention_mask` says is padding."""
    ids = list(example["input_ids"])
    columns = {"labels": ids, "attention_mask": [1] * len(ids)}
    columns = {name: own if example.get(name) is None else list(example[name]) for name, own in columns.items()}
    for name, values in columns.items():
        if len(values) != len(ids):
            raise ValueError(f"A row has {len(ids)} `input_ids` and {len(values)} `{name}`; give as many of each.")
    seen = [place for place, kept in enumerate(columns["attention_mask"]) if kept]
    return [ids[place] for place in seen], [columns["labels"][place] for place in seen]


def encode_dataset(dataset, tokenizer, max_length: int | None = None, name: str = "forget"):
    """Encodes every row of `dataset` and drops those in which no token is left to train on.

    Args:
        dataset (`datasets.Dataset` or `list[dict]`):
            Rows of one dataset type.
        tokenizer (`PreTrainedTokenizerBase`):
            Tokenizer of the model.
        max_length (`int`, *optional*):
            Longest row in tokens.
        name (`str`):
            What the rows are for; used in messages.

    Returns:
        `datasets.Dataset`: columns `input_ids` and `labels`, and `topic` where there is one.

    Raises:
        `ValueError`: if the dataset is missing, empty, streamed, has no usable column, or keeps no row.
    """
    dataset = as_dataset(dataset, name)
    dataset_type(dataset.column_names)
    encoded = dataset.map(
        lambda row: _cut(encode(row, tokenizer), max_length),
        remove_columns=[column for column in dataset.column_names if column != "topic"],
        desc=f"Tokenizing {name} rows",
    )
    cut = sum(encoded["cut"])
    encoded = encoded.remove_columns("cut")
    trained = [any(label != IGNORE_INDEX for label in row[1:]) for row in encoded["labels"]]
    kept = sum(trained)
    if not kept:
        raise ValueError(
            f"None of the {len(encoded)} {name} rows keeps a token to train on within max_length={max_length}: their "
            "prompts fill it, or all their labels are -100. Raise `max_length` or shorten the prompts."
        )
    if kept < len(encoded):
        logger.warning(
            "%d of %d %s rows are left out: no token to train on is left within max_length=%s.",
            len(encoded) - kept,
            len(encoded),
            name,
            max_length,
        )
        encoded = encoded.select([i for i, keep in enumerate(trained) if keep])
    if cut:
        logger.info(
            "%d of %d %s rows are longer than max_length=%d and lose their end.", cut, len(trained), name, max_length
        )
    return encoded


def _cut(row: dict[str, list[int]], max_length: int | None) -> dict[str, Any]:
    cut = max_length is not None and len(row["input_ids"]) > max_length
    return {**{name: values[:max_length] for name, values in row.items()}, "cut": cut}


def as_dataset(dataset, name: str):
    """The rows as a map-style `datasets.Dataset`, or one clear error that names the set."""
    from datasets import Dataset, IterableDataset

    if dataset is None:
        raise ValueError(f"No {name} rows were given. Pass `{name}_dataset`.")
    if isinstance(dataset, IterableDataset):
        raise ValueError(
            f"`{name}_dataset` is streamed, but pairing rows needs random access. Load it without `streaming=True`."
        )
    counted = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    if isinstance(dataset, Mapping) or not counted:
        splits = f" with {sorted(dataset)}" if isinstance(dataset, Mapping) else ""
        raise ValueError(
            f"`{name}_dataset` is a {type(dataset).__name__}{splits}. Pass a `datasets.Dataset` (one split) or a list "
            "of dicts."
        )
    if len(dataset) == 0:
        raise ValueError(f"The {name} set is empty. Give at least one row.")
    if isinstance(dataset, Dataset):
        return dataset
    rows = [dataset[i] for i in range(len(dataset))]
    if wrong := next((row for row in rows if not isinstance(row, Mapping)), None):
        raise ValueError(f"A row of `{name}_dataset` is a {type(wrong).__name__}. Pass rows that are dicts.")
    return Dataset.from_list(rows)


def chunk_documents(documents, tokenizer, max_length: int):
    """Cuts documents into pre-tokenised rows of at most `max_length` tokens; no row crosses a document's end.

    Every row begins as the tokenizer begins a text (BOS, if it sets one). A document's last row ends with EOS, unless
    the text fills that row.

    Args:
        documents (`Iterable[str]`):
            One string a document.
        tokenizer (`PreTrainedTokenizerBase`):
            Tokenizer of the model.
        max_length (`int`):
            Tokens a row at most, BOS and EOS included.

    Returns:
        `datasets.Dataset`: column `input_ids`.
    """
    from datasets import Dataset

    start = [tokenizer.bos_token_id] if _adds_bos(tokenizer) else []
    room = max_length - len(start)
    if room < 2:
        raise ValueError(f"max_length={max_length} leaves no room for text. Give at least {2 + len(start)}.")
    rows = []
    for document in documents:
        ids = _with_eos(tokenizer(document, add_special_tokens=False)["input_ids"], tokenizer)
        pieces = [ids[i : i + room] for i in range(0, len(ids), room)]
        # A row of one token has nothing to predict; one of EOS alone would teach that a text may be empty.
        rows.extend(start + piece for piece in pieces if piece != [tokenizer.eos_token_id] and len(start + piece) > 1)
    if not rows:
        raise ValueError("The documents hold no text. Give at least one non-empty document.")
    return Dataset.from_dict({"input_ids": rows})


def _encode_prompt_completion(example, tokenizer) -> tuple[list[int], list[int]]:
    prompt, completion = example["prompt"], example["completion"]
    if isinstance(prompt, str) != isinstance(completion, str):
        raise ValueError("`prompt` and `completion` must both be strings or both be lists of messages.")
    prompt_ids = encode_prompt(example, tokenizer)
    if isinstance(prompt, str):
        ids = _with_eos(tokenizer(prompt + completion)["input_ids"], tokenizer)
    else:
        ids = _template([*prompt, *completion], tokenizer, example)
    # Tokens may merge over the seam, so the completion begins where the two encodings part.
    start = _common_prefix(prompt_ids, ids)
    return ids, [IGNORE_INDEX] * start + ids[start:]


def _encode_messages(example, tokenizer) -> tuple[list[int], list[int]]:
    messages = example["messages"]
    ids = _template(messages, tokenizer, example)
    labels = [IGNORE_INDEX] * len(ids)
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        start = _common_prefix(_template(messages[:i], tokenizer, example, generation=True), ids) if i else 0
        stop = _common_prefix(_template(messages[: i + 1], tokenizer, example), ids)
        labels[start:stop] = ids[start:stop]
    return ids, labels


def _template(messages, tokenizer, example, generation: bool = False) -> list[int]:
    if tokenizer.chat_template is None:
        raise ValueError(
            "The rows are conversations, but the tokenizer has no chat template. Set `tokenizer.chat_template` (see "
            "`trl.clone_chat_template`), or give `prompt` and `completion` as strings."
        )
    encoded = tokenizer.apply_chat_template(
        list(messages),
        tokenize=True,
        add_generation_prompt=generation,
        return_dict=True,
        **(example.get("chat_template_kwargs") or {}),
    )
    return list(encoded["input_ids"])


def _with_eos(ids: list[int], tokenizer) -> list[int]:
    eos = tokenizer.eos_token_id
    return list(ids) if eos is None or (ids and ids[-1] == eos) else [*ids, eos]


def _adds_bos(tokenizer) -> bool:
    ids = tokenizer("a")["input_ids"]
    return bool(ids) and tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id


def _common_prefix(left: list[int], right: list[int]) -> int:
    n = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        n += 1
    return n
