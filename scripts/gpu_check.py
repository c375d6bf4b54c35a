# SPDX-License-Identifier: Apache-2.0
"""What this library does on the GPUs of this machine: see `gpu_check.sh`. Every part is a process of its own."""

import argparse
import json
import math
import subprocess
import sys
import time
from pathlib import Path


# part -> what it shows
PARTS = {
    "kernels": "fused losses and their gradients against float64",
    "bench": "time and memory of a step beside fine-tuning on the same rows",
    "run": "a run's peak memory beside what `hf-unlearn plan` estimates",
    "qlora": "steps of an adapter on 4-bit weights",
    "sharded": "a run under FSDP2 and ZeRO-3 on all GPUs",
}
GIB = 2**30
# Largest relative error of a loss and of its gradient, by dtype of the hidden states.
TOLERANCES = {"float32": 1e-4, "bfloat16": 3e-2}
TINY = ["--hidden_size", "64", "--intermediate_size", "128", "--num_hidden_layers", "2", "--num_attention_heads", "2"]
TINY += ["--num_key_value_heads", "2", "--vocab_size", "500", "--rows", "2", "--row_length", "32"]


def machine() -> dict:
    """The GPUs, their memory, and versions."""
    import torch

    from hf_unlearn.versions import versions

    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    names = [{"name": gpu.name, "gib": round(gpu.total_memory / GIB, 1)} for gpu in gpus]
    return {"gpus": names, "versions": versions()}


def kernels(folder: Path, gpus: list[dict]) -> list[dict]:
    """Losses of random hidden states, on the GPU if there is one."""
    import torch

    from hf_unlearn.fused import Head
    from hf_unlearn.fused import losses as fused

    device = "cuda" if gpus else "cpu"
    rows, width, vocab = (1024, 512, 32000) if gpus else (32, 16, 500)
    generator = torch.Generator().manual_seed(0)
    hidden, ref = (torch.randn(rows, width, generator=generator) for _ in range(2))
    weight, ref_weight = (torch.randn(vocab, width, generator=generator) / width**0.5 for _ in range(2))
    labels = torch.randint(vocab, (rows,), generator=generator)

    def log_p(states, matrix):
        return (states.double() @ matrix.double().T).log_softmax(-1)

    def kl(h, w, r, rw):
        p, q = log_p(h, w), log_p(r, rw)
        return (q.exp() * (q - p)).sum(-1).mean()

    cases = {
        "row_logps": (
            lambda h, w, r, rw: fused.row_logps(h, labels.to(h.device), Head(w, None)).mean(),
            lambda h, w, r, rw: log_p(h, w).gather(-1, labels[:, None]).mean(),
        ),
        "row_logps, recomputed": (
            lambda h, w, r, rw: fused.row_logps(h, labels.to(h.device), Head(w, None), keep_bytes=1).mean(),
            lambda h, w, r, rw: log_p(h, w).gather(-1, labels[:, None]).mean(),
        ),
        "row_kl_to_reference": (
            lambda h, w, r, rw: fused.row_kl_to_reference(h, Head(w, None), r, Head(rw, None)).loss,
            kl,
        ),
        "row_uniform_kl": (
            lambda h, w, r, rw: fused.row_uniform_kl(h, Head(w, None)).loss.mean(),
            lambda h, w, r, rw: (-log_p(h, w).mean(-1) - math.log(vocab)).mean(),
        ),
    }
    found = []
    for dtype, limit in TOLERANCES.items():
        for name, (ours, slow) in cases.items():
            given = [t.to(getattr(torch, dtype)) for t in (hidden, weight, ref, ref_weight)]
            results = []
            for function, where, kind in ((ours, device, given[0].dtype), (slow, "cpu", torch.float64)):
                h, w, r, rw = (t.detach().to(where, kind, copy=True) for t in given)
                h.requires_grad_(), w.requires_grad_()
                loss = function(h, w, r, rw)
                loss.backward()
                results.append([t.detach().double().cpu() for t in (loss, h.grad, w.grad)])
            errors = [float((a - b).norm() / b.norm().clamp_min(1e-12)) for a, b in zip(*results, strict=True)]
            found.append({"what": f"{name}, {dtype}", "value": f"{max(errors):.1e}", "ok": max(errors) < limit})
    return found


def bench(folder: Path, gpus: list[dict]) -> list[dict]:
    """`hf-unlearn bench` at the sizes that fit: weights, gradients and AdamW in bfloat16, and as much again."""
    presets = [("1b", 24), ("7b", 100)] if gpus else []
    sizes = [([], name) for name, gib in presets if gpus[0]["gib"] >= gib] or [(TINY, "cpu")]
    found = []
    for more, preset in sizes:
        file = folder / f"bench_{preset}.json"
        methods = ["npo_klr", "rmu"] if preset != "7b" else ["npo_klr"]
        words = ["bench", "--preset", preset, "--methods", *methods, "--no-plain", "--repeats", "1", "--steps", "3"]
        _command([*words, *more, "--json", str(file)])
        for row in json.loads(file.read_text())["rows"]:
            told = f"time / SFT {_median(row, 'time_ratio')}, memory / SFT {_median(row, 'memory_ratio')}"
            found.append({"what": f"{preset}: {row['label']}", "value": told, "ok": True})
    return found


def run(folder: Path, gpus: list[dict]) -> list[dict]:
    """NPO-KLR of a random model: finite losses, and its peak beside the estimate."""
    import torch

    recipe = _recipe(folder, gpus, "run")
    _command(["plan", str(recipe), "--gpus", "1", "--json", str(folder / "plan.json")])
    losses = _train(recipe)
    found = [{"what": "NPO-KLR, 3 steps", "value": f"losses {losses}", "ok": all(map(math.isfinite, losses))}]
    if gpus:
        peak, planned = torch.cuda.max_memory_allocated() / GIB, _planned(folder / "plan.json")
        told = f"{peak:.1f} GiB measured, {planned:.1f} GiB planned"
        found.append({"what": "peak memory", "value": told, "ok": 0.7 < planned / peak < 1.5})
    return found


def qlora(folder: Path, gpus: list[dict]) -> list[dict]:
    """The same with an adapter on 4-bit weights."""
    import importlib.util

    if not gpus or importlib.util.find_spec("bitsandbytes") is None:
        return [{"what": "QLoRA", "value": "left out: requires a GPU and bitsandbytes", "ok": None}]
    losses = _train(_recipe(folder, gpus, "qlora", load_in_4bit=True, use_peft=True, lora_r=16))
    return [{"what": "QLoRA, 3 steps", "value": f"losses {losses}", "ok": all(map(math.isfinite, losses))}]


def sharded(folder: Path, gpus: list[dict]) -> list[dict]:
    """Launched on all GPUs; on CPUs, ZeRO-3 on one process."""
    found = []
    for config in ("fsdp2", "zero3") if gpus else ("zero3",):
        recipe = _recipe(folder, gpus, config)
        words = ["run", str(recipe), "--accelerate_config", config, "--num_processes", str(len(gpus) or 1)]
        begin = time.monotonic()
        _command(words)
        lines = (folder / config / "metrics.jsonl").read_text().splitlines()
        losses = [entry["loss"] for entry in map(json.loads, lines) if "loss" in entry]
        told = f"losses {losses}, {time.monotonic() - begin:.0f} s with start"
        found.append({"what": f"{config} x {len(gpus) or 1}", "value": told, "ok": all(map(math.isfinite, losses))})
    return found


def _recipe(folder: Path, gpus: list[dict], name: str, **more) -> Path:
    """A recipe of random rows and a random model: of Llama-3.2-1B's shape on a GPU."""
    import yaml
    from transformers import AutoConfig, AutoModelForCausalLM

    from hf_unlearn.bench.sizes import PRESETS, Size

    model = folder / "model"
    tiny = Size(64, 128, 2, 2, 2, 500, rows=2, row_length=32)
    size = PRESETS["1b"] if gpus else tiny
    if not (model / "config.json").is_file():
        import torch

        config = AutoConfig.for_model("llama", **size.model_config(), bos_token_id=1, eos_token_id=2, pad_token_id=0)
        AutoModelForCausalLM.from_config(config, dtype=getattr(torch, size.dtype)).save_pretrained(model)
        _tokenizer(size.vocab_size).save_pretrained(model)
        for role, first in (("forget", 3), ("retain", 4)):
            ids = [
                [(first + 7 * i + j) % (size.vocab_size - 3) + 3 for j in range(size.row_length)] for i in range(16)
            ]
            (folder / f"{role}.jsonl").write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in ids))
    content = {
        "method": "npo", "retain_loss": "kl", "model_name_or_path": str(model), "dtype": size.dtype, "audit": False,
        "forget_dataset": str(folder / "forget.jsonl"), "retain_dataset": str(folder / "retain.jsonl"),
        "max_length": size.row_length, "output_dir": str(folder / name), "overwrite_output": True, "max_steps": 3,
        "per_device_train_batch_size": size.rows, "logging_steps": 1, "save_strategy": "no", "report_to": "none",
        "bf16": bool(gpus), "disable_tqdm": True, "reference_cache_dir": str(folder / "cache"), **more,
    }  # fmt: skip
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def _tokenizer(vocab: int):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {f"w{i}": i for i in range(vocab)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w3")),
        pad_token="w0", bos_token="w1", eos_token="w2", unk_token="w3",
    )  # fmt: skip


def _train(recipe: Path) -> list[float]:
    from hf_unlearn.cli.unlearn import unlearn
    from hf_unlearn.runs.recipe import parse_recipe

    unlearn(parse_recipe(["--config", str(recipe)]), show=False)
    folder = recipe.with_suffix("")
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [entry["loss"] for entry in map(json.loads, lines) if "loss" in entry]


def _planned(file: Path) -> float:
    return json.loads(file.read_text())["peak"] / GIB


def _median(row: dict, name: str) -> str:
    return f"{row[name]['median']:.2f}" if row.get(name) else "-"


def _command(words: list[str]) -> None:
    argv = [sys.executable, "-m", "hf_unlearn.cli.main", *words]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"hf-unlearn {' '.join(words)}: {(done.stderr or done.stdout).strip()[-1500:]}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", default="runs/gpu_check", help="where results are written (%(default)s)")
    parser.add_argument("--minutes", type=float, default=8, help="time for all parts (%(default)s)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="which ones (all)")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    args = parser.parse_args()
    folder = Path(args.folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if args.part:
        found = globals()[args.part](folder, machine()["gpus"])
        (folder / f"{args.part}.json").write_text(json.dumps(found))
        return 0
    end = time.monotonic() + 60 * args.minutes
    result = {"machine": machine(), "parts": {}}
    for part in args.parts:
        begin = time.monotonic()
        result["parts"][part] = {"rows": _separately(part, folder, end - begin), "seconds": 0}
        result["parts"][part]["seconds"] = round(time.monotonic() - begin, 1)
        (folder / "gpu_check.json").write_text(json.dumps(result, indent=1))
    table = _table(result)
    (folder / "gpu_check.md").write_text(table)
    print(table)
    return int(any(row["ok"] is False for part in result["parts"].values() for row in part["rows"]))


def _separately(part: str, folder: Path, seconds: float) -> list[dict]:
    """A part in a process of its own; what it could not do is a row that says why."""
    file = folder / f"{part}.json"
    file.unlink(missing_ok=True)
    if seconds <= 0:
        return [{"what": PARTS[part], "value": "left out: no time was left", "ok": None}]
    words = [sys.executable, __file__, str(folder), "--part", part]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return [{"what": PARTS[part], "value": "left out: it took all the time that was left", "ok": None}]
    if done.returncode or not file.is_file():
        error = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return [{"what": PARTS[part], "value": error[:500], "ok": False}]
    return json.loads(file.read_text())


def _table(result: dict) -> str:
    gpus = ", ".join(f"{gpu['name']} ({gpu['gib']} GiB)" for gpu in result["machine"]["gpus"]) or "no GPU"
    lines = [f"{gpus}; {', '.join(f'{name} {v}' for name, v in result['machine']['versions'].items())}", ""]
    lines += ["| part | what | result | |", "|---|---|---|---|"]
    for part, found in result["parts"].items():
        for row in found["rows"]:
            mark = {True: "ok", False: "FAILED", None: "-"}[row["ok"]]
            lines.append(f"| {part} ({found['seconds']} s) | {row['what']} | {row['value']} | {mark} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
