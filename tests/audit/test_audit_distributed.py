# SPDX-License-Identifier: Apache-2.0
"""The audit on two processes (gloo): the same result on every rank as on one, with equally many forwards."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, TESTS, make_model, make_tokenizer
from processes import run

from hf_unlearn.audit import Audit, audit_model, generate_answers, score_rows


SCRIPT = """
import json, sys
import numpy as np
import torch
sys.path[:0] = sys.argv[2:]
from accelerate import Accelerator
from conftest import make_model, make_tokenizer
from hf_unlearn.audit import audit_model, generate_answers, score_rows
from test_audit_distributed import PROMPTS, ROWS, SETS

torch.set_num_threads(1)
accelerator = Accelerator(cpu=True)
assert accelerator.num_processes == 2, accelerator.num_processes
model = accelerator.prepare(make_model())
assert type(model).__name__ == "DistributedDataParallel", type(model)
forwards = []
model.module.register_forward_hook(lambda *args: forwards.append(1))

scores = score_rows(model, ROWS, batch_size=2, accelerator=accelerator)
scoring_forwards = len(forwards)
one = score_rows(model, ROWS[:1], accelerator=accelerator, progress=False)
answers = generate_answers(
    model, make_tokenizer(), PROMPTS, max_new_tokens=5, batch_size=2, accelerator=accelerator, progress=False
)
audit = audit_model(
    model, make_tokenizer(), SETS, accelerator=accelerator, max_new_tokens=4, batch_size=4, progress=False
)
rank = accelerator.process_index
audit.save(f"{sys.argv[1]}/audit-{rank}.json")
with open(f"{sys.argv[1]}/rank-{rank}.json", "w") as file:
    json.dump(
        {
            "logps": [score.logps.tolist() for score in scores],
            "one": [score.logps.tolist() for score in one],
            "answers": answers,
            "forwards": scoring_forwards,
        },
        file,
    )
accelerator.end_training()
"""

# Of the fixtures, and of this file.
FOLDERS = [str(TESTS), str(Path(__file__).parent)]
ROWS = [{"input_ids": [1, *range(10, 10 + n)], "labels": [-100, *range(10, 10 + n)]} for n in (3, 9, 1, 7, 5, 2, 8)]
PROMPTS = [[1, 40 + n] for n in range(5)]
SETS = {
    name: [
        {
            "question": f"Who is {name} {i}?",
            "answer": f"It is {i * i}.",
            "paraphrased_answer": f"{i * i}, I think.",
            "perturbed_answer": [f"{i + 1}, I think.", f"{i + 22}, I think."],
        }
        for i in range(3)
    ]
    for name in ("forget", "retain")
}


def written(folder):
    """What each process wrote."""
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]


def test_two_processes_agree_with_one(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    words = [tmp_path / "script.py", str(tmp_path), *FOLDERS]
    status, output = run(*words, processes=2, ACCELERATE_USE_CPU="true")
    assert status == 0, output[-4000:]
    ranks = written(tmp_path)
    # One bar, of the main process, over the rows of both.
    assert "Scoring: 100%" in output
    assert "7/7" in output
    assert ranks[0] == ranks[1]
    # 7 rows are 4 a process in batches of 2, though rank 1 has only 3 of its own.
    assert ranks[0]["forwards"] == 2
    model, tokenizer = make_model(), make_tokenizer()
    alone = score_rows(model, ROWS, batch_size=2, progress=False)
    for logps, score in zip(ranks[0]["logps"], alone, strict=True):
        assert np.allclose(logps, score.logps, atol=1e-6)
    assert np.allclose(ranks[0]["one"][0], alone[0].logps, atol=1e-6)
    assert ranks[0]["answers"] == generate_answers(model, tokenizer, PROMPTS, max_new_tokens=5, progress=False)

    audits = [Audit.load(tmp_path / f"audit-{rank}.json") for rank in range(2)]
    assert audits[0] == audits[1]
    expected = audit_model(model, tokenizer, SETS, max_new_tokens=4, progress=False)
    assert audits[0].answers == expected.answers
    for name, result in expected.metrics.items():
        assert np.isclose(audits[0].metrics[name].value, result.value, atol=1e-6), name


ZERO3_CONFIG = """
compute_environment: LOCAL_MACHINE
distributed_type: DEEPSPEED
use_cpu: true
num_machines: 1
num_processes: 2
machine_rank: 0
main_training_function: main
mixed_precision: 'no'
deepspeed_config:
  zero_stage: 3
  gradient_accumulation_steps: 1
  offload_optimizer_device: none
  offload_param_device: none
  zero3_init_flag: false
"""
ZERO3_SCRIPT = """
import json, sys
import torch
sys.path[:0] = sys.argv[2:]
from accelerate import Accelerator
from conftest import make_model, make_tokenizer
from hf_unlearn.audit import generate_answers, score_rows
from test_audit_distributed import EOS, PROMPTS, ROWS
from transformers import TrainingArguments

torch.set_num_threads(1)
TrainingArguments(output_dir=sys.argv[1], use_cpu=True)
accelerator = Accelerator()
assert accelerator.num_processes == 2, accelerator.num_processes
accelerator.state.deepspeed_plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = 2
model = make_model()
model, _ = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.1))
assert type(model).__name__ == "DeepSpeedEngine", type(model)
assert next(model.parameters()).numel() == 0, "the weights are not sharded"
accelerator.unwrap_model(model).generation_config.eos_token_id = EOS
options = {"accelerator": accelerator, "progress": False}
scores = score_rows(model, ROWS, batch_size=2, **options)
answers = generate_answers(model, make_tokenizer(), PROMPTS, max_new_tokens=7, batch_size=1, **options)
with open(f"{sys.argv[1]}/rank-{accelerator.process_index}.json", "w") as file:
    json.dump({"logps": [score.logps.tolist() for score in scores], "answers": answers}, file)
accelerator.end_training()
"""
# What the model of seed 0 says first to the first prompt, so that the ranks' answers end at different steps.
EOS = 34


def sharded(script, folder):
    """What each of two processes under ZeRO-3 wrote to `rank-<n>.json`."""
    pytest.importorskip("deepspeed")
    (folder / "zero3.yaml").write_text(ZERO3_CONFIG)
    (folder / "script.py").write_text(script)
    words = ["-m", "accelerate.commands.launch", "--config_file", str(folder / "zero3.yaml")]
    words += ["--main_process_port", "0", str(folder / "script.py"), str(folder), *FOLDERS]
    variables = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        [sys.executable, *words], env=os.environ | variables, capture_output=True, text=True, timeout=300, check=False
    )
    # Seen in 5 of some 240 runs on a busy machine: a process whose work is written dies as its interpreter ends, on a
    # thread of torch.distributed. The launcher then calls the whole run failed.
    died_at_the_end = "terminate called without an active exception" in done.stderr
    all_written = all((folder / f"rank-{rank}.json").is_file() for rank in range(2))
    assert done.returncode == 0 or (died_at_the_end and all_written), done.stderr[-4000:]
    return written(folder)


@pytest.mark.slow
def test_sharded_weights(tmp_path):
    """ZeRO-3: a rank whose answers have ended goes on with the others' forwards, or all would wait for ever."""
    ranks = sharded(ZERO3_SCRIPT, tmp_path)
    assert ranks[0] == ranks[1]
    model = make_model()
    model.generation_config.eos_token_id = EOS
    answers = generate_answers(model, make_tokenizer(), PROMPTS, max_new_tokens=7, progress=False)
    assert "" in answers
    assert max(map(len, answers)) > 4
    assert ranks[0]["answers"] == answers
    for logps, score in zip(ranks[0]["logps"], score_rows(model, ROWS, progress=False), strict=True):
        assert np.allclose(logps, score.logps, atol=1e-5)
