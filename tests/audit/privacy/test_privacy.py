# SPDX-License-Identifier: Apache-2.0
"""`evaluate_privacy` and `hf-unlearn audit privacy`: from a model and rows to a report."""

import json

import numpy as np
import pytest
import torch
from conftest import make_model, make_tokenizer
from test_privacy_attacks import Lookup, memorise

from hf_unlearn.audit.privacy import (
    BaseAttack,
    Classifier,
    LanguageModel,
    Privacy,
    as_subject,
    evaluate_privacy,
    train_shadows,
)
from hf_unlearn.audit.privacy.cache import SignalCache
from hf_unlearn.cli.main import main
from hf_unlearn.data.formats import encode
from hf_unlearn.report.privacy.write import load_privacy_report, print_privacy_report, write_privacy_report


def text_rows(n, seed):
    rng = np.random.default_rng(seed)
    letters = list("abcdefghijklmnop")
    return [{"text": "".join(rng.choice(letters, size=16))} for _ in range(n)]


@pytest.fixture(scope="module")
def memorised():
    """A tiny language model that knows thirty texts by heart, the texts, and many that it never saw."""
    tokenizer, model, rows = make_tokenizer(), make_model(hidden_size=64), text_rows(30, 0)
    ids = torch.tensor([encode(row, tokenizer)["input_ids"] for row in rows])
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(110):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval(), tokenizer, rows, text_rows(2200, 1)


def test_a_memorised_model_is_detected_where_the_sample_resolves_it(memorised):
    model, tokenizer, rows, unseen = memorised
    found = evaluate_privacy(
        model,
        rows,
        nonmember_data=unseen,
        processing_class=tokenizer,
        batch_size=256,
        progress=False,
        fprs=[1e-5, 1e-4, 5e-4, 1e-3, 1e-2],
    )
    for name in ("1e-3", "1e-2"):
        for attack in ("loss", "min-k", "min-k++", "zlib", "worst"):
            result = found.metrics[f"{attack}/tpr@{name}"]
            assert result.value > 0.9
            assert result.interval[0] > 0.7
            assert result.details["achieved_fpr"] <= 10 * result.details["fpr"]
            assert result.details["p_chance"] < 0.01
    for name, needed in (("1e-5", 99999), ("1e-4", 9999), ("5e-4", 1999)):
        result = found.metrics[f"loss/tpr@{name}"]
        assert result.value is None
        assert result.interval is None
        assert result.details["status"] == "unresolved"
        assert (result.details["n_calibration"], result.details["needs_calibration"]) == (1100, needed)
        assert result.details["zero_fp"]["tpr"] == found.metrics["loss/tpr_zero_fp"].value > 0.9
        assert found.metrics[f"worst/tpr@{name}"].value is None
    assert found.metrics["loss/tpr@1e-3/lower"].value == 0


@pytest.fixture(scope="module")
def untrained(memorised):
    _, tokenizer, rows, unseen = memorised
    return LanguageModel(make_model(hidden_size=64), tokenizer, batch_size=256, progress=False), rows, unseen[:300]


def test_a_model_that_never_saw_the_rows_stays_at_chance_and_is_compared(memorised, untrained):
    model, tokenizer, _, _ = memorised
    subject, rows, unseen = untrained
    trained = LanguageModel(model, tokenizer, batch_size=256, progress=False)
    found = evaluate_privacy(
        trained, rows, nonmember_data=unseen, attacks=["loss", "zlib"], fprs=[1e-2], retrained=subject, progress=False
    )
    gold = evaluate_privacy(
        subject, rows, nonmember_data=unseen, attacks=["loss", "zlib"], fprs=[1e-2], progress=False
    )
    assert gold.metrics["worst/tpr@1e-2"].details["p_chance"] > 0.01
    low, high = gold.metrics["loss/auc"].interval
    assert low < 0.5 < high
    difference = found.metrics["loss/auc/vs_retrained"]
    assert difference.value == pytest.approx(found.metrics["loss/auc"].value - gold.metrics["loss/auc"].value)
    assert difference.interval[0] > 0.3
    rate = found.metrics["loss/tpr@1e-2/vs_retrained"]
    assert rate.details["retrained"] == gold.metrics["loss/tpr@1e-2"].value
    other = evaluate_privacy(subject, rows, nonmember_data=unseen[:200], attacks=["loss"], fprs=[1e-2], progress=False)
    with pytest.raises(ValueError, match="differs in rows"):
        found.compare(other)


def test_retain_rows_show_whether_an_attack_works_at_all(memorised):
    model, tokenizer, rows, unseen = memorised
    subject = LanguageModel(model, tokenizer, batch_size=256, progress=False)
    found = evaluate_privacy(
        subject,
        text_rows(20, 7),
        retain=rows,
        nonmember_data=unseen[:100],
        attacks=["loss", "scrub"],
        fprs=[0.1],
        progress=False,
    )
    assert found.metrics["loss/retain_auc"].value > 0.99
    assert found.metrics["loss/retain_auc"].n == 30
    assert 0.2 < found.metrics["loss/auc"].value < 0.8
    assert "scrub/retain_auc" not in found.metrics


def test_results_survive_json(untrained, tmp_path):
    subject, rows, unseen = untrained
    found = evaluate_privacy(
        subject, rows, retain=rows[:0] or None, nonmember_data=unseen, fprs=[1e-3, 1e-1], progress=False
    )
    loaded = Privacy.load(found.save(tmp_path / "a" / "privacy.json"))
    assert loaded.to_dict() == json.loads(json.dumps(found.to_dict()))
    assert loaded.metrics["worst/tpr@1e-1"].name == "tpr@1e-1"
    assert loaded.values()["loss/tpr@1e-3"] is None
    with pytest.raises(ValueError, match="privacy_version=0"):
        Privacy.from_dict({"privacy_version": 0})
    again = evaluate_privacy(subject, rows, nonmember_data=unseen, fprs=[1e-3, 1e-1], progress=False)
    assert again.to_dict() == found.to_dict()


def test_scores_are_kept_on_disk_by_weights_and_rows(memorised, tmp_path):
    model, tokenizer, rows, unseen = memorised
    calls = []
    handle = model.register_forward_pre_hook(lambda *_: calls.append(1))
    common = {"nonmember_data": unseen[:60], "fprs": [0.1], "cache_dir": tmp_path, "progress": False}
    try:
        first = evaluate_privacy(model, rows, attacks=["loss"], processing_class=tokenizer, **common)
        n = len(calls)
        assert n > 0
        second = evaluate_privacy(model, rows, attacks=["loss", "min-k++"], processing_class=tokenizer, **common)
        assert len(calls) == n
        assert second.scores["loss"] == first.scores["loss"]
        evaluate_privacy(model, rows[1:], attacks=["loss"], processing_class=tokenizer, **common)
        assert len(calls) > n
        n = len(calls)
        with torch.no_grad():
            model.lm_head.weight[0, 0] += 1e-3
        evaluate_privacy(model, rows, attacks=["loss"], processing_class=tokenizer, **common)
        assert len(calls) > n
    finally:
        handle.remove()
        with torch.no_grad():
            model.lm_head.weight[0, 0] -= 1e-3


def test_rows_without_a_score_are_counted_not_zero(untrained):
    class Gaps(BaseAttack):
        name = "gaps"

        def compute_scores(self, model, data):
            scores = np.arange(len(data), dtype=float)
            scores[:4] = np.nan
            return scores

    class Nothing(BaseAttack):
        name = "nothing"

        def compute_scores(self, model, data):
            return np.full(len(data), np.nan)

    subject, rows, unseen = untrained
    found = evaluate_privacy(
        subject, rows, nonmember_data=unseen, attacks=[Gaps(), Nothing()], fprs=[0.1], progress=False
    )
    alone = Gaps().evaluate(subject, rows, unseen, fprs=[0.1], progress=False)
    assert alone.metrics["gaps/auc"] == found.metrics["gaps/auc"]
    result = found.metrics["gaps/tpr@1e-1"]
    assert (result.n, result.undefined) == (26, 4)
    assert result.per_item[:4] == [None] * 4
    assert found.metrics["nothing/tpr@1e-1"].value is None
    assert found.metrics["nothing/auc"].details["status"] == "undefined"
    assert found.metrics["worst/tpr@1e-1"].details["attack"].startswith("gaps")


def test_a_classifier_and_lira_through_the_same_door(tmp_path):
    rows = [{"question": torch.tensor(i), "labels": i % 4} for i in range(28)]
    forget, unseen = rows[:14], rows[14:]
    shadows = train_shadows(memorise, rows, folder=tmp_path, n_shadows=8, progress=False)
    target = memorise(forget, 77)
    found = evaluate_privacy(target, forget, nonmember_data=unseen, fprs=[0.15], shadows=shadows, progress=False)
    assert {"lira-online-fixed", "lira-offline-fixed", "scrub"} <= set(found.scores)
    assert not {"min-k", "zlib"} & set(found.scores)
    assert found.metrics["lira-online-fixed/auc"].value == 1
    assert found.metrics["lira-online-fixed/tpr@1.5e-1"].value == 1
    untouched = evaluate_privacy(
        Lookup(5), forget, nonmember_data=unseen, attacks=["lira"], fprs=[0.15], shadows=shadows, progress=False
    )
    assert untouched.metrics["lira-online-fixed/auc"].value < 0.85


@pytest.mark.slow
def test_u_lira_through_our_own_trainer(tmp_path):
    from conftest import make_args
    from transformers import set_seed

    from hf_unlearn import GAConfig, GATrainer

    tokenizer, rows = make_tokenizer(), text_rows(24, 0)

    def train(rows, seed):
        set_seed(seed)
        model = make_model(seed)
        ids = torch.tensor([encode(row, tokenizer)["input_ids"] for row in rows])
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
        for _ in range(100):
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return model

    def unlearn(model, forget, retain, seed):
        args = make_args(GAConfig, tmp_path / "run", seed=seed, learning_rate=1e-3, max_steps=6, report_to=[])
        sets = {"forget_dataset": forget, "retain_dataset": retain}
        GATrainer(model, args, **sets, processing_class=tokenizer).train()
        return model

    common = {"processing_class": tokenizer, "progress": False}
    shadows = train_shadows(train, rows, folder=tmp_path / "shadows", n_shadows=12, unlearn=unlearn, **common)
    members, unseen = rows[:12], rows[12:]
    target = unlearn(train(members, 99), members, text_rows(8, 3), 99)
    found = evaluate_privacy(
        target, members, nonmember_data=unseen, attacks=["lira"], fprs=[0.15], shadows=shadows, **common
    )
    assert list(found.scores) == ["u-lira"]
    # Ascent of a few steps on memorised rows leaves traces, one way or the other.
    assert found.metrics["u-lira/auc"].value > 0.8


BAD = [
    ({"nonmember_data": None}, "No nonmember_data was given.*retain rows are members"),
    ({"nonmember_data": []}, "nonmember_data has 0 rows; an evaluation needs 10"),
    ({"forget": [{"text": "a"}] * 3}, "forget has 3 rows"),
    ({"nonmember_data": "rows.jsonl"}, "nonmember_data is a str"),
    ({"fprs": [0.0, 0.1]}, "above 0 and below 1"),
    ({"fprs": []}, "at least one false positive rate"),
    ({"calibration_share": 1.0}, "calibration_share=1.0"),
    ({"attacks": ["los"]}, "there is no 'los'. Give each once, of: loss"),
    ({"attacks": ["loss", "loss"]}, "one is named twice"),
    ({"attacks": []}, "at least one"),
    ({"attacks": ["lira"]}, "'lira' needs `shadows`"),
    ({"attacks": ["reference"]}, "'reference' needs `reference_model`"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_input_is_one_clear_error(untrained, change, message):
    subject, rows, unseen = untrained
    given = {"forget": rows, "nonmember_data": unseen, "progress": False} | change
    with pytest.raises(ValueError, match=message):
        evaluate_privacy(subject, **given)


def test_members_among_the_nonmembers_are_counted_and_shown(untrained):
    subject, rows, unseen = untrained
    retain = text_rows(12, 9)
    with pytest.raises(ValueError, match=r"2 of 302 rows of nonmember_data are retain rows too.*row 300: .*text"):
        evaluate_privacy(subject, rows, retain=retain, nonmember_data=[*unseen, *retain[:2]], progress=False)
    with pytest.raises(ValueError, match=r"1 of 301 rows of nonmember_data are forget rows too"):
        evaluate_privacy(subject, rows, nonmember_data=[*unseen, rows[4]], progress=False)
    with pytest.raises(ValueError, match=r"1 rows of nonmember_data stand there more than once; the first is row 300"):
        evaluate_privacy(subject, rows, nonmember_data=[*unseen, unseen[0]], progress=False)
    inputs = [{"question": torch.tensor(i), "labels": i % 4} for i in range(30)]
    with pytest.raises(ValueError, match="3 of 15 rows of nonmember_data are forget rows too"):
        evaluate_privacy(
            Classifier(Lookup(0), progress=False), inputs[:18], nonmember_data=inputs[15:], progress=False
        )


@pytest.mark.drawn
def test_the_report_says_unresolved_and_draws(memorised, untrained, tmp_path):
    subject, rows, unseen = untrained
    attacks = ["loss", "confidence", "scrub"]
    found = evaluate_privacy(subject, rows, nonmember_data=unseen, attacks=attacks, fprs=[1e-5, 0.05], progress=False)
    entry = {"name": "a_$odd_name", "kind": "attacked", "path": None, **found.to_dict()}
    report = {
        "schema_version": 1,
        "title": "T",
        "created": "",
        "command": "hf-unlearn ...",
        "versions": {},
        "notes": ["N"],
        "models": [entry],
    }
    files = write_privacy_report(report, tmp_path)
    text = files["privacy.md"].read_text()
    assert "unresolved (150 of 99,999)" in text
    assert "plots/privacy_roc.png" in text
    # 30 rows have a 90th percentile and no 99th.
    scores = found.scores["confidence"]["forget"]
    tail = f"{np.percentile(scores, 90):.4f} | - | {np.mean(sorted(scores)[-3:]):.4f} | {max(scores):.4f} |"
    assert f"| forget rows | {np.median(scores):.4f} | {tail}" in text
    for name in ("roc", "tpr", "scores"):
        assert (tmp_path / "plots" / f"privacy_{name}.png").stat().st_size > 10_000
        assert (tmp_path / "plots" / f"privacy_{name}.pdf").read_bytes().startswith(b"%PDF")
    assert load_privacy_report(tmp_path) == json.loads(json.dumps(report))
    from rich.console import Console

    console = Console(record=True, width=150)
    print_privacy_report(report, console)
    assert "TPR at 1e-5: unresolved (150 of 99,999)" in console.export_text()
    with pytest.raises(ValueError, match="No privacy report at"):
        load_privacy_report(tmp_path / "plots")


# The command


@pytest.fixture(scope="module")
def files(memorised, tmp_path_factory):
    """Two models and three files of rows."""
    folder = tmp_path_factory.mktemp("files")
    model, tokenizer, rows, unseen = memorised
    for name, one in (("runs/trained", model), ("runs/start", make_model(hidden_size=64))):
        one.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    for name, data in (("forget", rows), ("retain", text_rows(15, 5)), ("unseen", unseen[:120]), ("few", unseen[:20])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data))
    return folder


def arguments(files, **change):
    given = {
        "models": [str(files / "runs" / "*")],
        "forget_dataset": files / "forget.jsonl",
        "retain_dataset": files / "retain.jsonl",
        "nonmember_dataset": files / "unseen.jsonl",
        "fprs": ["1e-5", "0.05"],
        "attacks": ["loss", "min-k"],
        "audit_batch_size": 64,
    } | change
    words = ["audit", "privacy"]
    for name, value in given.items():
        if value is not None:
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return words


def test_the_command_on_own_files_and_several_models(files, tmp_path, capsys):
    out = tmp_path / "out"
    retrained = {"retrained_model_name_or_path": files / "runs" / "start"}
    assert main(arguments(files, output_dir=out, **retrained)) == 0
    report = load_privacy_report(out)
    models = {model["name"]: model for model in report["models"]}
    assert set(models) == {"retrained", "start", "trained"}
    assert models["trained"]["metrics"]["loss/tpr@5e-2"]["value"] > 0.9
    assert models["trained"]["metrics"]["loss/auc/vs_retrained"]["value"] > 0.3
    assert models["start"]["metrics"]["loss/auc/vs_retrained"]["value"] == 0
    assert models["trained"]["metrics"]["loss/tpr@1e-5"]["value"] is None
    assert report["settings"]["fprs"] == [1e-5, 0.05]
    printed = capsys.readouterr().out
    assert "unresolved (60 of 99,999)" in printed
    assert "privacy.md" in printed


def test_the_command_makes_attacks_that_learn_where_they_are_asked_for(files, tmp_path):
    names = ["probe", "knn", "centroid", "features", "neural"]
    given = {"models": [str(files / "runs" / "trained")], "attacks": names, "output_dir": tmp_path}
    assert main(arguments(files, **given, retrained_model_name_or_path=files / "runs" / "start")) == 0
    gold, trained = load_privacy_report(tmp_path)["models"]
    for model in (gold, trained):
        points = model["representations"]["points"]
        assert {name: len(points[name]) for name in points} == {"forget": 30, "nonmember": 120, "retain": 15}
    assert gold["representations"] != trained["representations"]
    assert (tmp_path / "plots" / "privacy_representations.png").is_file()
    metrics = trained["metrics"]
    assert all(0 <= metrics[f"{name}/auc"]["value"] <= 1 for name in names)
    assert min(metrics[f"{name}/auc"]["value"] for name in ("features", "neural")) > 0.9


@pytest.mark.slow
def test_the_command_trains_shadow_models_and_keeps_them(files, tmp_path, capsys):
    given = {
        "models": [str(files / "runs" / "trained")],
        "attacks": ["lira"],
        "nonmember_dataset": files / "few.jsonl",
        "shadow_model_name_or_path": files / "runs" / "start",
        "n_shadows": 4,
        "shadow_epochs": 130,
        "shadow_learning_rate": 5e-3,
        "shadow_batch_size": 64,
        "shadow_dir": tmp_path / "shadows",
    }
    assert main(arguments(files, output_dir=tmp_path / "a", **given)) == 0
    assert len(list((tmp_path / "shadows").iterdir())) == 5
    metrics = load_privacy_report(tmp_path / "a")["models"][0]["metrics"]
    assert metrics["lira-online-fixed/auc"]["value"] > 0.8
    # Those of other settings are not mixed with these.
    assert main(arguments(files, output_dir=tmp_path / "b", **(given | {"shadow_epochs": 9}))) == 2
    assert "differ in note" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nonmember_dataset": None}, "No non-members are named"),
        ({"models": ["/nowhere"]}, "No model folder at '/nowhere'"),
        ({"models": ["/nowhere*"]}, "no folder with a model matches"),
        ({"models": None}, "No model is named"),
        ({"fprs": ["2"]}, "above 0 and below 1"),
        ({"attacks": ["los"]}, "there is no 'los'"),
        ({"attacks": ["reference"]}, "'reference' needs `--reference_model_name_or_path`"),
        ({"attacks": ["lira"]}, "'lira' needs `--shadow_model_name_or_path`"),
        ({"benchmark": "world"}, "Give exactly one"),
        ({"audit_batch_size": 0}, "audit_batch_size=0"),
    ],
)
def test_mistakes_in_the_command_are_one_line(files, tmp_path, monkeypatch, capsys, change, message):
    monkeypatch.setattr(
        "hf_unlearn.audit.checkpoints.load_checkpoint", lambda *a, **k: pytest.fail("a model was loaded")
    )
    assert main(arguments(files, output_dir=tmp_path, **change)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("hf-unlearn: error:")
    assert len(error.strip().splitlines()) == 1


def test_retain_rows_given_as_nonmembers_are_refused_by_the_command(files, tmp_path, capsys):
    given = {"nonmember_dataset": files / "retain.jsonl", "models": [str(files / "runs" / "start")]}
    assert main(arguments(files, output_dir=tmp_path, **given)) == 2
    assert "15 of 15 rows of nonmember_data are retain rows too" in capsys.readouterr().err


# Pictures


@pytest.fixture
def pictures(tmp_path):
    """Makes a ViLT under attack with a cache."""
    from transformers.models.vilt.image_processing_pil_vilt import ViltImageProcessorPil
    from vilt import make_processor, make_vilt

    def make(max_length=None, mean=None):
        processor = make_processor()
        if mean is not None:
            images = ViltImageProcessorPil(size={"shortest_edge": 16}, size_divisor=8, image_mean=[mean] * 3)
            processor = type(processor)(images, processor.tokenizer)
        options = {"max_length": max_length, "cache": SignalCache(tmp_path), "progress": False}
        return as_subject(make_vilt().eval(), processing_class=processor, **options)

    return make


def changed_rows(rows, **columns):
    return [{**row, **{name: change(row) for name, change in columns.items()}} for row in rows]


@pytest.mark.parametrize("change", ["image", "question", "weights", "mean", "max_length"])
def test_kept_signals_are_of_these_rows_and_this_processor(pictures, change):
    from vilt import make_rows

    rows = make_rows(4)
    before = pictures().observe(rows).mean("logp")
    settings, other = {}, rows
    if change == "image":
        other = changed_rows(rows, image=lambda row: row["image"].rotate(90))
    elif change == "question":
        other = changed_rows(rows, question=lambda row: "How many colour?")
    elif change == "weights":
        other = changed_rows(rows, answers=lambda row: row["answers"][:1] + ["none"] * 9)
    else:
        settings = {"mean": {"mean": 0.1}, "max_length": {"max_length": 4}}[change]
    kept = pictures(**settings).observe(other).mean("logp")
    fresh = pictures(**settings)
    fresh.cache = None
    np.testing.assert_array_equal(kept, fresh.observe(other).mean("logp"))
    assert not np.allclose(kept, before)
    np.testing.assert_array_equal(pictures().observe(rows).mean("logp"), before)


def test_sets_that_are_numbered_alike_share_no_row(pictures):
    from vilt import make_rows

    forget, others = make_rows(12), make_rows(12, first=30)
    others = [{**row, "example_id": same["example_id"]} for row, same in zip(others, forget, strict=True)]
    found = evaluate_privacy(pictures(), forget, nonmember_data=others, attacks=["loss"], fprs=[0.2], progress=False)
    assert found.metrics["loss/auc"].value is not None
    others[3] = {**forget[5], "example_id": "another"}
    with pytest.raises(ValueError, match="1 of 12 rows of nonmember_data are forget rows too"):
        evaluate_privacy(pictures(), forget, nonmember_data=others, attacks=["loss"], fprs=[0.2], progress=False)
