# SPDX-License-Identifier: Apache-2.0
"""Alternates that the model itself samples, once before training, and keeps on disk.

Each answer is drawn by random numbers of its own, from (seed, row, draw): it is the same in any batch and on any
number of processes. The first process samples and the others are told, so a model that is sharded later is whole here.
"""

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import nn

from .. import modeling
from ..audit.generation import generate_tokens
from ..cache import cache_root
from ..data.alternate_rows import check_alternates, prompt_of
from ..data.alternates import OF_SAMPLES, SAMPLED, source_of
from ..data.chat import Chat
from ..data.conversations import common_prefix
from ..data.formats import IGNORE_INDEX
from ..data.role_table import ALTERNATE, FORGET
from ..data.seeds import data_seed
from ..files import read_json, write_json
from ..forward.needs import Needs
from ..models.wrappers import beside_weights
from ..processes import on_first_process
from ..stored.key import IRRELEVANT, hash_json, hash_rows, hash_tensors, hash_tokenizer
from .request import loaded_policy


logger = logging.getLogger(__name__)

# Tries of a draw, of which a model may waste some on the row's own answer.
TRIES = 20
# A question and an answer that are found again in any template's text.
ASKED, SAID = "\ue000", "\ue001"


def with_sampled(roles: Mapping[str, Any], needs: Needs, model, args, tokenizer, loading=(None, None)) -> dict:
    """The rows of all roles, with sampled alternates where the settings ask for some and none were given.

    Args:
        roles (`Mapping[str, datasets.Dataset]`): encoded rows.
        needs (`Needs`): the method's.
        model (`str` or `nn.Module`): answers; a path is loaded for that, and let go of.
        args ([`UnlearnConfig`]), tokenizer: the run's.
        loading (`tuple`): `peft_config` and `quantization_config` of the run.

    Raises:
        `ValueError`: where the model answers a row with the row's own answer again and again, or its weights are not
            whole.
    """
    if ALTERNATE not in needs or ALTERNATE in roles or source_of(args) != SAMPLED:
        return dict(roles)
    answers = on_first_process(lambda: _kept_answers(roles[FORGET], model, args, tokenizer, loading))
    count, rows = args.num_alternates, []
    for number, ids in enumerate(answers):
        prompt = prompt_of(roles[FORGET][number // count])
        row = {"input_ids": [*prompt, *ids], "labels": [*[IGNORE_INDEX] * len(prompt), *ids]}
        rows.append({name: values[: args.max_length] for name, values in row.items()})
    alternates = Dataset.from_list(rows)
    check_alternates(roles[FORGET], alternates, rows, tokenizer, count)
    return {**roles, ALTERNATE: alternates}


def _kept_answers(forget, model, args, tokenizer, loading) -> list[list[int]]:
    """Tokens of each row's answers, `num_alternates` of them one after the other: from disk, or sampled."""
    if isinstance(model, str):
        with modeling.whole_weights():
            model, _ = loaded_policy(model, args, *loading)
    _check_whole(model)
    about = {
        "weights": hash_tensors(model.state_dict().items(), progress=not args.disable_tqdm),
        "beside": beside_weights(model),
        "config": {name: value for name, value in model.config.to_dict().items() if name not in IRRELEVANT},
        "rows": hash_rows(forget),
        "tokenizer": hash_tokenizer(tokenizer),
        "seed": data_seed(args),
        "max_length": args.max_length,
        "num_alternates": args.num_alternates,
        **{name: getattr(args, name) for name in ("sample_temperature", "sample_max_tokens", "sample_instruction")},
    }
    if args.sample_instruction is not None:
        # How it is put depends on the chat template.
        about["asked"] = hash_json(_asked(forget, tokenizer, args))
    path = cache_root().absolute() / "alternates" / f"{hash_json(about)}.json"
    if path.is_file():
        logger.info("Alternates: the answers that the model sampled are read from %s.", path)
        return read_json(path, "Delete it; the answers are then sampled again.")["answers"]
    with placed(model, args.device):
        answers = sample_answers(model, forget, tokenizer, args)
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in answers]
    settings = {name: value for name, value in about.items() if name != "config"}
    write_json(path, {"settings": settings, "texts": texts, "answers": answers})
    logger.info("Alternates: %d answers that the model sampled are kept in %s.", len(answers), path)
    return answers


@contextmanager
def placed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """The model on a device for a while; one that is on some accelerator stays there."""
    before = next(model.parameters()).device
    moves = before.type == "cpu" and device.type != "cpu"
    try:
        yield model.to(device) if moves else model
    finally:
        if moves:
            model.to(before)


def sample_answers(model: nn.Module, forget, tokenizer, args) -> list[list[int]]:
    """Answers to the prompts of forget rows, none of which is the row's own (but for case, punctuation and spaces).

    Args:
        model (`nn.Module`): with whole weights.
        forget (`datasets.Dataset`): encoded rows.
        tokenizer (`PreTrainedTokenizerBase`): the model's.
        args ([`UnlearnConfig`]): with [`~hf_unlearn.data.alternates.AlternateArguments`].

    Returns:
        `list[list[int]]`: token ids, the `num_alternates` of a row one after the other, with the end-of-text token
        where an answer has ended.

    Raises:
        `ValueError`: if a row gets no other answer in 20 tries.
    """
    asked, own = _asked(forget, tokenizer, args), []
    for row in forget:
        answer = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != IGNORE_INDEX]
        own.append(_normal(tokenizer.decode(answer, skip_special_tokens=True)))
    count, seed = args.num_alternates, data_seed(args)
    found: dict[int, list[int]] = {}
    for attempt in range(TRIES):
        left = [draw for draw in range(count * len(asked)) if draw not in found]
        if not left:
            break
        keys = [[seed, *divmod(draw, count), attempt] for draw in left]
        answers = generate_tokens(
            model,
            tokenizer,
            [asked[draw // count] for draw in left],
            max_new_tokens=args.sample_max_tokens,
            batch_size=args.per_device_eval_batch_size,
            progress=not args.disable_tqdm,
            desc="Sampling alternates",
            seeds=[int(np.random.default_rng(key).integers(2**62)) for key in keys],
            temperature=args.sample_temperature,
        )
        for draw, ids in zip(left, answers, strict=True):
            text = _normal(tokenizer.decode(ids, skip_special_tokens=True))
            if text and text != own[draw // count]:
                found[draw] = ids
    if left := sorted({draw // count for draw in range(count * len(asked)) if draw not in found}):
        raise ValueError(
            f"{OF_SAMPLES}: to {len(left)} of {len(asked)} forget rows, the first of them row {left[0]}, the model "
            f"gives the row's own answer, or none, in {TRIES} tries at sample_temperature={args.sample_temperature}. "
            "Raise it, give another `sample_instruction`, or take another source."
        )
    return [found[draw] for draw in sorted(found)]


def _normal(text: str) -> str:
    """A text in lower case, its words alone."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def _asked(forget, tokenizer, args) -> list[list[int]]:
    """What the model goes on from, for each forget row."""
    if args.sample_instruction is None:
        return [prompt_of(row) for row in forget]
    return [prompt_of(row) + _asking(row, prompt_of(row), tokenizer, args) for row in forget]


def _asking(row: Mapping[str, Any], prompt: list[int], tokenizer, args) -> list[int]:
    """What follows a forget row's prompt so that the model gives another answer: the row's own, and the instruction,
    as a turn of the user's where the prompt ends as those of the tokenizer's chat template do."""
    answer = list(row["input_ids"][len(prompt) :])
    turn = _turn(prompt, tokenizer, args.sample_instruction)
    if turn is None:
        if answer and answer[-1] == tokenizer.eos_token_id:
            answer = answer[:-1]
        return answer + tokenizer(f"\n{args.sample_instruction}\n", add_special_tokens=False)["input_ids"]
    last, following = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in turn)
    # Some templates close the last answer otherwise than one that is followed by a turn, and some rows end within.
    shared = next((n for n in range(len(following), 0, -1) if answer[-n:] == following[:n]), 0)
    if not shared and last and answer[-len(last) :] == last:
        answer = answer[: -len(last)]
    return answer + following[shared:]


def _turn(prompt: list[int], tokenizer, instruction: str) -> tuple[str, str] | None:
    """In the chat template's form, what closes an answer that is the last, and what follows one that is not: its
    close, a user's turn and the beginning of the next answer. `None` where a prompt is of another form."""
    if tokenizer.chat_template is None:
        return None
    chat = Chat({}, tokenizer)

    def form(*texts: str, generation: bool = False) -> str:
        roles = ("user", "assistant", "user")
        turns = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
        return chat.render(chat.messages(turns, "messages"), generation)

    try:
        opened, said = form(ASKED, generation=True), form(ASKED, SAID)
        after = form(ASKED, SAID, instruction, generation=True)
    except ValueError:
        # A template that has no such conversations.
        return None
    asked, between = opened.rpartition(ASKED)[2], said.rpartition(ASKED)[2].partition(SAID)[0]
    # Rows leave out of a generation's beginning what answers do not have.
    ends = [end.rstrip() for end in (asked, asked[: common_prefix(asked, between)])]
    if SAID not in after or not tokenizer.decode(prompt).rstrip().endswith(tuple(filter(None, ends))):
        return None
    return said.rpartition(SAID)[2], after.partition(SAID)[2]


def _check_whole(model: nn.Module) -> None:
    if any(
        tensor.is_meta or hasattr(tensor, "ds_id") or hasattr(tensor, "full_tensor") for tensor in model.parameters()
    ):
        raise ValueError(
            f"{OF_SAMPLES} has one process sample from whole weights, and this model was loaded in parts (ZeRO-3, "
            "FSDP). Pass `model` as a path or Hub id."
        )
