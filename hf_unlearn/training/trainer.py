# SPDX-License-Identifier: Apache-2.0
"""The trainer that every method inherits: roles, one shared forward pass, retain terms, logging."""

import logging
import os
from collections.abc import Callable, Mapping
from functools import partial
from inspect import signature
from typing import Any

from torch import Tensor, nn
from transformers import TrainerCallback

from .. import modeling
from ..addons.collection import AddOns
from ..data.collator import role_spans
from ..data.pairing import PairSampler
from ..data.role_table import tie
from ..families.choose import family_of
from ..forward.needs import REFERENCE, names_of
from ..forward.planning import needed_rows
from ..forward.role_rows import RoleRows
from ..hub.card import CardFacts, hub_id, render_model_card, write_model_card
from ..hub.hub_trainer import HubTrainer
from ..models.adapters import AddedAdapter, weights_as_entered
from ..models.tied import untie_as_asked
from ..models.wrappers import check_not_wrapped
from ..reference import Reference, ReferenceRequest
from ..reference.named import References, given_models, loaded
from ..stored.row_cache import Entry
from .addon_steps import AddOnTrainer
from .arguments_check import check_steps
from .arithmetic import Arithmetic
from .best import check_early
from .config import UnlearnConfig
from .dropout import dropout_as_asked
from .evaluation_rows import EvaluationRows
from .meters import Meters
from .method import Method
from .other_arguments import check_collator, refuse_others
from .request import check_request, loaded_policy, with_adapter
from .rounding import RoundingCheck
from .run_control import RunControl
from .sampled import with_sampled
from .term_balance import TermBalance
from .unused import tell_unused


logger = logging.getLogger(__name__)


class UnlearnTrainer(Method, EvaluationRows, AddOnTrainer, HubTrainer):
    """Base of all methods. A method overrides `forget_loss`, and `needs_of` if it reads more than `logps`.

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Model to unlearn from: a path, a Hub id or a loaded model. The reference is the model as passed.
        args ([`UnlearnConfig`], *optional*):
            The method's config; its defaults if left out.
        forget_dataset, retain_dataset (`datasets.Dataset` or `list[dict]`):
            Rows of any TRL type (`text`, `prompt` and `completion`, `messages`) or `input_ids`; the two may differ in
            type. Retain rows are trained on: `retain_loss` is `nll` if the config leaves it out.
        eval_dataset (`datasets.Dataset` or `dict[str, datasets.Dataset]`, *optional*):
            Rows evaluated with the plain language-model loss; for `{"forget": ..., "retain": ...}` the metrics are
            `eval_forget_loss` and `eval_retain_loss`.
        processing_class (`PreTrainedTokenizerBase`, *optional*):
            Tokenizer; loaded with the model if left out.
        peft_config (`PeftConfig`, *optional*):
            Trains a new adapter; the reference is then the model with the adapter switched off.
        quantization_config (`BitsAndBytesConfig`, *optional*):
            Used if `model` is a path or Hub id.
        ref_model (`PreTrainedModel`, *optional*):
            A reference other than the model as passed.
        ref_models (`dict[str, PreTrainedModel or str]`, *optional*):
            Other frozen models that the method compares rows with, by the method's names for them.
        poisoned_dataset (`datasets.Dataset` or `list[dict]`, *optional*):
            Rows that already contain the trigger; by default the config's `poison_*` fields poison forget rows.
        alternate_dataset (`datasets.Dataset` or `list[dict]`, *optional*):
            Another answer for each forget row, in their order, for methods whose forget term reads one.
        data_collator, compute_metrics, callbacks, optimizers, preprocess_logits_for_metrics:
            As in [`~transformers.Trainer`]. A collator must return the same keys as [`RoleCollator`].

    Raises:
        `ValueError`: for invalid settings, rows or models; before the model is loaded if possible.
    """

    # Losses are means over a micro-batch; Trainer divides them by the accumulation steps.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        model: str | nn.Module,
        args: UnlearnConfig | None = None,
        data_collator: Callable | None = None,
        forget_dataset=None,
        retain_dataset=None,
        eval_dataset=None,
        processing_class=None,
        compute_metrics: Callable | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers=(None, None),
        quantization_config=None,
        peft_config=None,
        ref_model: nn.Module | None = None,
        poisoned_dataset=None,
        preprocess_logits_for_metrics: Callable | None = None,
        alternate_dataset=None,
        ref_models: Mapping[str, str | nn.Module] | None = None,
        **others,
    ):
        refuse_others(type(self), others, list(signature(UnlearnTrainer.__init__).parameters)[1:-1])
        args = self.config_class() if args is None else args
        model = os.fspath(model) if isinstance(model, os.PathLike) else model
        self._check_request(args, model, ref_model, quantization_config, peft_config)
        args = args.settled(retain_dataset is not None, alternate_dataset is not None)
        revision = (args.model_init_kwargs or {}).get("revision")
        self.family = family = family_of(model, args.likelihood, args.trust_remote_code, revision)
        family.check_method(type(self))
        self.check_reference(args, ref_model)
        names = names_of(self.needs_of(args))
        named = given_models(names, ref_models, self.ref_models_of(args), args.fused_losses)
        if processing_class is None:
            processing_class = modeling.load_processor(model, args.trust_remote_code, revision)
        processing_class = family.ready(processing_class)
        given = (forget_dataset, retain_dataset, processing_class, args, poisoned_dataset, alternate_dataset)
        roles = family.encode_roles(*given, needed=self.needs_of(args))
        self.check_rows(args, roles, processing_class)
        self.check_eval(args, eval_dataset)
        encoded_eval = self.encode_eval(eval_dataset, processing_class, args.max_length)
        check_early(args, encoded_eval, compute_metrics, callbacks or [])
        first = model if ref_model is None else ref_model
        loading = (peft_config, quantization_config)
        roles = with_sampled(roles, self.needs_of(args), first, args, processing_class, loading)
        pairs = self.make_pairs(roles, args, processing_class)
        self.own_optimizer = optimizers[0] is not None
        check_steps(args, pairs, self.own_optimizer or type(self).changes_at_end is True)
        # What was given is on the card; what the pairs leave out is not trained on.
        self.given_rows, roles = roles, pairs.roles

        collator = family.collator(processing_class, roles, args.max_length, args.pad_to_multiple_of)
        check_collator(data_collator, collator, pairs)
        self.role_names = collator.roles
        self.addons.load(roles, collator)

        model, reload = loaded_policy(model, args, peft_config, quantization_config)
        named = loaded(named, args)
        for other in (ref_model, *named.values()):
            family.check_model(model, processing_class, other)
        untie_as_asked(args, model)
        self.check_architecture(args, model)
        first = model if ref_model is None else ref_model
        self.entered = weights_as_entered(first, with_adapter=bool(self.reference_roles_of(args)))
        model, added = with_adapter(model, args, peft_config and family.adapter_config(peft_config))
        entry = Entry(model, roles, needed_rows(pairs, args), processing_class, args, collator, self.given_rows)
        added = self.addons.start_adapter(entry, added)
        self._plan_step(entry, family.shape_of(pairs, args), added, ref_model, named, reload)
        self.addons.setup(entry)
        self._begin_counts()
        self.card_facts = CardFacts(ref_model=ref_model is not None, base_model=hub_id(model))
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator or collator,
            train_dataset=pairs,
            eval_dataset=encoded_eval,
            processing_class=processing_class,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )
        self._watch(retain_rows=retain_dataset is not None)

    def _check_request(self, args, model, ref_model, quantization_config, peft_config) -> None:
        """Refuses what cannot work whatever the rows and weights are; makes the run's add-ons."""
        check_request(type(self), args, model, quantization_config, peft_config)
        check_not_wrapped(model, ref_model, args.fused_losses)
        adapter = peft_config is not None or modeling.is_peft_model(model)
        self.addons = AddOns(self.checked_addons(args, adapter))

    def _begin_counts(self) -> None:
        # Width and dtype of a token's states, known once the forward path was tried.
        self.states_like: Tensor | None = None
        self.meters = Meters()
        # Counted when it is known what trains.
        self.arithmetic: Arithmetic | None = None
        self.positions_read: dict[str, int] = {}

    def _watch(self, retain_rows: bool) -> None:
        self.addons.attach(self)
        for callback in (RunControl(self), RoundingCheck(self), TermBalance):
            self.add_callback(callback)
        self.watch_faults(self.meters)
        tell_unused(self, retain_rows)
        if self.args.model_card_template:
            # What is wrong with the template is told now, not after training.
            render_model_card(self)

    def _plan_step(self, entry: Entry, shape: str, added: AddedAdapter | None, ref_model, named, reload) -> None:
        """Decides what trains, how rows go through the model, what frozen models are, and what is computed once."""
        model, args = entry.model, entry.args
        self.setup(entry)
        needs = {role: self.needs_of(args)[role] for role in entry.roles}
        self.forward_path = self.build_forward(model, args, needs, shape)
        self.trainable = modeling.Trainable(model, partial(self.trainable_patterns, args, model))
        models = {**named, **({} if ref_model is None else {REFERENCE: ref_model})}
        self.references = References.of(ReferenceRequest(entry, needs, self.forward_path, added, reload, models))
        if ref_model is not None and self.reference is None:
            logger.warning("`ref_model` is not used: no term of %s compares with it.", type(self).__name__)
        self.addons.see_path(entry, self.forward_path)
        if args.cache_frozen:
            self.family.frozen_prefix(entry, self.forward_path)

    @property
    def reference(self) -> Reference | None:
        """The model as it entered, or the `ref_model` in its place, if rows are compared with it."""
        return self.references.get(REFERENCE)

    # One step

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch=None
    ):
        """The objective on a batch of roles; the plain language-model loss on a flat batch, as in evaluation."""
        if "role" not in inputs:
            # Given the count, the model divides by the tokens of all accumulated batches; Trainer would divide again.
            num_items_in_batch = None if model.training else num_items_in_batch
            inputs = self.family.evaluated(self.model, inputs)
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss = sum(self.weighted_terms(model, inputs).values())
        return (loss, {"loss": loss}) if return_outputs else loss

    def weighted_terms(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The terms whose sum is the objective on a batch: those of the roles, then those of add-ons, by name."""
        rows = self.role_rows(model, inputs)
        terms = self.terms(rows)
        for role, found in rows.items():
            named = {"loss": terms[role]} if role in terms else {}
            for name, value in (named | found.observed()).items():
                self.meters.add(f"{role}/{name}", value)
        weighted = {role: self.weight_of(role) * term for role, term in terms.items()}
        return self.addons.with_terms(weighted, model, rows)

    def role_rows(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, RoleRows]:
        """The rows of all roles through the model, and what the reference says of those that need it.

        Args:
            model (`nn.Module`):
                The wrapped model that `compute_loss` was handed, never `self.model`: wrappers hook its forward.
            inputs (`Mapping[str, Tensor]`):
                A batch of [`RoleCollator`].
        """
        parts = self.parts_of(inputs)
        # The reference goes first: switching adapters toggles `requires_grad`, which must be back for the policy.
        references = self.references.rows(self.forward_path, model, parts)
        with self.addons.around_policy(model, parts):
            return tie(self.forward_path.policy(model, parts, references))

    def parts_of(self, inputs: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """A batch by role, of the roles whose rows go through the model in this step."""
        spans = role_spans(inputs["role"].tolist(), self.role_names)
        length = self.family.positions(inputs)
        self.positions_read = {role: (span.stop - span.start) * length for role, span in spans.items()}
        return {role: {k: v[span] for k, v in inputs.items() if k != "role"} for role, span in spans.items()}

    def floating_point_ops(self, inputs: dict[str, Any]) -> float:
        """Of the micro-batch just done, for `total_flos`; see [`~hf_unlearn.training.arithmetic.Arithmetic`]."""
        if self.arithmetic is None:
            self.arithmetic = Arithmetic(self.model)
        times = 1 + self.addons.take_repeated()
        read = {role: times * count for role, count in self.positions_read.items()}
        policy = sum(count for role, count in read.items() if self.forward_path.reads(role))
        own = self.arithmetic.of_step(policy, self.references.positions_read(read))
        return own + self.arithmetic.of_states(self.addons.take_to_states())

    # The run around it

    def train(self, *args, **kwargs):
        """As [`ResumableTrainer.train`]; the reference is placed before and taken off afterwards."""
        self.card_facts.audits = {}
        self.references.open(self.accelerator)
        with dropout_as_asked(self.args, self.model), self.trainable.during_training(self.model):
            try:
                return super().train(*args, **kwargs)
            finally:
                self.references.close()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the mean of every recorded component since the last log, over all ranks."""
        if "loss" in logs:
            logs |= self.meters.reduce(self.accelerator)
        super().log(logs, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As [`~transformers.Trainer.save_model`]: weights as safetensors, tokenizer, and a model card."""
        super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            write_model_card(self, output_dir or self.args.output_dir)

    def create_model_card(
        self,
        model_name: str | None = None,
        dataset_name: str | None = None,
        tags: list[str] | str | None = None,
        audits: dict[str, Any] | None = None,
    ) -> None:
        """Writes `README.md` into the output folder: what was unlearned, how, and what that does not promise.

        What is given stays for later cards of this trainer, but for `audits` (see
        [`~hf_unlearn.hub.card_audit.read_audits`]), which hold until training goes on.
        """
        self.card_facts.add(model_name, dataset_name, tags, audits)
        if self.is_world_process_zero():
            write_model_card(self, self.args.output_dir)

    def _get_train_sampler(self, train_dataset=None):
        self.pair_sampler = PairSampler(self.train_dataset)
        return self.pair_sampler

    def _set_signature_columns_if_needed(self) -> None:
        # Trainer drops what the model's forward does not take; a pair's columns are its roles.
        super()._set_signature_columns_if_needed()
        own = (*self.train_dataset.roles, *self.family.columns)
        self._signature_columns += [column for column in own if column not in self._signature_columns]
