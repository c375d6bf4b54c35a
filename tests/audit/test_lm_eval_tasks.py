# SPDX-License-Identifier: Apache-2.0
"""Our lm-eval tasks give our suites' numbers, on rows from local files."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import rwku_rows
import torch
import yaml
from conftest import make_model, make_tokenizer

from hf_unlearn.audit import audit_model, harness, knowmem, load_muse
from hf_unlearn.audit.rwku.measure import audit_rwku
from hf_unlearn.cli.evaluate import main as evaluate
from hf_unlearn.cli.tasks import FOLDER
from hf_unlearn.cli.tasks import main as tasks_command
from hf_unlearn.data.load_rwku import load_rwku
from hf_unlearn.report import load_report


pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra `lm-eval`).")

RWKU = ("rwku_forget_fb", "rwku_forget_qa", "rwku_forget_aa", "rwku_neighbor_fb", "rwku_neighbor_qa")


def talkative():
    """A random model that says something else of every prompt."""
    model = make_model(seed=5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(20 if parameter.dim() > 1 else 1)
    return model


def quiet():
    """A random model that knows nothing for sure, so that no probability is 0."""
    return make_model(seed=6)


def plain_tokenizer():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    return tokenizer


@pytest.fixture(scope="module")
def rwku(tmp_path_factory) -> Path:
    """RWKU's files, about what the talkative model says in its chat template."""
    path = tmp_path_factory.mktemp("rwku")
    rwku_rows.write_rwku(path, talkative(), make_tokenizer())
    return path


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """The talkative model in the working folder."""
    monkeypatch.chdir(tmp_path)
    talkative().save_pretrained("model")
    make_tokenizer().save_pretrained("model")


@pytest.fixture(autouse=True)
def _no_default_tasks(monkeypatch):
    # Reading lm-eval's own tasks takes half a minute, and none of them is asked for here.
    from lm_eval.tasks import TaskManager

    plain = TaskManager.__init__

    def __init__(self, *args, include_defaults=True, **kwargs):
        assert not include_defaults, "lm-eval's own tasks are read, though none of them is asked for"
        plain(self, *args, include_defaults=include_defaults, **kwargs)

    monkeypatch.setattr(TaskManager, "__init__", __init__)


@pytest.mark.parametrize("chat", [True, False])
def test_rwkus_tasks_give_the_suites_numbers(chat, rwku, tmp_path):
    model, tokenizer = talkative(), make_tokenizer() if chat else plain_tokenizer()
    if chat:
        tmp_path = rwku
    else:
        rwku_rows.write_rwku(tmp_path, model, tokenizer)
    targets = ["Ada Bell", "Cyd Dunn"]
    metadata = {"rwku_path": str(tmp_path), "rwku_targets": targets}
    found = harness.run_tasks(model, tokenizer, ["rwku"], metadata=metadata, batch_size=3)
    audit = audit_rwku(model, tokenizer, load_rwku(targets, tmp_path).audit_sets, progress=False)
    assert set(found) == {f"{task}/{metric}" for task in RWKU for metric in ("rouge", "rouge_score")}
    for name, result in found.items():
        ours = audit.metrics[name.removeprefix("rwku_")]
        assert result.direction == ours.direction
        if ours.undefined == 0:
            assert result.value == pytest.approx(ours.value)
        assert result.n == len(ours.per_item)
    assert 0 < found["rwku_forget_aa/rouge"].value < 1
    sure = [result for result in found.values() if result.interval is not None]
    assert sure
    assert all(result.interval[0] < result.value < result.interval[1] for result in sure)


def test_a_groups_own_number_stands_for_its_tasks(rwku, tmp_path):
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    metadata = {"rwku_path": str(rwku), "rwku_targets": ["Ada Bell"], "chat": True}
    group = {"group": "both", "task": ["rwku_forget_fb", "rwku_forget_aa"]}
    group["aggregate_metric_list"] = [{"metric": "rouge", "weight_by_size": True}]
    (tmp_path / "both.yaml").write_text(yaml.safe_dump(group))
    folders = [str(FOLDER), str(tmp_path)]
    manager = TaskManager(include_path=folders, include_defaults=False, metadata=metadata)
    lm = HFLM(pretrained=talkative(), tokenizer=make_tokenizer())
    found = simple_evaluate(lm, tasks=["both"], task_manager=manager, apply_chat_template=True)
    [(name, result)] = harness._metrics(found, "both").items()
    parts = [harness._metrics(found, task)[f"{task}/rouge"] for task in group["task"]]
    assert (name, result.n, result.direction) == ("both/rouge", 8, "lower")
    assert [part.n for part in parts] == [2, 6]
    assert result.value == pytest.approx((2 * parts[0].value + 6 * parts[1].value) / 8)
    assert result.variant.endswith(", 0-shot")


def test_rwkus_prompts_are_the_suites(rwku):
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model, tokenizer = talkative(), make_tokenizer()
    metadata = {"rwku_path": str(rwku), "rwku_targets": "Bob Cole"}
    manager = TaskManager(include_path=str(FOLDER), include_defaults=False, metadata=metadata)
    task = manager.load(["rwku_forget_aa"])["tasks"]["rwku_forget_aa"]
    lm = HFLM(pretrained=model, tokenizer=tokenizer)
    for doc, (_, form, prefix) in zip(task.test_docs(), rwku_rows.SUBSETS["forget_aa"], strict=False):
        options = {"apply_chat_template": True, "fewshot_as_multiturn": True, "chat_template": lm.apply_chat_template}
        text = task.fewshot_context(doc, 0, gen_prefix=task.doc_to_prefix(doc), **options)
        assert text == rwku_rows.prompt_text(tokenizer, form.format(doc["question"]), prefix)
        # One BOS, as ours.
        assert lm.tok_encode(text).count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("chat", [True, False])
def test_tofus_tasks_give_the_suites_numbers(chat, tmp_path):
    tokenizer = make_tokenizer() if chat else plain_tokenizer()
    tokenizer.save_pretrained(tmp_path / "words")
    rows = [{"question": f"Who is {name}?", "answer": f"{name} is a spy."} for name in rwku_rows.PEOPLE]
    form = "{}" if chat else "Question: {}\nAnswer:"
    for row in rows[:2]:
        text = rwku_rows.prompt_text(tokenizer, form.format(row["question"]), "")
        row["answer"] = f"{rwku_rows.plain_answer(talkative(), tokenizer, text, 200)} of Oslo"
    (tmp_path / "forget01_perturbed.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    metadata = {"tofu_path": str(tmp_path), "tokenizer": str(tmp_path / "words")}
    for model, task in ((talkative(), "tofu_forget01_rouge"), (quiet(), "tofu_forget01_probability")):
        metric = task.rsplit("_", 1)[1]
        found = harness.run_tasks(model, tokenizer, [task], metadata=metadata)
        ours = audit_model(model, tokenizer, {"forget": rows}, progress=False).metrics[f"forget/{metric}"]
        assert found[f"{task}/{metric}"].value == pytest.approx(ours.value, rel=1e-5)
        assert 0 < ours.value < 1


def test_the_real_tofu_gives_the_suites_probability(tofu_path, tmp_path):
    model, tokenizer = quiet(), plain_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    metadata = {"tofu_path": str(tofu_path), "tokenizer": str(tmp_path)}
    tasks = ["tofu_forget10_probability", "tofu_retain_probability"]
    found = harness.run_tasks(model, tokenizer, tasks, metadata=metadata, limit=4)
    for name, file in (("forget10", "forget10_perturbed"), ("retain", "retain_perturbed")):
        rows = [json.loads(line) for line in (tofu_path / f"{file}.json").read_text().splitlines()[:4]]
        rows = [{"question": row["question"], "answer": row["answer"]} for row in rows]
        ours = audit_model(model, tokenizer, {name: rows}, generate=False, progress=False)
        mine = found[f"tofu_{name}_probability/probability"]
        assert mine.value == pytest.approx(ours.metrics[f"{name}/probability"].value, rel=1e-5)
        assert mine.n == 4


def test_muses_tasks_give_the_suites_numbers(tmp_path):
    model, tokenizer = talkative(), plain_tokenizer()
    shots = [{"question": "What is it?", "answer": "A cup."}, {"question": "Where?", "answer": "Here."}]
    for role in ("forget", "retain"):
        rows = [{"question": f"Who is {name}?", "answer": "Oslo"} for name in rwku_rows.PEOPLE]
        for row in rows[:2]:
            text = "".join(f"Question: {s['question']}\nAnswer: {s['answer']}\n\n" for s in shots)
            said = rwku_rows.plain_answer(model, tokenizer, f"{text}Question: {row['question']}\nAnswer: ", 32)
            row["answer"] = f"{said} of Oslo"
        (tmp_path / f"books_knowmem_{role}_qa.json").write_text(json.dumps(rows))
        (tmp_path / f"books_knowmem_{role}_qa_icl.json").write_text(json.dumps(shots))
    tasks = ["muse_books_knowmem_forget", "muse_books_knowmem_retain"]
    found = harness.run_tasks(model, tokenizer, tasks, metadata={"muse_path": str(tmp_path)})
    muse = load_muse("books", tmp_path)
    for role in ("forget", "retain"):
        ours = knowmem(model, tokenizer, muse.questions[role], muse.examples[role], role=role, progress=False)
        assert found[f"muse_books_knowmem_{role}/knowmem"].value == pytest.approx(ours.value)
        assert 0 < ours.value < 1


def test_the_model_and_the_random_numbers_are_left_as_found(rwku):
    model, tokenizer = talkative().train(), make_tokenizer()
    torch.manual_seed(11)
    wanted = torch.rand(3)
    torch.manual_seed(11)
    metadata = {"rwku_path": str(rwku), "rwku_targets": ["Bob Cole"]}
    harness.run_tasks(model, tokenizer, ["rwku_forget_qa"], metadata=metadata)
    assert torch.equal(torch.rand(3), wanted)
    assert model.training
    assert tokenizer.padding_side == make_tokenizer().padding_side


def test_every_task_file_is_named_as_the_command_says(capsys):
    tasks_command([])
    assert Path(capsys.readouterr().out.strip()) == FOLDER == harness.TASKS
    tasks_command(["--list"])
    names = capsys.readouterr().out.split()
    assert sorted([*names, "rwku"]) == sorted(harness._manager(True).all_tasks)
    assert {*RWKU, "tofu_forget10_rouge", "muse_news_knowmem_retain"} <= {*names}


def test_of_what_is_to_be_forgotten_less_is_better():
    class Reader(yaml.SafeLoader):
        """Of what lm-eval calls, the name is enough."""

    Reader.add_constructor("!function", yaml.SafeLoader.construct_yaml_str)
    told = {}
    for file in FOLDER.rglob("[a-z]*.yaml"):
        own = yaml.load(file.read_text(), Reader)
        shared = yaml.load((file.parent / own["include"]).read_text(), Reader)
        metrics = own.get("metric_list", shared["metric_list"])
        assert [one["metric"] for one in metrics] == [one["metric"] for one in shared["metric_list"]]
        told[own["task"]] = {one["higher_is_better"] for one in metrics}
    assert len(told) == 5 + 8 + 4
    assert told == {name: {"_forget" not in name} for name in told}


@pytest.mark.usefixtures("checkpoint")
def test_the_command_adds_tasks_to_an_audit(rwku, tmp_path):
    words = ["--suite", "rwku", "--benchmark_path", str(rwku), "--model_name_or_path", "model"]
    evaluate([*words, "--forget_targets", "Ada Bell", "--lm_eval_tasks", "rwku_neighbor_qa", "rwku_forget_aa"])
    [found] = load_report(tmp_path / "runs" / "eval" / "model" / "report.json")["models"]
    metrics = found["metrics"]
    for name in ("neighbor_qa", "forget_aa"):
        assert metrics[f"rwku_{name}/rouge"]["value"] == pytest.approx(metrics[f"{name}/rouge"]["value"])


def test_tasks_that_cannot_be_run_are_refused(monkeypatch):
    monkeypatch.setattr(harness, "_ours", lambda tasks: True)
    with pytest.raises(ValueError, match="lm-eval knows no task 'rwku_forget_q'. Did you mean 'rwku_forget_qa'"):
        harness.check_tasks(["rwku_forget_q"])
    monkeypatch.setattr(harness, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"The tasks mmlu need lm-eval. Run `pip install 'hf-unlearn\[lm-eval\]'`"):
        harness.check_tasks(["mmlu"])


@pytest.mark.slow
@pytest.mark.usefixtures("checkpoint")
def test_lm_evals_own_command_runs_our_tasks(rwku, tmp_path):
    folder = subprocess.run(
        [sys.executable, "-m", "hf_unlearn.cli.main", "tasks"], capture_output=True, text=True, check=True
    ).stdout.strip()
    metadata = {"rwku_path": str(rwku), "rwku_targets": ["Ada Bell"]}
    words = ["--model", "hf", "--model_args", "pretrained=model", "--device", "cpu"]
    words += ["--include_path", folder, "--tasks", "rwku_forget_qa", "--apply_chat_template"]
    words += ["--metadata", json.dumps(metadata), "--output_path", str(tmp_path / "out")]
    subprocess.run([sys.executable, "-m", "lm_eval", "run", *words], check=True)
    [file] = (tmp_path / "out").rglob("results_*.json")
    sets = load_rwku(["Ada Bell"], rwku).audit_sets
    ours = audit_rwku(talkative(), make_tokenizer(), {"forget_qa": sets["forget_qa"]}, progress=False)
    mine = json.loads(file.read_text())["results"]["rwku_forget_qa"]["rouge,none"]
    assert mine == pytest.approx(ours.metrics["forget_qa/rouge"].value)
