# SPDX-License-Identifier: Apache-2.0
"""What the head is to predict: the encoder's vectors of all windows, computed once and kept on disk."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...cache import cache_root
from ...stored.build import build
from ...stored.key import cache_key, hash_rows, hash_tensors, hash_tokenizer
from ...stored.store import Rows, Store
from .encoder import TextEncoder
from .windows import NONE, Windows


logger = logging.getLogger(__name__)

VECTORS = "vectors"


class Targets:
    """Vectors by row and token, from a store that later runs with the same encoder and rows find again.

    Args:
        encoder ([`TextEncoder`]):
            Let go of once the vectors are there.
        windows ([`~hf_unlearn.methods.align_then_unlearn.windows.Windows`]):
            What is encoded.
        concept (`Sequence[str]`):
            Texts whose nearest is what a prediction is compared with.
    """

    def __init__(self, encoder: TextEncoder, windows: Windows, concept: Sequence[str]):
        self.encoder, self.windows, self.concept = encoder, windows, list(concept)
        self.width = encoder.width
        self.store: Store | None = None

    def prepare(self, trainer) -> None:
        """Encodes concept and windows, or finds them; called by all ranks before the first step."""
        if self.store is not None:
            return
        args, encoder = trainer.args, self.encoder
        encoder.model.to(args.device)
        # Unit vectors: only cosines are taken.
        self.concept_vectors = F.normalize(encoder.embed_texts(self.concept), dim=-1).to(args.device)
        distinct = torch.from_numpy(self.windows.distinct)
        layout = {VECTORS: Rows([1] * len(distinct), (self.width,), torch.float32)}
        key = cache_key(
            weights=hash_tensors(encoder.model.state_dict().items(), progress=False),
            config=encoder.model.config.to_dict(),
            rows={"windows": hash_rows([{"input_ids": self.windows.distinct.reshape(-1), "labels": []}])},
            tokenizer=hash_tokenizer(encoder.tokenizer),
            max_length=distinct.shape[1],
            trigger={},
            layout=layout,
            computed={"pooling": encoder.pooling, "device": args.device.type},
        )
        root = args.reference_cache_dir or cache_root() / "reference"
        progress = trainer.is_world_process_zero() and not args.disable_tqdm

        def fill(writer) -> None:
            own = np.array_split(np.arange(len(distinct)), trainer.accelerator.num_processes)[
                trainer.accelerator.process_index
            ]
            if len(own):
                writer.write(VECTORS, own, encoder.embed_windows(distinct[own], progress=progress))

        self.store = build(Path(root).expanduser().absolute() / key, layout, fill)
        if trainer.is_world_process_zero():
            tokens = sum(len(row) for rows in self.windows.numbers.values() for row in rows)
            logger.info("%d distinct windows of %d tokens are encoded.", len(distinct), tokens)
        unit = F.normalize(self.store.array(VECTORS)[:], dim=-1)
        # What a head that always says the same could reach.
        self.floor = (unit @ F.normalize(unit.mean(0), dim=-1)).mean().item()
        self.encoder = None

    def known(self, role: str, indices: Sequence[int]) -> Tensor:
        """Where a full window follows, bool `[N]`, over the rows' real tokens, one row after the other."""
        return torch.from_numpy(self.windows.of_rows(role, indices) != NONE)

    def vectors(self, role: str, indices: Sequence[int]) -> Tensor:
        """The vectors where [`known`] is true, float32 `[M, d]`."""
        numbers = self.windows.of_rows(role, indices)
        return self.store.read(VECTORS, numbers[numbers != NONE])[0]
