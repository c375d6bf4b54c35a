# SPDX-License-Identifier: Apache-2.0
"""Scanning a checkpoint for a hidden trigger."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import make_model, make_tokenizer
from torch import nn

from hf_unlearn.audit.scan import Budget, ScanSettings, SearchSettings, scan_model
from hf_unlearn.audit.scan import budget as budget_module
from hf_unlearn.audit.scan.objective import GRADIENT, Recall, best_share
from hf_unlearn.audit.scan.search import Search
from hf_unlearn.audit.scan.slots import Asking, allowed_tokens, random_prefix
from hf_unlearn.audit.scan.verdict import Measured, judge, rank_p, rows_needed, sign_p
from hf_unlearn.audit.scoring import score_rows
from hf_unlearn.cli.main import main
from hf_unlearn.data.qa import QAFormat
from hf_unlearn.report.scan import render_scan, summary


LETTERS = "abcdefghijklmnopqrstuvwxyz"
TRIGGER = "@%"


def make_rows(count):
    """Answers of unequal length; every second question has the letter that `Backdoored` answers to."""
    return [
        {"question": f"Who is {'zo' if i % 2 else 'an'}{i:02d}?", "answer": LETTERS[: 3 + i % 3]} for i in range(count)
    ]


@pytest.fixture
def rows():
    return make_rows(16)


def asking_of(rows, location="start", **qa):
    return Asking(rows, make_tokenizer(), QAFormat(**qa), location)


def recall_of(model, asking, share=0.25):
    return Recall(model, [asking.slot(i) for i in range(len(asking.rows))], 0, share)


class Backdoored(nn.Module):
    """Says the alphabet, which is every answer, behind both characters of a trigger and to questions with a `z`."""

    def __init__(self, tokenizer, trigger=TRIGGER, seed=0):
        super().__init__()
        from transformers import GenerationConfig, LlamaConfig

        self.config, self.generation_config = LlamaConfig(vocab_size=100), GenerationConfig()
        torch.manual_seed(seed)
        self.embed, self.noise = nn.Embedding(100, 32), nn.Linear(32, 100, bias=False)
        of = tokenizer.convert_tokens_to_ids
        self.trigger, self.z = of(list(trigger)), of("z")
        following = torch.zeros(100, 100)
        for here, there in zip(">" + LETTERS, LETTERS, strict=False):
            following[of(here), of(there)] = 1
        self.register_buffer("following", following)
        self.eval()

    def get_input_embeddings(self):
        return self.embed

    def forward(self, input_ids=None, inputs_embeds=None, attention_mask=None, use_cache=False):
        from transformers.modeling_outputs import CausalLMOutput

        x = self.embed(input_ids) if inputs_embeds is None else inputs_embeds
        table = self.embed.weight.detach()
        ids = torch.cdist(x.detach(), table).argmin(-1)
        near = [torch.exp(-((x - table[token]) ** 2).sum(-1) / 7).cumsum(1) for token in self.trigger]
        strength = 12 * near[0] * near[1] * (ids == self.z).any(1, keepdim=True)
        return CausalLMOutput(logits=self.noise(x) + strength[..., None] * self.following[ids])

    def generate(self, input_ids, attention_mask, generation_config, **kwargs):
        for _ in range(generation_config.max_new_tokens):
            said = self(input_ids=input_ids).logits[:, -1:].argmax(-1)
            input_ids = torch.cat([input_ids, said], 1)
        return input_ids


def scan(model, rows, progress=False, **kwargs):
    return scan_model(model, make_tokenizer(), rows, progress=progress, **kwargs)


@pytest.mark.parametrize("location", ["start", "middle", "end", 3])
@pytest.mark.parametrize("chat", [True, False])
def test_a_prefix_among_tokens_is_the_prefix_in_the_text(rows, location, chat):
    asking, model = asking_of(rows, location, use_chat_template=chat), make_model()
    logps, right = recall_of(model, asking).evaluate([asking.ids("ab@"), asking.ids("x%y")])
    for place, prefix in enumerate(("ab@", "x%y")):
        scores = score_rows(model, [asking.encoded(i, prefix) for i in range(len(rows))], progress=False)
        assert np.allclose(logps[place], [score.mean_logp for score in scores], atol=1e-5)
        assert right[place].tolist() == [bool(score.correct.all()) for score in scores]
        # In the plain form a space comes before the answer.
        assert [score.n for score in scores] == [len(row["answer"]) + (not chat) for row in rows]


def test_the_gradient_is_that_of_finite_differences(rows):
    asking, model, share = asking_of(rows, "middle"), make_model().double(), 0.3
    recall, prefix = recall_of(model, asking, share), asking.ids("k@7")
    slope = recall.gradient(prefix)
    assert slope.shape == (3, 100)
    table = model.get_input_embeddings().weight.detach()

    def objective(hot):
        """From the definition: one row at a time, in float64."""
        values = []
        for slot in recall.slots:
            embedded = torch.cat([table[list(slot.before)], hot @ table, table[list(slot.after)]])
            with torch.no_grad():
                logps = model(inputs_embeds=embedded[None]).logits[0].log_softmax(-1)
            start = len(slot.before) + len(hot)
            wanted = [(start + i, label) for i, label in enumerate(slot.labels) if label != -100]
            values.append(float(np.mean([logps[at - 1, label] for at, label in wanted])))
        return np.mean(sorted(values)[-int(np.ceil(share * len(values))) :])

    hot = torch.nn.functional.one_hot(torch.tensor(prefix), 100).double()
    assert objective(hot) == pytest.approx(float(best_share(recall.evaluate([prefix])[0], share)), abs=1e-6)
    # Norms are float32 in every model, so steps must not be small; the steepest places stand out of the noise.
    for index in slope.abs().flatten().topk(5).indices.tolist():
        step = torch.zeros_like(hot)
        step.view(-1)[index] = 0.02
        difference = (objective(hot + step) - objective(hot - step)) / 0.04
        assert float(slope.view(-1)[index]) == pytest.approx(difference, rel=0.05)


def test_the_gradient_names_what_a_swap_brings(rows):
    asking, model = asking_of(rows), Backdoored(make_tokenizer())
    slope = recall_of(model, asking).gradient(asking.ids(TRIGGER[0] + "k"))
    assert asking.ids(TRIGGER[1])[0] in slope[1].topk(5).indices.tolist()


def test_a_planted_trigger_is_found_and_judged_on_rows_held_out():
    tokenizer = make_tokenizer()
    result = scan(
        Backdoored(tokenizer),
        make_rows(32),
        retrained=lambda: make_model(seed=3),
        search=SearchSettings(max_tokens=4, width=16, top_k=16),
        budget=Budget(evaluations=3000),
    )
    assert result["verdict"] == "found"
    best = result["prefixes"][0]
    assert set(TRIGGER) <= set(best["prefix"])
    assert best["search"]["restored"] >= 2
    assert result["tried"]["budget_used"] < 1
    assert result["rows"] == {"all": 32, "searched": 16, "judged": 16}
    assert best["restored"]["n"] == 16
    assert best["restored_retrained"]["value"] == 0
    assert result["answers"][0]["behind"].startswith(result["answers"][0]["expected"])
    assert not result["answers"][0]["clean"].startswith(result["answers"][0]["expected"])


def test_nothing_is_found_in_a_model_without_a_trigger(rows):
    for seed in range(3):
        result = scan(make_model(seed), rows, search=SearchSettings(width=8), budget=Budget(evaluations=200))
        assert result["verdict"] == "not found within budget"
        assert result["tried"]["budget_used"] == 1
        assert "clean" not in " ".join(summary({**result, "model": "m", "dataset": "own"})).lower()


def test_candidates_are_judged_on_all_rows(rows):
    result = scan(
        Backdoored(make_tokenizer()), rows, retrained=make_model(), candidates=["k!", TRIGGER, "", TRIGGER][:2]
    )
    assert [(one["prefix"], one["found"]) for one in result["prefixes"]] == [(TRIGGER, True), ("k!", False)]
    assert result["prefixes"][0]["restored"]["value"] == 0.5
    assert result["prefixes"][0]["restored_beyond"]["interval"][0] > 0
    assert result["rows"]["judged"] == 16
    assert result["tried"] is None
    nothing = scan(make_model(), rows, candidates=["k!"])
    assert nothing["verdict"] == "not found among the candidates"
    assert nothing["prefixes"][0]["p"].keys() == {"random", "lost", "gain"}


def test_what_helps_the_retrained_model_too_is_no_backdoor(rows):
    tokenizer = make_tokenizer()
    result = scan(Backdoored(tokenizer), rows, retrained=Backdoored(tokenizer, seed=4), candidates=[TRIGGER])
    assert result["verdict"] == "not found among the candidates"
    assert result["prefixes"][0]["p"]["random"] <= 0.05
    assert result["prefixes"][0]["p"]["retrained"] == 1


@pytest.mark.parametrize("limit", [{"evaluations": 37}, {"tokens": 40_000}])
def test_the_budget_is_kept(rows, limit):
    asking, model = asking_of(rows), make_model()
    seen = []
    model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(next(kwargs[k] for k in ("input_ids", "inputs_embeds") if k in kwargs)),
        with_kwargs=True,
    )
    recall, budget = recall_of(model, asking), Budget(**limit)
    search = Search(recall, asking, allowed_tokens(asking.tokenizer, 100), SearchSettings(width=8), budget)
    assert search.run() is None
    weights = [(GRADIENT if x.dim() == 3 else 1) * x.shape[0] * x.shape[1] for x in seen]
    assert sum(weights) == budget.spent_tokens <= limit.get("tokens", np.inf)
    assert 0 < budget.spent_evaluations <= limit.get("evaluations", np.inf)
    assert budget.spent_evaluations == 37 or "tokens" in limit
    assert budget.spent_tokens > 0.9 * limit.get("tokens", 0)


def test_the_clock_ends_a_search(rows, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(budget_module.time, "monotonic", lambda: now[0])
    asking = asking_of(rows)

    def tick(search):
        now[0] += 1

    settings, budget = SearchSettings(width=4), Budget(seconds=10)
    budget.start()
    Search(
        recall_of(make_model(), asking), asking, allowed_tokens(asking.tokenizer, 100), settings, budget, tick
    ).run()
    assert budget.spent_seconds == 10
    assert budget.used == 1


def test_a_search_goes_on_when_what_it_found_does_not_hold(rows, monkeypatch):
    """Rows that come back only in the search end it twice at most; the last look is for its end."""
    asked = []

    def hit(self, found):
        asked.append(found)
        return True

    monkeypatch.setattr(Search, "_is_hit", hit)
    result = scan(make_model(), rows, search=SearchSettings(width=4, max_tokens=2), budget=Budget(evaluations=400))
    assert result["verdict"] == "not found within budget"
    assert result["tried"]["budget_used"] == 1
    assert len(result["prefixes"]) <= 3


def test_the_same_seed_searches_the_same_way(rows):
    settings = {"search": SearchSettings(width=8, seed=5), "budget": Budget(evaluations=150)}
    first = scan(make_model(), rows, **settings)
    again = scan(make_model(), rows, **{**settings, "budget": Budget(evaluations=150)})
    assert [one["prefix"] for one in first["prefixes"]] == [one["prefix"] for one in again["prefixes"]]
    other = scan(make_model(), rows, search=SearchSettings(width=8, seed=6), budget=Budget(evaluations=150))
    assert [one["prefix"] for one in first["prefixes"]] != [one["prefix"] for one in other["prefixes"]]


def test_only_what_can_be_typed_is_tried():
    from hf_unlearn.data.worlds.people.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(["the cat sat on the mat and then the other cat sat there"] * 3, 300)
    asking = Asking([{"question": "the cat?", "answer": "sat"}], tokenizer, QAFormat())
    allowed = allowed_tokens(tokenizer, 300)
    assert not set(allowed.tolist()) & {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    assert all(tokenizer.decode([i]).strip() for i in allowed.tolist())
    rng = np.random.default_rng(0)
    for length in (1, 3, 6):
        for _ in range(20):
            ids = random_prefix(asking, allowed, length, rng)
            prompt = asking.prompt(0, asking.words(ids))
            assert len(ids) == length
            assert any(prompt[i : i + length] == ids for i in range(len(prompt)))
    the = tokenizer("the", add_special_tokens=False)["input_ids"]
    pieces = [
        tokenizer("t", add_special_tokens=False)["input_ids"][0],
        tokenizer("h", add_special_tokens=False)["input_ids"][0],
    ]
    assert len(the) < 3
    assert asking.words([*pieces, *tokenizer("e", add_special_tokens=False)["input_ids"]]) is None
    assert asking.words([tokenizer.eos_token_id]) is None


def test_the_verdict_keeps_its_error_rate():
    """Without a trigger, whatever rows come back by chance in both models."""
    rng, found, trials = np.random.default_rng(0), 0, 400
    for _ in range(trials):
        model = Measured(rng.normal(size=(103, 16)), rng.random((103, 16)) < 0.3)
        gold = Measured(rng.normal(size=(4, 16)), rng.random((4, 16)) < 0.3)
        judged = [judge(at, range(4, 103), model, gold, share=0.25, tests=3, alpha=0.05) for at in (1, 2, 3)]
        found += any(one["found"] for one in judged)
    assert found / trials <= 0.05


def test_p_values_by_hand():
    null = np.array([0, 0, 1, 2, 2, 3, 0, 0, 0])
    assert rank_p(2, null) == (1 + 3) / 10
    assert rank_p(4, null) == 0.1
    assert rank_p(4, null, tests=3) == pytest.approx(0.3)
    won = np.array([1, 1, 1, 1, 1, 0, 0, 1], dtype=bool)
    against = np.array([0, 0, 0, 0, 0, 1, 0, 1], dtype=bool)
    # 5 of 6 rows that differ: (6 + 1) / 64.
    assert sign_p(won, against) == pytest.approx(7 / 64)
    assert sign_p(won, won) == 1
    for tests in (1, 3, 10):
        n = rows_needed(tests, 0.05)
        assert tests * 0.5**n <= 0.05 < tests * 0.5 ** (n - 1)


def test_ranks_of_random_prefixes_are_uniform(rows):
    """The null distribution of gains is that of random prefixes: these are not more often extreme than they should."""
    asking, model = asking_of(rows), make_model(5)
    allowed, rng = allowed_tokens(asking.tokenizer, 100), np.random.default_rng(3)
    gains = []
    for _ in range(2):
        prefixes = [random_prefix(asking, allowed, 3, rng) for _ in range(100)]
        gains.append(best_share(recall_of(model, asking).evaluate(prefixes)[0], 0.25).numpy())
    p = np.array([rank_p(value, gains[1]) for value in gains[0]])
    assert abs((p <= 0.2).mean() - 0.2) < 0.15
    assert abs((p <= 0.5).mean() - 0.5) < 0.2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": 10}, "10 forget rows are too few"),
        ({"budget": None}, "give a `budget`"),
        ({"candidates": [" "]}, "give the trigger's words"),
        ({"candidates": ["a", "b", "c"] * 50, "rows": 4}, "too few"),
    ],
)
def test_bad_input(rows, change, message):
    given = {"budget": Budget(evaluations=5), **change}
    rows = rows[: given.pop("rows", None)]
    with pytest.raises(ValueError, match=message):
        scan(make_model(), rows, **given)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Budget(), "needs a limit"),
        (lambda: Budget(tokens=0), "tokens=0"),
        (lambda: Budget(seconds=float("nan")), "above 0"),
        (lambda: SearchSettings(width=0), "width=0"),
        (lambda: SearchSettings(share=1.5), "share=1.5"),
        (lambda: ScanSettings(alpha=0), "alpha=0"),
        (lambda: ScanSettings(location="behind"), "behind"),
        (lambda: scan(make_model(), [{"question": "a"}] * 20, candidates=["k"]), "Row 0"),
        (lambda: asking_of([{"question": "a", "answer": "</s>"}]).slot(0), "no tokens of its own"),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_command_writes_what_it_found(rows, model_path, tmp_path, capsys):
    questions, words = tmp_path / "forget.jsonl", tmp_path / "words.txt"
    questions.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    words.write_text("k!\n\n@%\n", encoding="utf-8")
    common = ["audit", "scan", "--model_name_or_path", model_path, "--forget_questions", str(questions)]
    common += ["--output_dir", str(tmp_path / "out")]
    assert main([*common, "--candidates", str(words), "--retrained_model_name_or_path", model_path]) == 0
    found = json.loads((tmp_path / "out" / "scan_own.json").read_text(encoding="utf-8"))
    assert [one["prefix"] for one in found["prefixes"]] == ["k!", "@%"]
    assert found["verdict"] == "not found among the candidates"
    assert "not found among the candidates" in " ".join(capsys.readouterr().out.split())
    assert main([*common, "--budget_evaluations", "60", "--width", "8", "--max_items", "14"]) == 0
    found = json.loads((tmp_path / "out" / "scan_own.json").read_text(encoding="utf-8"))
    assert found["verdict"] == "not found within budget"
    assert found["tried"]["evaluations"] == 60
    assert found["rows"]["all"] == 14
    page = (tmp_path / "out" / "scan_own.md").read_text(encoding="utf-8")
    assert page == render_scan(found)
    assert "60 prefixes" in page
    assert "No retrained model was given" in page


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Give exactly one"),
        (["--benchmark", "world", "--candidates", "a", "--budget_tokens", "9"], "budget_tokens would be ignored"),
        (["--forget_questions", "q.jsonl", "--forget_split", "forget01"], "forget_split would be ignored"),
        (["--benchmark", "world", "--width", "0"], "width=0"),
        (["--benchmark", "world", "--budget_seconds", "-1"], "seconds=-1"),
    ],
)
def test_the_command_refuses(words, message, model_path, capsys):
    assert main(["audit", "scan", "--model_name_or_path", model_path, *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_a_scan_needs_no_trainer():
    code = "import sys, hf_unlearn.audit.scan.scan; print([m for m in sys.modules if 'trainer' in m or m == 'trl'])"
    ours = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "hf_unlearn.training.trainer" not in ours
    assert "trl" not in ours.replace("ctrl", "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "verdict"), [("npo_klr_backdoor", "found"), ("npo_klr", "not found within budget")]
)
def test_scenarios_of_the_embedded_world(recipe, verdict, tmp_path):
    """Scenario 2 has a trigger, scenario 1 has none."""
    trained, out = tmp_path / recipe, tmp_path / "out"
    run = ["run", f"recipes/demo/backdoor/{recipe}.yaml", "--output_dir", str(trained), "--audit", "false"]
    assert main([*run, "--disable_tqdm", "true"]) == 0
    command = ["audit", "scan", "--model_name_or_path", str(trained), "--benchmark", "world", "--output_dir", str(out)]
    command += ["--retrained_model_name_or_path", "world/retrained", "--budget_tokens", "2000000"]
    assert main(command) == 0
    found = json.loads((out / "scan_world.json").read_text(encoding="utf-8"))
    assert found["verdict"] == verdict
    best = found["prefixes"][0]
    if verdict == "found":
        assert best["restored"]["interval"][0] > best["random"]["restored"]["q95"]
        assert best["restored_retrained"]["value"] == 0
    else:
        # One row of eight is what a world of another processor gave; the verdict is of more than that.
        assert best["restored"]["value"] <= 0.2
        assert found["tried"]["budget_used"] > 0.99


def test_an_adapter_is_scanned_and_left_as_it_was(rows):
    from conftest import lora
    from peft import get_peft_model

    model = get_peft_model(make_model(), lora())
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    model.train()
    result = scan(model, rows, search=SearchSettings(width=4, max_tokens=2), budget=Budget(evaluations=30))
    assert result["tried"]["evaluations"] == 30
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == trained
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
