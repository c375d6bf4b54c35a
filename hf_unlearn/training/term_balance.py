# SPDX-License-Identifier: Apache-2.0
"""Whether the forget term counts beside the retain term, looked at in the first logs of training."""

import logging

from transformers import TrainerCallback


logger = logging.getLogger(__name__)

LOGS = 5
# Of the retain term, both weighted.
NEGLIGIBLE = 1e-2


class TermBalance(TrainerCallback):
    """Warns once where the weighted forget term was below a hundredth of the weighted retain term in all of the first
    logs: what is to be forgotten then hardly moves the model. Costs nothing: it reads what is logged.

    A term that is small and grows, as that of an ascent from rows known by heart, is above in a later of these logs,
    or doubles; both are no silence.

    Args:
        logs (`int`):
            Logs with both terms to look at.
        share (`float`):
            Of the retain term, in size.
    """

    def __init__(self, logs: int = LOGS, share: float = NEGLIGIBLE):
        self.logs, self.share = logs, share
        self.seen: list[tuple[float, float]] = []

    def on_train_begin(self, args, state, control, **kwargs):
        self.seen = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        terms = [logs.get(f"{role}/loss") for role in ("forget", "retain")]
        if None in terms or len(self.seen) == self.logs:
            return
        self.seen.append((abs(terms[0]) * args.forget_weight, abs(terms[1]) * args.retain_weight))
        if len(self.seen) == self.logs:
            self._judge(args, state)

    def _judge(self, args, state) -> None:
        if not all(forget < self.share * retain for forget, retain in self.seen):
            return
        (first, _), (last, _) = self.seen[0], self.seen[-1]
        if first and last > 2 * first or not state.is_world_process_zero:
            return
        forget, retain = (sum(values) / self.logs for values in zip(*self.seen, strict=True))
        logger.warning(
            "Over the first %d logs the forget term was %.3g and the retain term %.3g, both weighted: next to nothing "
            "is unlearned. Raise `forget_weight` (%g), or lower `retain_weight` (%g).",
            self.logs,
            forget,
            retain,
            args.forget_weight,
            args.retain_weight,
        )
