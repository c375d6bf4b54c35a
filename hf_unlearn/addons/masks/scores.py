# SPDX-License-Identifier: Apache-2.0
r"""How much a weight matters, for masks: float32 tensors of at least 0 in the shapes of the weights.

With \\( g \\) the gradient of the mean negative log-likelihood per supervised token, and \\( h_f \\) that of the
method's own forget term (its weighted terms that forget, where it has several), its mean over the rows of an epoch, at
the weights \\( \theta \\) as the model enters:

| score | formula | source |
|---|---|---|
| `gradient` | \\( |g_f| \\) | SalUn, https://huggingface.co/papers/2310.12508 |
| `snip` | \\( |\theta g_f| \\) | https://huggingface.co/papers/1810.02340 |
| `fisher` | \\( F_f / (F_r + 10^{-5}) \\), F the mean square of single rows' gradients | LoKU, https://huggingface.co/papers/2408.06621 |
| `wagle` | \\( |(\theta - g_r / \mu) h_f| \\), mu `mask_mu` | WAGLE, https://huggingface.co/papers/2410.17509 |
| `wanda` | \\( |\theta_{ij}| \lVert x_j \rVert_2 \\), x what a linear module reads; 0 for all other weights | https://huggingface.co/papers/2306.11695 |
| `magnitude` | \\( |\theta| \\) | |
| `random` | uniform, by `seed` | |

Wanda compares within each output; here all weights are compared with each other, as the other scores are.
"""  # noqa: E501

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from ...data.role_table import FORGET
from ...modeling import evaluating


EPSILON = 1e-5


class Alone:
    """What stands for an accelerator where every process computes the same by itself.

    Args:
        device (`torch.device`): the model's.
    """

    process_index, num_processes = 0, 1
    autocast = staticmethod(nullcontext)

    def __init__(self, device: torch.device):
        self.device = device

    def reduce(self, tensor: Tensor, reduction: str) -> Tensor:
        """The tensor itself."""
        return tensor


class Scorer:
    """Scores of the weights that train; called by all processes, which share the rows and get the same scores.

    Args:
        entry ([`~hf_unlearn.stored.row_cache.Entry`]): rows and settings.
        start ([`~hf_unlearn.stored.row_cache.RunStart`]): the model, not trained.
        parameters (`Mapping[str, nn.Parameter]`): the weights that train, by name.
        rows (`int`, *optional*): of each role, from which a score is computed; all by default.
    """

    def __init__(self, entry, start, parameters: Mapping[str, nn.Parameter], rows: int | None = None):
        self.entry, self.args, self.rows = entry, entry.args, rows
        self.model, self.accelerator, self.trainer = start.core, start.accelerator, start.trainer
        self.parameters = parameters

    def scores(self, name: str) -> dict[str, Tensor]:
        """The scores of one of the names in the table above, by weight."""
        with evaluating(self.model):
            return getattr(self, f"_{name}")()

    def _magnitude(self) -> dict[str, Tensor]:
        return {name: weight.detach().float().abs() for name, weight in self.parameters.items()}

    def _random(self) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(self.args.seed)
        # On the processor, so that every process and device draws the same; above 0, so that any may train.
        return {
            name: (1 - torch.rand(weight.shape, generator=generator)).to(weight.device)
            for name, weight in self.parameters.items()
        }

    def _gradient(self) -> dict[str, Tensor]:
        return {name: sums.abs_() for name, sums in self._sums("forget", lambda gradient: gradient).items()}

    def _snip(self) -> dict[str, Tensor]:
        found = self._gradient()
        for name, weight in self.parameters.items():
            found[name].mul_(weight.detach().float().abs())
        return found

    def _fisher(self) -> dict[str, Tensor]:
        forget, retain = (self._sums(role, torch.square, single=True) for role in ("forget", "retain"))
        for name, squares in forget.items():
            squares.div_(retain.pop(name).add_(EPSILON))
        return forget

    def _wagle(self) -> dict[str, Tensor]:
        found = self._means(self._forget_terms(), lambda gradient: gradient)
        retain = self._sums("retain", lambda gradient: gradient)
        for name, weight in self.parameters.items():
            found[name].mul_(weight.detach().float() - retain.pop(name) / self.args.mask_mu).abs_()
        return found

    def _forget_terms(self) -> Iterator[tuple[Tensor, int]]:
        """The method's terms that forget, over the pairs of an epoch, summed over micro-batches, and their number."""
        trainer = self.trainer
        for positions in self._shares(range(len(trainer.train_dataset)), self.args.per_device_train_batch_size):
            batch = trainer.data_collator([trainer.train_dataset[position] for position in positions])
            batch = {name: values.to(self.accelerator.device) for name, values in batch.items()}
            with trainer.meters.silent(), self.accelerator.autocast():
                terms = trainer.terms(trainer.role_rows(self.model, batch))
                own = {role: term for role, term in terms.items() if trainer.forgets(role)}
            # The weight of one alone orders nothing; a method may have steps without one.
            weights = {role: trainer.weight_of(role) if len(own) > 1 else 1 for role in own}
            term = sum(weights[role] * term for role, term in own.items())
            if own and term.requires_grad:
                yield term * len(positions), len(positions)

    def _wanda(self) -> dict[str, Tensor]:
        names = {id(weight): name for name, weight in self.parameters.items()}
        linear = {
            names[id(module.weight)]: module
            for module in self.model.modules()
            if isinstance(module, nn.Linear) and id(module.weight) in names
        }
        squares = {n: torch.zeros(m.in_features, device=m.weight.device) for n, m in linear.items()}

        def adds_to(sums: Tensor) -> Callable:
            def add(module, inputs):
                sums.add_(inputs[0].detach().float().square().reshape(-1, len(sums)).sum(0))

            return add

        hooks = [module.register_forward_pre_hook(adds_to(squares[name])) for name, module in linear.items()]
        try:
            # Row by row there is no padding, which modules would read too.
            with torch.no_grad():
                for batch in self._batches("forget", single=True):
                    self._nll(batch)
        finally:
            for hook in hooks:
                hook.remove()
        found = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in self.parameters.items()}
        for name, sums in squares.items():
            norms = self.accelerator.reduce(sums, "sum").sqrt()
            found[name] = self.parameters[name].detach().float().abs() * norms
        return found

    def _sums(self, role: str, of_gradient: Callable[[Tensor], Tensor], single: bool = False) -> dict[str, Tensor]:
        """Sums over a role's rows, or batches of them, divided by the number of tokens, or of rows if `single`."""
        found = (self._nll(batch) for batch in self._batches(role, single))
        losses = ((loss, 1) if single else (loss * tokens, tokens) for loss, tokens in found if tokens)
        return self._means(losses, of_gradient)

    def _means(self, losses: Iterable[tuple[Tensor, int]], of_gradient: Callable[[Tensor], Tensor]) -> dict:
        """Sums over losses and processes, divided by the sum of what is counted beside each."""
        sums = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in self.parameters.items()}
        count = torch.zeros((), device=self.accelerator.device)
        for loss, counted in losses:
            gradients = torch.autograd.grad(loss, list(self.parameters.values()), allow_unused=True)
            count += counted
            for total, gradient in zip(sums.values(), gradients, strict=True):
                if gradient is not None:
                    total += of_gradient(gradient.float())
        count = self.accelerator.reduce(count, "sum").clamp(min=1)
        return {name: self.accelerator.reduce(total, "sum").div_(count) for name, total in sums.items()}

    def _nll(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, int]:
        """Mean negative log-likelihood per token, and the number of tokens."""
        with self.accelerator.autocast():
            loss = self.model(**batch, use_cache=False).loss
        return loss, int((batch["labels"][:, 1:] != -100).sum())

    def _batches(self, role: str, single: bool) -> Iterator[dict[str, Tensor]]:
        """This process's share of the rows that training sees."""
        rows, size = self.entry.roles[role], 1 if single else self.args.per_device_train_batch_size
        if role == FORGET:
            # Of the forget answers themselves, whatever labels a method has in their place.
            rows = self.entry.given.get(role, rows)
        for indices in self._shares(self.entry.needed[role], size):
            batch = self.entry.collator.pad([rows[i] for i in indices])
            if single:
                there = batch["attention_mask"][0].bool()
                batch = {name: values[:, there] for name, values in batch.items()}
            yield {name: values.to(self.accelerator.device) for name, values in batch.items()}

    def _shares(self, of: Sequence[int], size: int) -> Iterator[Sequence[int]]:
        """Batches of this process's share of the first `rows`."""
        own = of[: self.rows][self.accelerator.process_index :: self.accelerator.num_processes]
        yield from (own[first : first + size] for first in range(0, len(own), size))
