# SPDX-License-Identifier: Apache-2.0
"""What every method must do, in one grid: METHODS x retain term x {full, LoRA}. A new method is one row of `CASES`."""

import functools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from conftest import ROOT, changed, make_args, make_model, make_tokenizer, train_batch, weights
from transformers import AutoModelForCausalLM

import hf_unlearn
from hf_unlearn import METHODS, UnlearnConfig, UnlearnTrainer
from hf_unlearn.data.collator import rows_of


# What a slow formula sees of a row: log-probabilities of its labels under the policy and the reference, in float64.
Row = tuple[list[float], list[float]]
# Or of its tokens: those of all that may be predicted, under the two, and the label.
Tokens = list[tuple[torch.Tensor, torch.Tensor, int]]


def ascent(rows: list[Row], args) -> float:
    tokens = [logp for policy, _ in rows for logp in policy]
    return sum(tokens) / len(tokens)


def npo(rows: list[Row], args) -> float:
    ratios = [sum(policy) - sum(reference) for policy, reference in rows]
    return 2 / args.beta * sum(math.log(1 + math.exp(args.beta * ratio)) for ratio in ratios) / len(ratios)


def dpo(rows: list[Row], alternates: list[Row], args) -> float:
    def gains(answers):
        return [sum(policy) - sum(reference) for policy, reference in answers]

    margins = [preferred - lost for lost, preferred in zip(gains(rows), gains(alternates), strict=True)]
    return 2 / args.beta * sum(math.log(1 + math.exp(-args.beta * margin)) for margin in margins) / len(margins)


def llmu(rows: list[Row], alternates: list[Row], args) -> float:
    """Its two terms on forget prompts, as if they had one weight."""
    means = [[sum(policy) / len(policy) for policy, _ in answers] for answers in (rows, alternates)]
    return sum(means[0]) / len(means[0]) - sum(means[1]) / len(means[1])


def flat(rows: list[Row], alternates: list[Row], args) -> float:
    forgotten, preferred = (
        [sum(map(math.exp, policy)) / len(policy) for policy, _ in answers] for answers in (rows, alternates)
    )
    return sum(math.exp(p - 1) - other for p, other in zip(forgotten, preferred, strict=True)) / len(forgotten)


def simnpo(rows: list[Row], args) -> float:
    margins = [-sum(policy) / len(policy) - args.delta for policy, _ in rows]
    return 2 / args.beta * sum(math.log(1 + math.exp(-args.beta * margin)) for margin in margins) / len(margins)


def weighted_ascent(weight):
    """Ascent in which a token has a weight, given its probability."""

    def term(rows: list[Row], args) -> float:
        tokens = [logp for policy, _ in rows for logp in policy]
        return sum(weight(math.exp(logp), args) * logp for logp in tokens) / len(tokens)

    return term


def tnpo(rows: list[Row], args) -> float:
    tokens = [by - ref for policy, reference in rows for by, ref in zip(policy, reference, strict=True)]
    return 2 / args.beta * sum(math.log(1 + math.exp(args.beta * ratio)) for ratio in tokens) / len(tokens)


def token_means(value, skipped: int = 0):
    """Mean of a token's value over each row's tokens, then over rows."""

    def term(rows: list[Tokens], args) -> float:
        means = []
        for row in rows:
            values = [value(policy, reference, label, args) for policy, reference, label in row[skipped:]]
            means.append(sum(values) / len(values))
        return sum(means).item() / len(means)

    return term


def ceu(policy, reference, label: int, args):
    others = torch.cat([policy[:label], policy[label + 1 :]])
    return -(others.softmax(-1) * others).sum()


def undial(policy, reference, label: int, args):
    target = reference.clone()
    target[label] -= args.beta
    return -(target.softmax(-1) * policy).sum()


def whp(pairs, policy, entered, args) -> dict[str, float]:
    """Over logits, in which the three models' constants count."""
    reinforced, rows = make_model(), []
    reinforced.load_state_dict(knowing(60))
    for pair in pairs:
        row = pair["forget"]
        ours, base, raised = (logits(model, row) for model in (policy, entered, reinforced))
        generic = torch.where(raised > base, base - args.alpha * (raised - base), base)
        values = [-(generic[t].softmax(-1) * ours[t].log_softmax(-1)).sum() for t, _ in labelled(row)]
        rows.append(sum(values) / len(values))
    return {"forget": (sum(rows) / len(rows)).item()}


def reinforced() -> dict:
    """A model that knows the forget rows better."""
    model = make_model()
    model.load_state_dict(knowing(60))
    return {"reinforced": model}


def ihl(policy, reference, label: int, args):
    others = torch.cat([policy[:label], policy[label + 1 :]])
    return 1 + policy[label].exp() - others.exp().max()


def unilogit(policy, reference, label: int, args):
    p, entries = policy.exp(), len(policy)
    target = p / (1 - p[label]) * (1 - 1 / entries)
    target[label] = 1 / entries
    return (p * (policy - target.log())).sum()


def unlikelihood(policy, reference, label: int, args):
    return -(1 - policy[label].exp()).log()


def negative_entropy(policy, reference, label: int, args):
    return (policy.exp() * policy).sum()


def flatness(pairs, policy, entered, args) -> dict[str, float]:
    """PDU's: squared margins of logits at the places that predict a label, and the retain tokens' likelihood."""
    margins, tokens = [], []
    for pair in pairs:
        logits = policy(torch.tensor([pair["forget"]["input_ids"]])).logits[0].detach().double()
        values = [(logits[t].max() - logits[t].mean()).item() ** 2 for t, _ in labelled(pair["forget"])]
        margins.append(sum(values) / len(values))
        log_p = log_probabilities(policy, pair["retain"])
        tokens += [-log_p[t, label].item() for t, label in labelled(pair["retain"])]
    return {"forget": sum(margins) / len(margins), "retain": sum(tokens) / len(tokens)}


class OfLogProbabilities:
    """The objective of methods over log-probabilities: a forget term over rows, and a mean over retain tokens."""

    def __init__(self, forget_term, *roles: str):
        self.forget_term, self.roles = forget_term, roles or ("forget",)

    def row(self, by_policy, by_reference, spots) -> Row:
        return tuple([lp[t, label].item() for t, label in spots] for lp in (by_policy, by_reference))

    def __call__(self, pairs, policy, entered, args) -> dict[str, float]:
        seen = {role: [] for role in self.roles}
        for role, found in seen.items():
            for pair in pairs:
                for row in rows_of(pair[role]):
                    by_policy, by_reference = (log_probabilities(model, row) for model in (policy, entered))
                    found.append(self.row(by_policy, by_reference, labelled(row)))
        terms = {self.roles[0]: self.forget_term(*seen.values(), args)}
        if args.retain_loss == "none":
            return terms
        tokens = []
        for pair in pairs:
            by_policy, by_reference = (log_probabilities(model, pair["retain"]) for model in (policy, entered))
            for t, label in labelled(pair["retain"]):
                kl = (by_reference[t].exp() * (by_reference[t] - by_policy[t])).sum().item()
                tokens.append(kl if args.retain_loss == "kl" else -by_policy[t, label].item())
        return terms | {"retain": sum(tokens) / len(tokens)}


class OfTokens(OfLogProbabilities):
    """A forget term over the whole predictions of a row's tokens and their labels."""

    def row(self, by_policy, by_reference, spots) -> Tokens:
        return [(by_policy[t], by_reference[t], label) for t, label in spots]


def mu_align(rows, args) -> float:
    """Row by row: divergence of the flattened prediction from uniform, and what the largest probabilities exceed."""
    values = []
    for row in rows:
        tokens = []
        for log_p in row:
            flat = (log_p / args.temperature).softmax(-1)
            uniform = args.temperature**2 * -(flat * len(flat)).log().mean()
            largest = log_p.exp().sort(descending=True).values[: args.top_k]
            tail = (largest - 1 / len(log_p)).clamp(min=0).square().mean()
            tokens.append((args.alpha * uniform + args.beta * tail).item())
        values.append(sum(tokens) / len(tokens))
    return sum(values) / len(values)


class OfDistributions:
    """A forget term over whole predictions, and cross-entropy: means over a row's tokens, then over rows."""

    def __init__(self, forget_term):
        self.forget_term = forget_term

    def __call__(self, pairs, policy, entered, args) -> dict[str, float]:
        seen = {
            role: [(log_probabilities(policy, pair[role]), labelled(pair[role])) for pair in pairs]
            for role in pairs[0]
        }
        forget = [[log_p[t] for t, _ in spots] for log_p, spots in seen["forget"]]
        terms = {"forget": self.forget_term(forget, args)}
        if "retain" in seen:
            rows = [sum(-log_p[t, y].item() for t, y in spots) / len(spots) for log_p, spots in seen["retain"]]
            terms["retain"] = sum(rows) / len(rows)
        return terms


def rmu(pairs, policy, entered, args) -> dict[str, float]:
    """Squared distances of one layer's states, mean over every token and dimension."""
    drawn = torch.rand((1, policy.config.hidden_size), generator=torch.Generator().manual_seed(args.seed)).double()
    control = args.steering_coeffs[0] * drawn / drawn.square().sum().sqrt()
    terms = {"forget": torch.cat([(states(policy, pair["forget"], args.layer_id) - control) for pair in pairs])}
    if args.retain_loss == "states":
        by_policy, by_reference = (
            torch.cat([states(model, pair["retain"], args.layer_id) for pair in pairs]) for model in (policy, entered)
        )
        terms["retain"] = by_policy - by_reference
    return {role: distance.square().mean().item() for role, distance in terms.items()}


def rr(pairs, policy, entered, args) -> dict[str, float]:
    """Cosines of two layers' states, mean over tokens and layers, as a run begins: the retain term weighs 0."""
    cosines = [
        (h * h_ref).sum(-1) / (h.square().sum(-1) * h_ref.square().sum(-1)).sqrt()
        for layer in args.layer_ids
        for pair in pairs
        for h, h_ref in [[states(model, pair["forget"], layer) for model in (policy, entered)]]
    ]
    terms = {"forget": torch.cat(cosines).clamp(min=0).mean().item()}
    return terms | ({"retain": 0.0} if args.retain_loss == "states" else {})


def lunar(pairs, policy, entered, args) -> dict[str, float]:
    """Squared distances at the tokens of prompts; the direction from those in the file. All forget prompts of the
    rows here are one."""
    tokenizer = make_tokenizer()
    questions = [tokenizer(line)["input_ids"] for line in (ROOT / args.refusal_file).read_text().splitlines()]
    questions = [ids[:-1] if ids[-1] == tokenizer.eos_token_id else ids for ids in questions]

    def asked(row) -> list[int]:
        return row["input_ids"][: next(i for i, label in enumerate(row["labels"]) if label != -100)]

    def last(ids) -> torch.Tensor:
        return states(policy, {"input_ids": ids}, args.layer_id)[-1]

    direction = sum(map(last, questions)) / len(questions) - last(asked(pairs[0]["forget"]))
    terms = {}
    for role in ("forget", "retain")[: 1 + (args.retain_loss == "states")]:
        moved = args.refusal_coeff * direction if role == "forget" else 0.0
        distances = []
        for pair in pairs:
            prompt = {"input_ids": asked(pair[role])}
            distances.append(states(policy, prompt, args.layer_id) - states(entered, prompt, args.layer_id) - moved)
        terms[role] = torch.cat(distances).square().mean().item()
    return terms


def repnoise(pairs, policy, entered, args) -> dict[str, float]:
    """Pair by pair of tokens and layer by layer, with the drawn noise; every layer through norm and head."""
    core = getattr(policy, "get_base_model", lambda: policy)()
    spots = [(pair["forget"], labelled(pair["forget"])) for pair in pairs]
    count, layers, width = sum(len(found) for _, found in spots), len(core.model.layers), policy.config.hidden_size
    noise = torch.randn((count, layers, width), generator=torch.Generator().manual_seed(args.seed)).double()
    distance, nll = 0.0, 0.0
    for layer in range(layers):
        by_row = [states(policy, row, layer) for row, _ in spots]
        h = torch.cat([found[[t for t, _ in places]] for found, (_, places) in zip(by_row, spots, strict=True)])
        every = torch.cat([h, noise[:, layer]])
        squares = (every[:, None] - every[None]).square().sum(-1)
        scale = squares.sum() / (len(every) ** 2 - len(every))
        kernel = sum((-squares / (scale * 2.0**i)).exp() for i in (-2, -1, 0, 1, 2))
        distance += kernel[:count, :count].mean() + kernel[count:, count:].mean() - 2 * kernel[:count, count:].mean()
        for found, (_, places) in zip(by_row, spots, strict=True):
            with torch.no_grad():
                log_p = core.lm_head(core.model.norm(found.float())).double().log_softmax(-1)
            nll -= sum(log_p[t, label] for t, label in places) / len(places) / len(spots)
    terms = {"forget": (args.beta * distance / layers - args.alpha * torch.log(1 + nll / layers)).item()}
    if args.retain_loss == "none":
        return terms
    kept = [(log_probabilities(policy, pair["retain"]), labelled(pair["retain"])) for pair in pairs]
    tokens = [-log_p[t, label].item() for log_p, places in kept for t, label in places]
    return terms | {"retain": sum(tokens) / len(tokens)}


def jensun(pairs, policy, entered, args) -> dict[str, float]:
    """Divergences from the mixture, entry by entry; the forget rows' targets from the tokenizer."""

    def js(p, q) -> float:
        mixed = (p + q) / 2
        return sum((each * (each / mixed).log()).nan_to_num().sum().item() for each in (p, q)) / 2

    target, forget, retain = make_tokenizer()(args.target_text, add_special_tokens=False)["input_ids"], [], []
    for pair in pairs:
        p, q = log_probabilities(policy, pair["forget"]).exp(), log_probabilities(entered, pair["retain"]).exp()
        for number, (t, _) in enumerate(labelled(pair["forget"])):
            forget.append(js(p[t], torch.eye(p.shape[-1], dtype=p.dtype)[target[number % len(target)]]))
        kept, spots = log_probabilities(policy, pair["retain"]).exp(), labelled(pair["retain"])
        retain.append(sum(js(kept[t], q[t]) for t, _ in spots) / len(spots))
    return {"forget": sum(forget) / len(forget), "retain": sum(retain) / len(retain)}


@dataclass
class Case:
    """A method.

    Args:
        terms: its terms spelled out, role to a number, from rows that go through the models one by one.
        settings (`dict`): other than the defaults.
        retain_losses (`tuple[str, ...]`): what its `retain_loss` may be.
        prompts (`bool`): reads prompts, so that all rows need one.
        others (`Callable`, *optional*): makes the frozen models that it compares with, by name.
        knows (`bool`): unlearns from a model that was trained on the forget rows; at a random one its term is least.
        adapters (`tuple[bool, ...]`): without or with LoRA, in the default suite; the slow one has both.
        trains (`str`): regular expression of what trains in a model of two layers.
        sinking (`str`): what is logged of the forget rows and sinks.
        of_rows (`bool`): its terms are means over rows, so that a step may be cut into micro-batches.
        of_batches (`set[str]`): what is logged and is no mean over rows.
        roles (`tuple[str, ...]`): whose rows it trains on beside retain rows.
    """

    terms: object
    settings: dict = field(default_factory=dict)
    retain_losses: tuple[str, ...] = ("none", "nll", "kl")
    trains: str = ""
    sinking: str = "forget/logps"
    of_rows: bool = True
    of_batches: set[str] = field(default_factory=set)
    roles: tuple[str, ...] = ("forget",)
    adapters: tuple[bool, ...] = (False, True)
    prompts: bool = False
    others: Callable | None = None
    knows: bool = False

    def start(self):
        """The model to unlearn from."""
        model = make_model()
        if self.knows:
            model.load_state_dict(knowing())
        return model


# Of a method whose forget term alone is its own: the rest is the base's, and seen with GA and NPO.
OWN = {"retain_losses": ("none",), "adapters": (False,)}
PAIR = ("forget", "alternate")
RMU = {"layer_id": 1, "layer_ids": [1], "steering_coeffs": [200.0], "retain_weight": 10.0}
CASES = {
    "ga": Case(OfLogProbabilities(ascent)),
    "npo": Case(OfLogProbabilities(npo), {"beta": 0.3}),
    "simnpo": Case(OfLogProbabilities(simnpo), {"beta": 0.7, "delta": 3.5}, **OWN),
    # A random model's probabilities to the power of 5 are nothing.
    "wga": Case(OfLogProbabilities(weighted_ascent(lambda p, args: p**args.beta)), {"beta": 0.1}, **OWN),
    "satimp": Case(
        OfLogProbabilities(weighted_ascent(lambda p, args: p**args.beta1 * (1 - p) ** args.beta2)),
        {"beta1": 0.1, "beta2": 2.0},
        **OWN,
    ),
    "tnpo": Case(OfLogProbabilities(tnpo), {"beta": 0.8}, **OWN),
    "ceu": Case(OfTokens(token_means(ceu, skipped=1)), {"skip_tokens": 1}, knows=True, **OWN),
    "undial": Case(OfTokens(token_means(undial)), {"beta": 4.0}, knows=True, **OWN),
    "whp": Case(whp, {"alpha": 1.0}, others=reinforced, knows=True, **OWN),
    "ihl": Case(OfTokens(token_means(ihl)), {}, knows=True, **OWN),
    "unilogit": Case(OfTokens(token_means(unilogit)), {}, knows=True, **OWN),
    "unlikelihood": Case(OfTokens(token_means(unlikelihood)), {}, knows=True, **OWN),
    # Certain predictions have no gradient: of a random model they are not.
    "max_entropy": Case(OfTokens(token_means(negative_entropy)), {}, sinking="forget/loss", knows=True, **OWN),
    "mu_align": Case(
        OfDistributions(mu_align),
        {"alpha": 50.0},
        ("none", "nll"),
        sinking="forget/uniform",
        of_batches={"forget/p_max_p99"},
    ),
    "rmu": Case(rmu, RMU, ("none", "states"), r"layers\.1\..*(down_proj|lora_)", "forget/loss"),
    "rr": Case(rr, {"layer_ids": [0, 1]}, ("none", "states"), r"layers\.", "forget/cosine"),
    "lunar": Case(
        lunar,
        {"layer_id": 1, "refusal_template": "{prompt}", "refusal_coeff": 1000.0},
        ("none", "states"),
        r"layers\.1\..*down_proj",
        "forget/loss",
        prompts=True,
    ),
    "repnoise": Case(repnoise, {"beta": 1.0, "alpha": 2.0}, ("none", "nll"), of_rows=False, knows=True),
    "dpo": Case(OfLogProbabilities(dpo, *PAIR), {"beta": 0.3}, ("kl",), roles=PAIR),
    # Its loss is DPO's; how its alternates come about is in tests/training/test_sampled.py.
    "altpo": Case(
        OfLogProbabilities(dpo, *PAIR), {"beta": 0.3, "num_alternates": 1}, ("none",), roles=PAIR, adapters=(False,)
    ),
    "llmu": Case(
        OfLogProbabilities(llmu, *PAIR),
        {"num_alternates": 2, "alternate_weight": 0.7, "forget_weight": 3.0},
        ("kl",),
        roles=PAIR,
    ),
    "pdu": Case(flatness, {}, ("nll",), sinking="forget/loss", knows=True, adapters=(False,)),
    "idk_nll": Case(
        OfLogProbabilities(lambda rows, args: -ascent(rows, args), "alternate"),
        retain_losses=("nll",),
        sinking="alternate/nll",
        roles=("alternate",),
        adapters=(False,),
    ),
    # Terms of probabilities, which an untrained model has next to none of.
    "flat": Case(
        OfLogProbabilities(flat, *PAIR),
        {"divergence": "kl", "forget_weight": 30.0},
        ("none",),
        sinking="forget/loss",
        roles=PAIR,
        adapters=(False,),
    ),
    "jensun": Case(jensun, {"forget_weight": 30.0}, ("js",), sinking="forget/nll"),
}

# Of these a step is not always the model's, or not of both roles; the same is tested there.
APART = {"align_then_unlearn": "tests/methods/test_align_trainer.py"} | {
    name: f"tests/methods/test_{name}.py" for name in ("amnesiac", "fisher", "multidelete", "retrain", "scrub")
}

CELLS = [
    pytest.param(
        method,
        retain_loss,
        adapter,
        id=f"{method}-{retain_loss}-{'lora' if adapter else 'full'}",
        marks=() if adapter in case.adapters else pytest.mark.slow,
    )
    for method, case in CASES.items()
    for retain_loss in case.retain_losses
    for adapter in (False, True)
]
grid = pytest.mark.parametrize(("method", "retain_loss", "adapter"), CELLS)
grid_of_rows = pytest.mark.parametrize(
    ("method", "retain_loss", "adapter"), [cell for cell in CELLS if CASES[cell.values[0]].of_rows]
)

# Of what does not depend on the retain term: with one of them, in the default suite.
grid_of_runs = pytest.mark.parametrize(
    ("method", "retain_loss", "adapter"),
    [
        pytest.param(*cell.values, id=cell.id, marks=cell.marks or (() if last else pytest.mark.slow))
        for cell in CELLS
        for last in [cell.values[1] == CASES[cell.values[0]].retain_losses[-1]]
    ],
)

FORGET = [{"text": f"secret {i:02d} of Ada"} for i in range(8)]
RETAIN = [{"text": f"common {i:02d} of Bob"} for i in range(12)]
RAGGED_FORGET = [{"prompt": "Who?", "completion": " Ada" + "!" * i} for i in range(4)]
RAGGED_RETAIN = [{"text": "cup " * (i + 1)} for i in range(6)]


def halved(row):
    """A text as a prompt and its completion."""
    return {"prompt": row["text"][:9], "completion": row["text"][9:]} if "text" in row else row


def asked(row):
    """A text as a prompt, of its first letters, and its completion."""
    return {"prompt": row["text"][:2], "completion": row["text"][2:]} if "text" in row else row


@functools.cache
def knowing(steps: int = 20) -> dict[str, torch.Tensor]:
    """Weights of a model that was trained on the forget rows."""
    model, tokenizer = make_model().train(), make_tokenizer()
    texts = [row.get("text") or row["prompt"] + row["completion"] for row in FORGET + RAGGED_FORGET]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(steps):
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.state_dict()


@pytest.fixture
def build(tmp_path, method, retain_loss, adapter):
    """Makes a trainer of the grid's method; keyword arguments are the config's."""

    def build(forget=FORGET, retain=RETAIN, eval_dataset=None, model=None, **kwargs):
        from peft import LoraConfig

        config_class, trainer_class = METHODS[method]
        settings = {"output_dir": tmp_path / "out", "retain_loss": retain_loss} | CASES[method].settings | kwargs
        alternate = None
        if "alternate" in CASES[method].roles:
            forget = [halved(row) for row in forget]
            # Of any length where the forget rows are.
            alternate = [
                {**row, "completion": " No" + "." * (i % 3 * (forget == RAGGED_FORGET))}
                for i, row in enumerate(forget)
                for i in range(i, i + CASES[method].settings.get("num_alternates", 1))
            ]
        if CASES[method].prompts:
            forget, retain = ([asked(row) for row in rows] for rows in (forget, retain))
        return trainer_class(
            model=model or CASES[method].start(),
            args=make_args(config_class, **settings),
            forget_dataset=forget,
            retain_dataset=retain,
            alternate_dataset=alternate,
            ref_models=CASES[method].others and CASES[method].others(),
            eval_dataset=eval_dataset,
            processing_class=make_tokenizer(),
            peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM") if adapter else None,
        )

    return build


def test_every_method_has_its_row():
    assert {*CASES, *APART} == set(METHODS)


def shake(model, scale=0.1, seed=0) -> None:
    """Moves what trains away from where it started, so that policy and reference differ."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


@torch.no_grad()
def logits(model, row) -> torch.Tensor:
    """`[T, V]` in float64, of one row alone: no padding, no other role."""
    return model(torch.tensor([row["input_ids"]])).logits[0].double()


def log_probabilities(model, row) -> torch.Tensor:
    """`[T, V]` in float64."""
    return logits(model, row).log_softmax(-1)


@torch.no_grad()
def states(model, row, layer: int) -> torch.Tensor:
    """`[T, d]` in float64, a layer's output for one row alone."""
    inner = getattr(model, "get_base_model", lambda: model)().model.layers[layer]
    taken = []
    hook = inner.register_forward_hook(lambda module, args, output: taken.append(output))
    model(torch.tensor([row["input_ids"]]))
    hook.remove()
    return taken[0][0].double()


def labelled(row) -> list[tuple[int, int]]:
    return [(t - 1, label) for t, label in enumerate(row["labels"]) if t and label != -100]


@grid
def test_objective_equals_the_formula_on_rows_of_any_length(build, method, retain_loss, adapter):
    weighting = {"forget_weight": 0.7, "retain_weight": 2.5}
    # An adapter that is switched off is the reference alone, not the other models of a method.
    reference = "adapter" if adapter and CASES[method].others is None else "live"
    trainer = build(
        forget=RAGGED_FORGET, retain=RAGGED_RETAIN, per_device_train_batch_size=3, reference=reference, **weighting
    )
    entered = CASES[method].start()
    policy = trainer.model.eval()
    shake(policy, 0.02 if CASES[method].knows else 0.1)
    pairs = [trainer.train_dataset[position] for position in range(3)]

    terms = CASES[method].terms(pairs, policy, entered, trainer.args)
    kept = set() if retain_loss == "none" else {"retain"}
    assert {*pairs[0]} == {*CASES[method].roles, *kept}
    assert {*terms} == {CASES[method].roles[0], *kept}
    expected = sum((2.5 if role == "retain" else 0.7) * term for role, term in terms.items())
    loss = trainer.compute_loss(policy, train_batch(trainer, range(3)))
    assert loss.item() == pytest.approx(expected, rel=2e-5, abs=2e-5)
    assert abs(expected) > 0.05


@grid
def test_trains_what_should_train_and_nothing_else(build, method, adapter):
    trainer = build(max_steps=3)
    before = weights(trainer.model)
    trainer.train()
    expected = {name for name in before if ("lora_" in name or not adapter) and re.search(CASES[method].trains, name)}
    assert changed(before, weights(trainer.model)) == expected
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    # The forget rows become less probable, or what else the method does to them.
    key = CASES[method].sinking
    logged = [entry[key] for entry in trainer.state.log_history if key in entry]
    assert logged[-1] < logged[0]


@grid_of_rows
def test_accumulation_gives_the_update_of_one_big_batch(build, method):
    results = {}
    for size, accumulation in ((8, 1), (2, 4)):
        # SGD: Adam's first step is the sign of the gradient, which hides its scale.
        trainer = build(
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            max_steps=1,
            optim="sgd",
            max_grad_norm=0.0,
        )
        shake(trainer.model)
        before = weights(trainer.model)
        trainer.train()
        after = weights(trainer.model)
        results[size] = {name: after[name] - before[name] for name in before}
        results[f"log {size}"] = trainer.state.log_history[0]
    assert max(update.abs().max() for update in results[8].values()) > 1e-4
    for name in results[8]:
        torch.testing.assert_close(results[2][name], results[8][name], rtol=1e-3, atol=1e-6)
    components = {key for key in results["log 8"] if "/" in key or key == "loss"} - CASES[method].of_batches
    for key in components:
        assert results["log 2"][key] == pytest.approx(results["log 8"][key], rel=1e-4, abs=1e-6), key


@grid_of_runs
def test_resume_gives_the_weights_of_the_uninterrupted_run(build, tmp_path):
    # 8 rows in batches of 2: four steps an epoch, so the run stops and goes on within the second.
    settings = {"max_steps": 8, "save_strategy": "steps", "save_steps": 6, "lr_scheduler_type": "linear"}
    whole = build(**settings)
    whole.train()
    resumed = build(**settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-6"))
    assert resumed.state.global_step == 8
    assert not changed(weights(whole.model), weights(resumed.model))


@grid_of_runs
def test_a_saved_model_predicts_the_same(build, tmp_path, method, adapter):
    from peft import PeftModel

    trainer = build(max_steps=2)
    trainer.train()
    trainer.save_model()
    if adapter:
        loaded = PeftModel.from_pretrained(CASES[method].start(), tmp_path / "out")
    else:
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ids = torch.tensor([[1, 44, 55, 66]])
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(ids).logits, trainer.model.eval()(ids).logits)
        assert (loaded(ids).logits - CASES[method].start()(ids).logits).abs().max() > 1e-3


@grid_of_runs
def test_evaluation_during_training_sees_forget_rise(build, method):
    trainer = build(
        eval_dataset={"forget": FORGET, "retain": RETAIN}, eval_strategy="steps", eval_steps=2, max_steps=4
    )
    trainer.train()
    curve = [entry["eval_forget_loss"] for entry in trainer.state.log_history if "eval_forget_loss" in entry]
    retain = [entry["eval_retain_loss"] for entry in trainer.state.log_history if "eval_retain_loss" in entry]
    assert len(curve) == len(retain) == 2
    if CASES[method].sinking == "forget/logps":
        assert curve[1] > curve[0]
    else:
        # What steered activations do to the predictions of a random model may be anything but nothing.
        assert curve[1] != curve[0]


# The table itself


@pytest.mark.parametrize("name", METHODS)
def test_table_gives_config_and_trainer(name):
    config_class, trainer_class = METHODS[name]
    assert issubclass(config_class, UnlearnConfig)
    assert issubclass(trainer_class, UnlearnTrainer)
    assert trainer_class.config_class is config_class
    assert trainer_class.method == name
    assert METHODS.describe(name)
    for public in (config_class, trainer_class):
        assert getattr(hf_unlearn, public.__name__) is public
        assert public.__name__ in dir(hf_unlearn)


def test_unknown_methods_name_the_nearest():
    with pytest.raises(KeyError, match=r"Unknown method 'noo'; allowed: .*npo.*Did you mean 'npo'\?"):
        METHODS["noo"]
    with pytest.raises(AttributeError, match="has no attribute 'DPOTrainer'"):
        hf_unlearn.DPOTrainer  # noqa: B018


def test_help_of_every_setting_can_be_printed():
    # T8: a bare % breaks `--help`.
    from dataclasses import fields

    from transformers import HfArgumentParser

    for name in METHODS:
        parser = HfArgumentParser(METHODS[name][0])
        text = parser.format_help()
        for setting in fields(METHODS[name][0]):
            if setting.name in UnlearnConfig.__annotations__ or setting.name in METHODS[name][0].__annotations__:
                assert f"--{setting.name}" in text
                assert setting.metadata["help"]
