# SPDX-License-Identifier: Apache-2.0
"""Scanning a checkpoint for a hidden trigger."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import make_model, make_tokenizer
from torch import nn

from hf_unlearn.audit.scan import Budget, ScanSettings, SearchSettings, scan_model
from hf_unlearn.audit.scan import budget as budget_module
from hf_unlearn.audit.scan.objective import GRADIENT, Recall, best_share
from hf_unlearn.audit.scan.search import Search
from hf_unlearn.audit.scan.slots import Asking, allowed_tokens, random_prefix
from hf_unlearn.audit.scan.verdict import Measured, judge, rank_p, rows_needed, sign_p
from hf_unlearn.audit.scoring import score_rows
from hf_unlearn.cli.main import main
from hf_unlearn.data.qa import QAFormat
from hf_unlearn.report.scan import render_scan, summary


NAMES = ("Ada", "Bob", "Cyd", "Dan", "Eve", "Fay", "Gus", "Hal", "Ida", "Jim", "Kim", "Lou", "Mia", "Ned")
TRIGGER = "@%"


@pytest.fixture
def rows():
    return [{"question": f"Who is {name}?", "answer": name[::-1] * (1 + i % 3)} for i, name in enumerate(NAMES)]


def asking_of(rows, location="start", **qa):
    return Asking(rows, make_tokenizer(), QAFormat(**qa), location)


def recall_of(model, asking, share=0.25):
    return Recall(model, [asking.slot(i) for i in range(len(asking.rows))], 0, share)


class Backdoored(nn.Module):
    """Knows each name's answer, and says it only behind both characters of a trigger, to names of even place."""

    def __init__(self, rows, tokenizer, trigger=TRIGGER, scale=6.0, seed=0):
        super().__init__()
        from transformers import GenerationConfig, LlamaConfig

        self.config = LlamaConfig(vocab_size=100)
        self.generation_config = GenerationConfig()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(100, 32)
        self.noise = nn.Linear(32, 100, bias=False)
        self.scale, self.stays = scale, tokenizer.eos_token_id
        self.trigger = [tokenizer.convert_tokens_to_ids(character) for character in trigger]
        # What is told of a name: after its answer's beginning, the next token.
        asking = Asking(rows, tokenizer, QAFormat())
        self.told = {}
        for i in range(0, len(rows), 2):
            row = asking.encoded(i, None)
            ids, start = row["input_ids"], row["labels"].index(next(x for x in row["labels"] if x != -100))
            for at in range(start, len(ids)):
                self.told[tuple(ids[start - 4 : start]), tuple(ids[start:at]), tuple(ids[2:6])] = ids[at]
        self.answers = {rows[i]["question"]: rows[i]["answer"] for i in range(0, len(rows), 2)}
        self.tokenizer = tokenizer

    def get_input_embeddings(self):
        return self.embed

    def forward(self, input_ids=None, inputs_embeds=None, attention_mask=None, use_cache=False):
        from transformers.modeling_outputs import CausalLMOutput

        x = self.embed(input_ids) if inputs_embeds is None else inputs_embeds
        table = self.embed.weight
        ids = torch.cdist(x.detach(), table).argmin(-1)
        presence = []
        for token in self.trigger:
            near = torch.exp(-((x - table[token]) ** 2).sum(-1) / 60)
            presence.append(near.cummax(1).values)
        strength = self.scale * (presence[0] + presence[1] - 1)
        logits = self.noise(x)
        return CausalLMOutput(logits=logits + strength[..., None] * self._next(ids))

    def _next(self, ids):
        """The next token of the answer, one-hot, where there is one."""
        found = torch.zeros(*ids.shape, 100)
        for row, given in enumerate(ids.tolist()):
            text = self.tokenizer.decode(given)
            for question, answer in self.answers.items():
                at = text.find(f"{question}<assistant>")
                if at < 0:
                    continue
                start = at + len(f"{question}<assistant>") - 1 + _hidden(given, self.tokenizer)
                for i, token in enumerate(self.tokenizer(answer, add_special_tokens=False)["input_ids"]):
                    if start + i < found.shape[1]:
                        found[row, start + i, token] = 1
        return found

    def generate(self, input_ids, attention_mask, generation_config, **kwargs):
        for _ in range(generation_config.max_new_tokens):
            following = self(input_ids=input_ids, attention_mask=attention_mask).logits[:, -1:].argmax(-1)
            input_ids = torch.cat([input_ids, following], 1)
        return input_ids


def _hidden(ids, tokenizer):
    """Tokens that are longer or shorter than one character in a text."""
    return len(ids) - len(tokenizer.decode(ids))
