# SPDX-License-Identifier: Apache-2.0
"""RWKU's probes as its models get them, byte for byte: one user turn, and how the answer is made to begin."""

from typing import Any, NamedTuple

from ..chat import Chat
from ..formats import encode_prompt
from ..qa import QAFormat


FILL = "Please complete the blank in the following question.\nQuestion: {query}\n"
ASK = "Please briefly answer the following question.\nQuestion: {query}\n"
ASK_BARE = "Please briefly answer the following question.\n{query}\n"
INSTRUCT = "Instruction: {query}\n"
ANSWER = "Answer:"
AFFIRMATIVE, IN_CONTEXT = "affirmative suffix", "incontext learning"


class Turn(NamedTuple):
    """What the user says, and the first words of the answer."""

    user: str
    prefix: str = ""


def probe_turn(subset: str, query: str, attack: str | None = None) -> Turn:
    """The turn of a probe (eval_forget.py and eval_neighbor.py of RWKU).

    Args:
        subset (`str`):
            `forget_fb`, `forget_qa`, `forget_aa`, `neighbor_fb` or `neighbor_qa`.
        query (`str`):
            The probe.
        attack (`str`, *optional*):
            A probe's `type`; two of `forget_aa`'s nine differ from a question.
    """
    if subset.endswith("_fb"):
        return Turn(FILL.replace("{query}", query), ANSWER)
    if subset == "forget_aa" and attack == AFFIRMATIVE:
        # Such a query ends with the beginning of an answer of its own.
        return Turn(ASK.replace("{query}", query).removesuffix("\n"))
    form = ASK_BARE if subset == "forget_aa" and attack == IN_CONTEXT else ASK
    return Turn(form.replace("{query}", query), ANSWER)


def fluency_turn(instruction: str) -> Turn:
    """The turn of an instruction (eval_fluency.py)."""
    return Turn(INSTRUCT.replace("{query}", instruction))


def encode_turn(turn: Turn, tokenizer: Any, qa: QAFormat) -> list[int]:
    """Tokens of a turn, ready for generation: through the chat template where the tokenizer has one, else as text.

    Other than RWKU's code, BOS is set once: it tokenises the chat template's text, which has one, with a second.
    """
    if not qa.settled(tokenizer).use_chat_template:
        return encode_prompt({"prompt": turn.user + turn.prefix}, tokenizer)
    example = qa.example(turn.user, "", tokenizer)
    chat = Chat(example, tokenizer)
    text = chat.render(chat.messages(example["prompt"], "prompt"), generation=True)
    return list(tokenizer(text + turn.prefix, add_special_tokens=False)["input_ids"])
