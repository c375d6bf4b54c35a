# SPDX-License-Identifier: Apache-2.0
"""From one example of any TRL dataset type to `input_ids` and `labels`.

| columns                    | trained tokens (labels other than -100)                    |
|----------------------------|------------------------------------------------------------|
| `input_ids` (+ `labels`)   | as given; every token where `labels` is absent (without    |
|                            | those that an `attention_mask`, `completion_mask` or       |
|                            | `assistant_masks` leaves out)                              |
| `messages`                 | every assistant turn (`conversations`, ShareGPT's, too)    |
| `prompt`, `completion`     | the completion (strings or lists of messages)              |
| `text`                     | every token                                                |

As in TRL, a conversational row may bring `tools` and `chat_template_kwargs`; see
[`~hf_unlearn.data.conversations`]. What a model of text cannot take (pictures, packed rows) is refused.
"""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from .conversations import IGNORE_INDEX, common_prefix, conversation_tokens, prompt_tokens
from .messages import as_chatml, checked_messages, says_nothing
from .tables import as_dataset, check_text, mapped, naming, told


logger = logging.getLogger(__name__)

ALLOWED_COLUMNS = "`input_ids` (+ `labels`), `messages`, `prompt` + `completion`, or `text`"
MEDIA = ("image", "images", "pixel_values", "audio", "audios", "input_features", "video", "videos")
MASKS = ("completion_mask", "assistant_masks")


def dataset_type(columns: Iterable[str]) -> str:
    """Names the dataset type of a set of columns: `"tokenized"`, `"messages"`, `"prompt_completion"` or `"text"`.

    Raises:
        `ValueError`: if no usable column is there.
    """
    columns = set(columns)
    if "input_ids" in columns:
        return "tokenized"
    if columns & {"messages", "conversations"}:
        return "messages"
    if {"prompt", "completion"} <= columns:
        return "prompt_completion"
    if "text" in columns:
        return "text"
    advice = ""
    if {"chosen", "rejected"} <= columns:
        advice = " Preference data is split by `hf_unlearn.split_forget_retain`."
    elif {"question", "answer"} <= columns:
        advice = " Questions and answers become prompts by `QAFormat().dataset(rows, tokenizer)`."
    raise ValueError(f"No usable column among {sorted(columns)}. Give {ALLOWED_COLUMNS}.{advice}")


def row_type(example: Mapping[str, Any]) -> str:
    """The dataset type of a row; columns without a value do not count.

    Raises:
        `ValueError`: naming the columns that have no value, or that a model of text cannot be trained on.
    """
    columns = {name for name, value in example.items() if value is not None}
    for name in MEDIA:
        if name in columns and (not hasattr(example[name], "__len__") or len(example[name])):
            raise ValueError(
                f"The row has `{name}`, and language models are trained on text alone here. Leave the column out to "
                "train on the texts."
            )
    lacking = sorted({"prompt", "completion", "text", "messages", "input_ids"} & (set(example) - columns))
    try:
        return dataset_type(columns)
    except ValueError:
        if not lacking:
            raise
        names = " and ".join(f"`{name}`" for name in lacking)
        raise ValueError(
            f"{names} {'has' if len(lacking) == 1 else 'have'} no value (None). Fill in or take out the row."
        ) from None


def tokenizer_of(processor):
    """The tokenizer of a processor that makes inputs of text and pictures; a tokenizer is returned as it is."""
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None or not hasattr(processor, "save_pretrained"):
        return processor
    if getattr(tokenizer, "chat_template", None) is None:
        tokenizer.chat_template = getattr(processor, "chat_template", None)
    return tokenizer


def encode_prompt(example: Mapping[str, Any], tokenizer) -> list[int]:
    """Tokens of an example's `prompt`, ready for generation."""
    tokenizer = tokenizer_of(tokenizer)
    prompt = example["prompt"]
    if not isinstance(prompt, str):
        return prompt_tokens(example, tokenizer)
    ids = _ids_of(check_text(prompt, "`prompt`"), tokenizer)
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
    tokenizer, example = tokenizer_of(tokenizer), as_chatml(example)
    kind = row_type(example)
    if kind == "tokenized":
        ids, labels = _tokenized(example, tokenizer)
    elif kind == "messages":
        ids, labels = conversation_tokens({**example, "prompt": None}, tokenizer)
    elif kind == "prompt_completion":
        ids, labels = _encode_prompt_completion(example, tokenizer)
    else:
        ids = _with_eos(_ids_of(check_text(example["text"], "`text`"), tokenizer), tokenizer)
        labels = list(ids)
    return {"input_ids": ids[:max_length], "labels": labels[:max_length]}


def _ids_of(text: str, tokenizer) -> list[int]:
    """Tokens of a text; one that a chat template made has a BOS already, and gets no second one."""
    ids = list(tokenizer(text)["input_ids"])
    return ids[1:] if ids[:2] == [tokenizer.bos_token_id] * 2 and text.startswith(tokenizer.bos_token) else ids


def _tokenized(example: Mapping[str, Any], tokenizer) -> tuple[list[int], list[int]]:
    """Tokens and labels as given, without what `attention_mask` says is padding."""
    ids = _numbers(example, "input_ids")
    columns = {"labels": ids, "attention_mask": [1] * len(ids), **{mask: [1] * len(ids) for mask in MASKS}}
    columns = {name: own if example.get(name) is None else _numbers(example, name) for name, own in columns.items()}
    for name, values in columns.items():
        if len(values) != len(ids):
            raise ValueError(f"A row has {len(ids)} `input_ids` and {len(values)} `{name}`; give as many of each.")
    _check_known(ids, "input_ids", tokenizer)
    _check_known([label for label in columns["labels"] if label != IGNORE_INDEX], "labels", tokenizer)
    seen = [place for place, kept in enumerate(columns["attention_mask"]) if kept]
    places = example.get("position_ids")
    if example.get("seq_lengths") is not None or (places is not None and list(places) != list(range(len(ids)))):
        raise ValueError(
            "The row is packed (`seq_lengths`, or `position_ids` that do not count from 0): several documents would "
            "be read as one. Give each as a row of its own."
        )
    labels = columns["labels"]
    if example.get("labels") is None:
        # As TRL: labels that are given stand; without them a token is trained that no mask leaves out.
        kept = zip(*(columns[mask] for mask in MASKS), strict=True)
        labels = [label if all(bits) else IGNORE_INDEX for label, bits in zip(labels, kept, strict=True)]
    return [ids[place] for place in seen], [labels[place] for place in seen]


def _check_known(ids: list[int], name: str, tokenizer) -> None:
    """Refuses what is no token: ids of another tokenizer, or -1 for what is not to be trained on."""
    if not ids or tokenizer is None or (min(ids) >= 0 and max(ids) < len(tokenizer)):
        return
    # Ids of a vocabulary may have gaps.
    last = max(tokenizer.get_vocab().values())
    wrong = next((number for number in ids if not 0 <= number <= last), None)
    if wrong is not None:
        raise ValueError(
            f"`{name}` has {wrong}, and the tokenizer's ids are 0 to {last} (labels of -100 are not trained on). "
            "Encode the rows with the model's tokenizer, or give them as text."
        )


def _numbers(example: Mapping[str, Any], name: str) -> list[int]:
    values = example[name]
    values = values.tolist() if hasattr(values, "tolist") else values
    if not isinstance(values, (list, tuple)) or not all(isinstance(value, int) for value in values):
        raise ValueError(f"`{name}` is {told(values)}; give a list of whole numbers, one a token.")
    return list(values)


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
    check_columns(dataset, name)
    encoded = map_rows(
        dataset,
        name,
        lambda row, _: {**_cut(encode(row, tokenizer), max_length), "blank": is_blank(row)},
        desc=f"Tokenizing {name} rows",
    )
    cut, blank = sum(encoded["cut"]), sum(encoded["blank"])
    trained = [
        not row["blank"] and any(label != IGNORE_INDEX for label in row["labels"][1:])
        for row in encoded.select_columns(["labels", "blank"])
    ]
    encoded = encoded.remove_columns(["cut", "blank"])
    kept = sum(trained)
    if not kept:
        raise ValueError(
            f"None of the {len(encoded)} {name} rows keeps a token to train on within max_length={max_length}: their "
            "prompts fill it, or all their labels are -100. Raise `max_length` or shorten the prompts."
            if blank < len(encoded)
            else f"The text of all {len(encoded)} {name} rows is empty. Give rows with text."
        )
    if blank:
        logger.warning("%d of %d %s rows are left out: their text is empty.", blank, len(encoded), name)
    if kept + blank < len(encoded):
        logger.warning(
            "%d of %d %s rows are left out: no token to train on is left within max_length=%s.",
            len(encoded) - kept - blank,
            len(encoded),
            name,
            max_length,
        )
    if kept < len(encoded):
        encoded = encoded.select([i for i, keep in enumerate(trained) if keep])
    if cut:
        logger.info(
            "%d of %d %s rows are longer than max_length=%d and lose their end.", cut, len(trained), name, max_length
        )
    return encoded


def _cut(row: dict[str, list[int]], max_length: int | None) -> dict[str, Any]:
    cut = max_length is not None and len(row["input_ids"]) > max_length
    return {**{name: values[:max_length] for name, values in row.items()}, "cut": cut}


def map_rows(dataset, name: str, function, desc: str, numbers=None):
    """What `function` makes of every row and its place, beside `topic`; a `ValueError` names the set and the row.

    Args:
        dataset (`datasets.Dataset`): the rows.
        name (`str`): what they are for.
        function (`Callable[[dict, int], dict]`): makes one row of one.
        desc (`str`): of the progress bar.
        numbers (`Sequence[int]`, *optional*): the rows' places in the set that the user knows.
    """

    def one(row, i):
        with naming(name, i if numbers is None else numbers[i]):
            return function(row, i)

    dropped = [column for column in dataset.column_names if column != "topic"]
    return mapped(dataset, one, with_indices=True, remove_columns=dropped, desc=desc)


def check_columns(dataset, name: str) -> None:
    """Refuses a set that has no usable column, or whose rows are labelled for preference training."""
    columns = set(dataset.column_names)
    dataset_type(columns)
    if {"prompt", "completion", "label"} <= columns and getattr(dataset.features["label"], "dtype", None) == "bool":
        raise ValueError(
            f"The {name} rows have a `label` of true and false, which says what is to be kept and what is not. Part "
            "them by `hf_unlearn.split_forget_retain`, or leave the column out."
        )


def is_blank(example: Mapping[str, Any]) -> bool:
    """Whether a row is a text without any.

    Raises:
        `ValueError`: for an answer that says nothing: what would be trained is its end alone.
    """
    example = as_chatml(example)
    kind = row_type(example)
    if kind == "text":
        return not check_text(example["text"], "`text`").strip()
    if kind == "tokenized":
        return False
    if kind == "prompt_completion" and not isinstance(example["completion"], list):
        if not check_text(example["completion"], "`completion`").strip():
            raise ValueError("`completion` is empty: its end alone would be trained. Fill it in or take out the row.")
        return False
    column = "messages" if kind == "messages" else "completion"
    for i, message in enumerate(checked_messages(example[column], column)):
        if message["role"] == "assistant" and says_nothing(message):
            raise ValueError(
                f"Message {i} of `{column}` (assistant) is empty: its end alone would be trained. Fill it in or take "
                "it out."
            )
    return False


def chunk_documents(documents, tokenizer, max_length: int):
    """Cuts documents into pre-tokenised rows of at most `max_length` tokens; no row crosses a document's end.

    Every row begins as the tokenizer begins a text (BOS, if it sets one). A document's last row ends with EOS, unless
    the text fills that row. Documents of white space alone are left out.

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
        if not document.strip():
            continue
        ids = _with_eos(tokenizer(document, add_special_tokens=False)["input_ids"], tokenizer)
        pieces = [ids[i : i + room] for i in range(0, len(ids), room)]
        # A row of one token has nothing to predict; one of EOS alone would teach that a text may be empty.
        rows.extend(start + piece for piece in pieces if piece != [tokenizer.eos_token_id] and len(start + piece) > 1)
    if not rows:
        raise ValueError("The documents hold no text. Give at least one non-empty document.")
    return Dataset.from_dict({"input_ids": rows})


def _encode_prompt_completion(example, tokenizer) -> tuple[list[int], list[int]]:
    prompt, completion = example["prompt"], example["completion"]
    if isinstance(prompt, list) and isinstance(completion, list):
        return conversation_tokens({**example, "messages": None}, tokenizer)
    if {type(prompt), type(completion)} == {str, list}:
        raise ValueError("`prompt` and `completion` must both be strings or both be lists of messages.")
    whole = check_text(prompt, "`prompt`") + check_text(completion, "`completion`")
    ids = _with_eos(_ids_of(whole, tokenizer), tokenizer)
    # Tokens may merge over the seam, so the completion begins where the two encodings part.
    start = common_prefix(encode_prompt(example, tokenizer), ids)
    return ids, [IGNORE_INDEX] * start + ids[start:]


def _with_eos(ids: list[int], tokenizer) -> list[int]:
    eos = tokenizer.eos_token_id
    return list(ids) if eos is None or (ids and ids[-1] == eos) else [*ids, eos]


def _adds_bos(tokenizer) -> bool:
    ids = tokenizer("a")["input_ids"]
    return bool(ids) and tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id
