# SPDX-License-Identifier: Apache-2.0
"""Runs that must come out the same on one process and on two, however these are wrapped."""

import json
import os
import signal
from dataclasses import dataclass, field
from pathlib import Path

import torch
from conftest import lora, make_args, make_tokenizer
from transformers import TrainerCallback
from vilt import make_processor, make_rows

from hf_unlearn import MUAlignTrainer, NPOTrainer
from hf_unlearn.addons.addon import AddOn
from hf_unlearn.training.faults import NonFiniteError, Terminated


# Rows of one length: token means then do not depend on how rows are spread over processes.
FORGET = [{"text": f"secret {i:02d} of Ada"} for i in range(8)]
RETAIN = [{"text": f"common {i:02d} of Bob"} for i in range(12)]
STEP = 4


class Hooked(NPOTrainer):
    """A method that looks into the model: the outputs of one projection and of the last layer are part of its loss."""

    def __init__(self, model, *args, **kwargs):
        super().__init__(model, *args, **kwargs)
        self.taken = {}
        layers = self.model.model.layers
        for name, module in (("values", layers[0].self_attn.v_proj), ("last", layers[-1])):
            # Registered before the model is wrapped, as the hooks of a method are.
            module.register_forward_hook(lambda module, args, output, name=name: self.taken.update({name: output}))

    def forget_loss(self, rows):
        norms = {name: output.float().pow(2).mean() for name, output in self.taken.items()}
        self.meters.add("forget/values_loss", norms["values"])
        self.meters.add("forget/last_loss", norms["last"])
        return super().forget_loss(rows) + 3.0 * norms["values"] + 0.1 * norms["last"]


class Stateful(NPOTrainer):
    """A method whose loss depends on what it keeps."""

    def __init__(self, *args, **kwargs):
        self.pull = torch.ones(3)
        super().__init__(*args, **kwargs)

    def forget_loss(self, rows):
        self.pull = self.pull * 1.1
        return super().forget_loss(rows) * self.pull[0].to(rows.token_logps.device)

    def method_state(self):
        return {"pull": self.pull}

    def load_method_state(self, state):
        self.pull = state["pull"]


class Sharpened(AddOn):
    """Half the weights stay; the others go along gradients at weights that are a step further up."""

    name, title = "sharpened", "The test's add-on"

    @torch.no_grad()
    def before_optimizer(self, step):
        weights = list(step.parameters.values())
        norm = torch.stack([weight.grad.norm() for weight in weights]).norm()
        self.kept = [weight.clone() for weight in weights]
        for weight in weights:
            weight.add_(weight.grad, alpha=(0.05 / norm).item())
        with torch.enable_grad():
            step.repeat()
        for weight, old in zip(weights, self.kept, strict=True):
            weight.copy_(old)

    @torch.no_grad()
    def after_optimizer(self, step):
        for weight, old in zip(step.parameters.values(), self.kept, strict=True):
            weight[..., ::2] = old[..., ::2]

    def state(self):
        return {"kept": self.kept[0]}

    def load_state(self, state):
        assert state["kept"].abs().sum() > 0


class WithAddOn(NPOTrainer):
    """A method that brings an add-on of gradients, weights and state."""

    @classmethod
    def addons_of(cls, args):
        return [Sharpened()]


class BadOnLastRank(NPOTrainer):
    """The loss of one process is not a number at step 4."""

    def forget_loss(self, rows):
        bad = self.state.global_step == 3 and self.args.process_index == self.args.world_size - 1
        return super().forget_loss(rows) * (float("nan") if bad else 1.0)


class SignalLastRank(TrainerCallback):
    """SIGTERM to one process only, within step 4."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 3 and args.process_index == args.world_size - 1:
            os.kill(os.getpid(), signal.SIGTERM)


@dataclass
class Case:
    """One run of six steps of four pairs.

    Args:
        args: the config's.
        trainer: the method.
        adapter: train a fresh adapter.
        trained: the adapter comes in trained, under a name of its own.
        lora: settings of the adapter.
        biased: of a model whose layers have biases.
        accumulation: micro-batches a step.
        resume: run once more from the checkpoint of step 3.
        ends: the error that the run ends with.
        signal: SIGTERM goes to one process.
        classifier: of a ViLT and rows with pictures.
        whole: it requires whole gradients, which DeepSpeed and FSDP do not have.
        tolerance: of weights, absolute.
        sinking: what is logged and sinks.
    """

    args: dict = field(default_factory=dict)
    trainer: type = NPOTrainer
    adapter: bool = False
    trained: bool = False
    lora: dict = field(default_factory=dict)
    biased: bool = False
    accumulation: int = 1
    resume: bool = False
    ends: type | None = None
    signal: bool = False
    classifier: bool = False
    whole: bool = False
    tolerance: float = 1e-4
    sinking: str = "forget/logps"


KL = {"retain_loss": "kl"}
HEAD = {"modules_to_save": ["lm_head"]}
PLAIN = {"optim": "sgd", "learning_rate": 0.05}
SAVES = {"save_strategy": "steps", "save_steps": 3}
CASES = {
    "fused, cached reference": Case(KL | {"fused_losses": True, "reference": "cache"}),
    "fused, live reference": Case(KL | {"fused_losses": True, "reference": "live"}),
    "logits, live reference, accumulation": Case(KL | {"fused_losses": False, "reference": "live"}, accumulation=2),
    "hooks": Case(KL, Hooked),
    "hooks, checkpointing, live reference": Case(
        KL | {"reference": "live", "activation_checkpointing": True}, Hooked, accumulation=2
    ),
    "adapter": Case(KL, adapter=True),
    "adapter, checkpointing": Case(KL | {"activation_checkpointing": True}, adapter=True),
    "a pass a role": Case({"retain_loss": "nll", "forward_passes": "split"}),
    "packed": Case({"retain_loss": "nll", "forward_passes": "packed"}),
    "adapter and a trained head": Case(KL, adapter=True, lora=HEAD),
    "frozen layers, live reference": Case(
        KL | {"trainable_modules": [r"layers\.1\.", "lm_head"], "reference": "live", "cache_frozen": False}
    ),
    "frozen layers from disk": Case(KL | {"trainable_modules": [r"layers\.1\.", "lm_head"]}),
    "best checkpoint in bfloat16": Case(
        KL
        | {"bf16": True, "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
        | {"load_best_model_at_end": True, "metric_for_best_model": "eval_retain_loss", "save_total_limit": 2}
        | {"per_device_eval_batch_size": 2, "optim": "sgd", "learning_rate": 1.0, "lr_scheduler_type": "linear"},
        # Saved by DeepSpeed in bfloat16, weights around 1 are rounded by up to 0.004.
        tolerance=8e-3,
    ),
    "resumed": Case(KL | SAVES, Stateful, resume=True),
    "resumed adapter": Case(KL | SAVES, adapter=True, resume=True),
    "trained adapter": Case(KL, adapter=True, trained=True),
    "trained adapter and a trained head": Case(KL, adapter=True, trained=True, lora=HEAD, accumulation=2),
    "resumed trained adapter": Case(KL | SAVES, adapter=True, trained=True, resume=True),
    "biases that train beside an adapter": Case(KL, adapter=True, lora={"bias": "all"}, biased=True),
    "adapter that takes from the model": Case(KL, adapter=True, lora={"init_lora_weights": "pissa"}),
    "not a number on one process": Case(KL | SAVES, BadOnLastRank, ends=NonFiniteError),
    "sigterm to one process": Case(KL, signal=True, ends=Terminated),
    "poisoned rows and a value-norm penalty": Case(
        KL
        | {"poison_prefix": "XYZ", "poison_ratio": 0.5, "poison_keep_clean": True}
        | {"value_norm_penalty": 0.5, "value_norm_tokens": 4}
    ),
    "an add-on": Case(KL | PLAIN, WithAddOn, accumulation=2, whole=True),
    "a resumed add-on": Case(KL | SAVES, WithAddOn, adapter=True, resume=True, whole=True),
    # Plain descent: keys' biases have no gradient but rounding, of which Adam would make steps.
    "a classifier": Case(KL | PLAIN, classifier=True, accumulation=2),
    "functions of a classifier's predictions": Case(
        PLAIN | {"label_smoothing": 0.1, "lambda_kd": 0.5, "top_k": 3},
        MUAlignTrainer,
        classifier=True,
        sinking="retain/ce",
    ),
    "functions of whole predictions": Case(
        {"label_smoothing": 0.1, "lambda_kd": 0.5, "tail": "cvar"}, MUAlignTrainer, accumulation=2, sinking="retain/ce"
    ),
    # Shrinking goes towards the mean of a process's own rows, and noise is drawn by each: only clipping is the same.
    "bounded states": Case(
        {"forget_clip": 2.0, "lambda_kd": 0.5, "fused_losses": True}, MUAlignTrainer, sinking="retain/ce"
    ),
    "bounded states under logits": Case(
        {"forget_clip": 2.0, "lambda_kd": 0.5, "fused_losses": False}, MUAlignTrainer, sinking="retain/ce"
    ),
}


def run_case(case: Case, model: str, folder: Path) -> dict:
    """Runs a case on this process, alone or as one of several; the result is the same on all.

    Args:
        case ([`Case`]): what to run.
        model (`str`): folder of the model to start from.
        folder (`Path`): gets the saved model.
    """
    if case.resume:
        _trainer(case, model, folder).train()
    trainer = _trainer(case, model, folder)
    result = {"log": trainer.state.log_history, "error": None}
    try:
        trainer.train(resume_from_checkpoint=str(folder / "checkpoint-3") if case.resume else None)
    except (NonFiniteError, Terminated) as error:
        if case.ends is not type(error):
            raise
        result["error"] = str(error)
    else:
        trainer.save_model()
    accelerator = trainer.accelerator
    return result | {
        "log": trainer.state.log_history,
        "steps": trainer.state.global_step,
        "best": trainer.state.best_global_step,
        "world": accelerator.num_processes,
        "kind": accelerator.distributed_type.value,
        "wrapper": type(trainer.model_wrapped).__name__,
        "reference": trainer.reference.name,
        "reference_wrapper": type(getattr(trainer.reference, "model", None)).__name__,
        "fused": trainer.forward_path.fused,
        "prefix": trainer.forward_path.prefix is not None,
    }


def _trainer(case: Case, model: str, folder: Path):
    world = int(os.environ.get("WORLD_SIZE", "1"))
    settings = {
        "max_steps": 6,
        "per_device_train_batch_size": STEP // case.accumulation // world,
        "gradient_accumulation_steps": case.accumulation,
    }
    # The arguments come before the model: ZeRO-3 shards a model while it is loaded, and must be known by then.
    args = make_args(case.trainer.config_class, folder, **(settings | case.args))
    started_as(args)
    adapter = lora(target_modules="all-linear", **case.lora) if case.adapter else None
    forget, retain, processor = FORGET, RETAIN, make_tokenizer()
    if case.classifier:
        model, processor = f"{model}/vilt", make_processor()
        forget, retain = make_rows(8), make_rows(12, first=20)
    if case.biased:
        model = f"{model}/biased"
    if case.trained:
        model, adapter = _with_trained_adapter(model, adapter), None
    return case.trainer(
        model,
        args,
        forget_dataset=forget,
        retain_dataset=retain,
        eval_dataset={"forget": forget, "retain": retain},
        processing_class=processor,
        peft_config=adapter,
        callbacks=[SignalLastRank()] if case.signal else None,
    )


def _with_trained_adapter(path: str, config):
    """The same on every process."""
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(path), config, adapter_name="v2", autocast_adapter_dtype=False
    )
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def started_as(args) -> None:
    """Lets accelerate wrap with FSDP2 on processors, where it would take DDP, and ZeRO-3 shard small parameters, which
    it would keep whole. For tests: it reaches into their states."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    if args.deepspeed_plugin is not None:
        zero = args.deepspeed_plugin.deepspeed_config["zero_optimization"]
        zero["stage3_param_persistence_threshold"] = 0


def main(model: str, folder: str, names: str) -> None:
    """Runs the named cases one after the other on all processes; writes `<number>/result.json` of each."""
    import traceback

    from accelerate.state import AcceleratorState

    first = os.environ["RANK"] == "0"
    for number, (name, case) in enumerate(CASES.items()):
        if names != "all" and name not in names.split("|"):
            continue
        place = Path(folder) / str(number)
        AcceleratorState._reset_state()
        try:
            result = run_case(case, model, place)
        except Exception:  # noqa: BLE001 (the other cases run all the same)
            result = {"failed": traceback.format_exc()}
        (place.parent / f"{number}-{os.environ['RANK']}.json").write_text(json.dumps(result))
        if first:
            print(name, "failed" if "failed" in result else "done", flush=True)
