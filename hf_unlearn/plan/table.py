# SPDX-License-Identifier: Apache-2.0
"""A plan on the terminal, and as JSON."""

from .addons import step_times
from .memory import GIB, Estimate, estimate
from .optimizers import KEEPS_SMALL_UPDATES
from .switches import Remedy
from .workload import Planned, Workload


TIGHT = 0.9
MOMENTS = {
    "forward": "at the end of the forward",
    "recomputation": "in the recomputation",
    "backward": "at the end of the backward",
    "step": "in the optimizer's step",
    "start": "before the first step",
    "inner": "in LAT's inner steps",
}


def verdict(peak: float, gpu_memory: float) -> str:
    """`fits`, `tight` (less than a tenth to spare) or `does not fit`."""
    if peak > gpu_memory:
        return "does not fit"
    return "tight" if peak > TIGHT * gpu_memory else "fits"


def as_dict(planned: Planned, need: Estimate, found: list[Remedy], gpu_memory: float) -> dict:
    """What `--json` writes; sizes in bytes."""
    return {
        "schema_version": 1,
        "model": {"parameters": planned.workload.shape.parameters, "trainable": planned.workload.shape.trainable,
                  "source": planned.source},
        "engine": {"name": planned.workload.engine.name, "gpus": planned.workload.engine.gpus},
        "addons": {"names": [addon.name for addon in planned.workload.addons],
                   "arithmetic": step_times(planned.workload)},
        "gpu_memory": gpu_memory,
        "peak": need.peak,
        "peak_at": need.moment,
        "verdict": verdict(need.peak, gpu_memory),
        "held": need.held,
        "moments": need.moments,
        "host": need.host,
        "host_while_loading": need.loading,
        "disk": need.disk,
        "remedies": [{"switches": [s.says for s in remedy.switches], "peak": remedy.peak} for remedy in found],
    }  # fmt: skip


def print_plan(planned: Planned, need: Estimate, found: list[Remedy], gpu_memory: float, console=None) -> None:
    """Prints the parts, the verdict, and what would make it fit."""
    from rich.console import Console
    from rich.table import Table

    console = console or Console()
    work = planned.workload
    console.print(describe(planned), highlight=False)
    table = Table("a GPU", title_justify="left")
    table.add_column("GiB", justify="right")
    for name, size in need.held.items():
        table.add_row(name, f"{size / GIB:.1f}")
    for moment, parts in need.moments.items():
        for i, (name, size) in enumerate(parts.items()):
            table.add_row(f"{name}, {MOMENTS[moment]}", f"{size / GIB:.1f}", end_section=i + 1 == len(parts))
    table.add_row(f"peak, {MOMENTS[need.moment]}", f"{need.peak / GIB:.1f}", style="bold")
    console.print(table)
    for line in elsewhere(work, need):
        console.print(line, highlight=False)
    console.print(f"{gpu_memory / GIB:g} GiB a GPU: {verdict(need.peak, gpu_memory)}.", style="bold", highlight=False)
    for line in [*advice(found, need.peak > gpu_memory), *warnings(work)]:
        console.print(line, highlight=False, soft_wrap=True)


def describe(planned: Planned) -> str:
    """What was planned, in two lines."""
    work, shape = planned.workload, planned.workload.shape
    trained = "all trained" if shape.trainable == shape.parameters else f"{shape.trainable / 1e6:.1f} M trained"
    losses = "fused losses" if work.fused else "losses over logits"
    rows = f"{work.rows} rows{' each' * (len(work.needs) > 1 and not work.turns)} of"
    roles = " or ".join(work.needs) if work.turns else " and ".join(work.needs)
    gpus = f"{work.engine.gpus} GPU{'s' * (work.engine.gpus > 1)}"
    times, names = step_times(work), ", ".join(addon.title for addon in work.addons)
    addons = f"\nadd-ons: {names}; a step takes about {times:.2g} times its arithmetic without them" if names else ""
    return (
        f"{shape.parameters / 1e9:.2f} B parameters ({planned.source}), {trained}, {work.optimizer}\n"
        f"{work.engine.name} on {gpus}; a forward: {rows} {roles}, up to {work.row_length} tokens; "
        f"{losses}; reference: {work.reference or 'none'}{addons}"
    )


def elsewhere(work: Workload, need: Estimate) -> list[str]:
    """Host memory and disk."""
    lines = [f"Host memory: {need.loading / GIB:.0f} GiB while loading, {need.host / GIB:.0f} GiB while training."]
    if work.reference == "cache":
        if need.disk is None:
            kept = [work.needs[role].kept == ("hidden",) for role in work.reference_roles]
            token = sum(work.shape.hidden * 2 if whole else 4 for whole in kept)
            lines.append(f"Cache on disk: {token * 1e6 / GIB:.2f} GiB for a million predicted tokens of each role.")
        else:
            lines.append(
                f"Cache on disk: {need.disk / GIB:.2f} GiB, at {work.tokens_a_row:g} predicted tokens a row "
                "(`--tokens_per_row`)."
            )
    return lines


def advice(found: list[Remedy], short: bool) -> list[str]:
    """What would make it fit."""
    if not short:
        return []
    if not found:
        return ["No set of three settings makes it fit: take a smaller model or shorter rows."]
    lines = [
        "It would fit with:" if len(found[0].switches) == 1 else "No single setting is enough. It would fit with:"
    ]
    for remedy in found:
        says = "  and  ".join(switch.says for switch in remedy.switches)
        costs = "; ".join(switch.cost for switch in remedy.switches)
        lines.append(f"  {says}\n      {remedy.peak / GIB:.1f} GiB; {costs}")
    return lines


def warnings(work: Workload) -> list[str]:
    """What fits and still goes wrong."""
    found = []
    if work.shape.trains_tied:
        found.append(
            "Careful: head and embedding of this model are one tensor (tied), and trainable_modules names it: both "
            "train, and the states below are computed at every step. `--untie_embeddings true` gives the head weights "
            "of its own, so that it trains alone on states that are computed once."
        )
    keeps = work.optimizer in KEEPS_SMALL_UPDATES and "bf16_stochastic_round=True" in (work.optimizer_args or "")
    narrow = work.dtype != "float32" and work.engine.name in ("single", "ddp")
    if narrow and not work.adapter and not keeps and work.quantized is None:
        way_out = "DeepSpeed, `--dtype float32`, or `--optim adamw_torch_8bit --optim_args bf16_stochastic_round=True`"
        found.append(f"Careful: bfloat16 weights lose small updates with this optimizer. Take {way_out}.")
    return found


def plan(planned: Planned, gpu_memory: float) -> tuple[Estimate, list[Remedy]]:
    """The estimate, and remedies where it does not fit."""
    from .switches import remedies

    need = estimate(planned.workload)
    return need, remedies(planned, gpu_memory) if need.peak > gpu_memory else []
