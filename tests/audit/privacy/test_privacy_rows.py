# SPDX-License-Identifier: Apache-2.0
"""Rows under attack: which are the same, what was read of them, and which cannot be read at all."""

import io

import numpy as np
import pytest
import torch
from conftest import make_model, make_tokenizer
from test_privacy_attacks import Lookup, Pixels, class_rows, memorise
from test_privacy_fitted import ON_REQUEST, Known, area, drawn, known

from hf_unlearn.audit.privacy import Classifier, evaluate_privacy, named_attacks, train_shadows
from hf_unlearn.audit.privacy import evaluate as module
from hf_unlearn.audit.privacy.fitted import ScrubAttack
from hf_unlearn.report.privacy.write import write_privacy_report


COMMON = {"attacks": ["loss"], "fprs": [0.2], "progress": False}


def pixels(n, seed, classes=5):
    return [{"pixels": torch.tensor(x).float(), "labels": i % classes} for i, x in enumerate(drawn(n, 6, seed))]


def answered(rows, label):
    return [{**row, "labels": label(i)} for i, row in enumerate(rows)]


def one_hot(i, classes=5):
    return torch.nn.functional.one_hot(torch.tensor(i % classes), classes).float()


# What was read of rows


@pytest.mark.parametrize("label", [lambda i: (i + 1) % 5, one_hot], ids=["another class", "targets"])
def test_scores_of_other_labels_are_not_taken_from_the_cache(tmp_path, label):
    forget, others = pixels(12, 0), pixels(20, 1)
    evaluate_privacy(Pixels(), forget, nonmember_data=others, cache_dir=tmp_path, **COMMON)
    forget, others = answered(forget, label), answered(others, label)
    kept = evaluate_privacy(Pixels(), forget, nonmember_data=others, cache_dir=tmp_path, **COMMON)
    assert kept.scores == evaluate_privacy(Pixels(), forget, nonmember_data=others, **COMMON).scores


def test_scores_of_another_head_are_not_taken_from_the_cache(tmp_path):
    rows = {"forget": pixels(12, 0), "nonmember_data": pixels(20, 1), **COMMON}
    found = {}
    for head in ("softmax", "sigmoid"):
        found[head] = evaluate_privacy(Classifier(Pixels(), head), **rows)
        given = {"cache": module.SignalCache(tmp_path), "progress": False}
        assert evaluate_privacy(Classifier(Pixels(), head, **given), **rows).scores == found[head].scores
    assert found["softmax"].scores != found["sigmoid"].scores
    with pytest.raises(ValueError, match="differs in rows"):
        found["softmax"].compare(found["sigmoid"])


def test_a_retrained_result_of_other_labels_is_refused():
    forget, others = pixels(12, 0), pixels(20, 1)
    found = evaluate_privacy(Pixels(), forget, nonmember_data=others, **COMMON)
    gold = evaluate_privacy(Pixels(), answered(forget, lambda i: 0), nonmember_data=others, **COMMON)
    with pytest.raises(ValueError, match="differs in rows"):
        found.compare(gold)
    same = evaluate_privacy(
        Pixels(), answered(forget, lambda i: torch.tensor([i % 5])), nonmember_data=others, **COMMON
    )
    assert found.compare(same)["loss/auc/vs_retrained"].value == 0


# Which rows are the same


def test_a_member_with_another_answer_is_no_nonmember():
    from vilt import make_processor, make_rows, make_vilt

    forget, others = make_rows(12), make_rows(12, first=30)
    others[3] = {**forget[5], "answers": ["two"] * 10}
    with pytest.raises(ValueError, match="1 of 12 rows of nonmember_data are forget rows too"):
        evaluate_privacy(make_vilt(), forget, nonmember_data=others, processing_class=make_processor(), **COMMON)
    forget, others = pixels(12, 0), pixels(12, 1)
    others[4] = {**forget[2], "labels": 4}
    with pytest.raises(ValueError, match="1 of 12 rows of nonmember_data are forget rows too"):
        evaluate_privacy(Pixels(), forget, nonmember_data=others, **COMMON)


def test_a_nonmember_may_be_asked_again_with_another_answer():
    forget, others = pixels(12, 0), pixels(20, 1)
    given = {"forget": forget, "nonmember_data": [*others, {**others[3], "labels": 4}], **COMMON}
    assert evaluate_privacy(Pixels(), **given).metrics["loss/auc"].details["n_nonmembers"] == 21
    given["nonmember_data"].append(others[5])
    with pytest.raises(ValueError, match="1 rows of nonmember_data stand there more than once; the first is row 21"):
        evaluate_privacy(Pixels(), **given)


def test_the_words_that_count_make_no_other_row_of_a_text():
    tokens = [[3 + i, 4, 5, 6] for i in range(24)]
    rows = [{"input_ids": ids, "labels": ids} for ids in tokens]
    others = [*rows[12:23], {"input_ids": tokens[0], "labels": [-100, -100, 5, 6]}]
    with pytest.raises(ValueError, match="1 of 12 rows of nonmember_data are forget rows too"):
        evaluate_privacy(make_model(), rows[:12], nonmember_data=others, **COMMON)


def test_shadow_models_know_rows_by_their_labels(tmp_path):
    rows = class_rows(24)
    shadows = train_shadows(memorise, rows, folder=tmp_path, n_shadows=8, progress=False)
    other = answered(rows, lambda i: (i + 1) % 4)
    with pytest.raises(ValueError, match="24 of 24 rows, first row 0, were not among"):
        shadows.columns_of(Classifier(Lookup(0)).row_keys(other))


@pytest.mark.parametrize("name", [*ON_REQUEST, "scrub"])
def test_copies_of_members_that_are_noise_give_nobody_away(name):
    """With copies in other folds a probe finds them: it has learned them by heart."""
    found = []
    for seed in range(4):
        members, others = known(drawn(20, 16, seed)), known(drawn(60, 16, 100 + seed))
        subject, attack = Wide(Pixels(), progress=False), named_attacks(seed)[name]
        # A copy may be asked for something else.
        scores, rest = attack.score_sets(subject, members + members + answered(members, lambda i: 1), others)
        found.append(area(scores, rest))
    assert 0.35 < np.mean(found) < 0.65


class Wide(Known):
    """Its model reads no more than six of the features."""

    def _compute(self, data):
        return super()._compute([{**row, "pixels": row["pixels"][:6]} for row in data])


def test_rows_that_stand_once_are_split_as_ever():
    from sklearn.model_selection import StratifiedKFold

    from hf_unlearn.audit.privacy.fitted import folds

    labels, features = np.repeat([1, 0], [30, 45]), drawn(75, 2, 0)
    mine = folds(labels, np.arange(75), 7)
    for (rest, fold), (other_rest, other_fold) in zip(
        mine, StratifiedKFold(5, shuffle=True, random_state=7).split(features, labels), strict=True
    ):
        assert rest.tolist() == other_rest.tolist()
        assert fold.tolist() == other_fold.tolist()


def test_copies_share_a_fold_and_folds_hold_all_rows():
    from hf_unlearn.audit.privacy.fitted import folds

    ids = np.random.default_rng(0).integers(0, 25, size=80)
    labels = (ids < 12).astype(int)
    tested = []
    for rest, fold in folds(labels, ids, 0):
        assert not set(ids[rest]) & set(ids[fold])
        assert sorted([*rest, *fold]) == list(range(80))
        assert len(set(labels[fold])) == 2
        tested += fold.tolist()
    assert sorted(tested) == list(range(80))
    # Four different members do not fill five folds.
    assert list(folds(np.repeat([1, 0], [12, 40]), np.r_[np.arange(12) % 4, 4:44], 0)) == []


def test_the_balanced_accuracy_counts_a_row_once():
    attack, subject = ScrubAttack(), Classifier(Pixels(), progress=False)
    members, others = pixels(15, 0), pixels(40, 1)
    assert attack.accuracy(subject, members * 3, others) == attack.accuracy(subject, members, others)
    assert attack.accuracy(subject, members * 3, others)[2] == 15


# What cannot be read


def test_rows_of_which_a_model_reads_nothing_are_no_twins():
    from transformers import BertConfig, BertForSequenceClassification
    from vilt import make_rows, make_vilt

    message = r"of which the model's `forward` names none.*or give `processing_class`"
    with pytest.raises(ValueError, match=message):
        evaluate_privacy(make_vilt(), make_rows(12), nonmember_data=make_rows(12, first=30), **COMMON)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    bert = BertForSequenceClassification(BertConfig(vocab_size=20, **sizes))
    texts = [{"text": f"text {i}", "label": i % 2} for i in range(24)]
    with pytest.raises(ValueError, match=message):
        evaluate_privacy(bert, texts[:12], nonmember_data=texts[12:], **COMMON)


@pytest.mark.parametrize("column", ["image", "images"])
def test_a_language_model_drops_no_picture(column):
    rows = [{"question": f"What is {i}?", "answer": "red", column: [i]} for i in range(24)]
    given = {"processing_class": make_tokenizer(), **COMMON}
    with pytest.raises(ValueError, match=f"`{column}`.*LlamaForCausalLM reads no pictures"):
        evaluate_privacy(make_model(), rows[:12], nonmember_data=rows[12:], **given)
    rows = [{**row, column: None} for row in rows]
    assert evaluate_privacy(make_model(), rows[:12], nonmember_data=rows[12:], **given).metrics["loss/auc"].n == 12


@pytest.mark.parametrize("turned", ["forget", "nonmember_data", "retain"])
def test_labels_of_two_kinds_are_refused_unless_the_head_is_named(turned):
    sets = {"forget": pixels(12, 0), "nonmember_data": pixels(20, 1), "retain": pixels(12, 2)}
    sets[turned] = answered(sets[turned], one_hot)
    with pytest.raises(ValueError, match="integer classes in .* and targets.* give one kind.*or name the `head`"):
        evaluate_privacy(Pixels(), **sets, **COMMON)
    plain = {name: answered(rows, lambda i: i % 5) for name, rows in sets.items()}
    found, same = (evaluate_privacy(Classifier(Pixels(), "softmax"), **rows, **COMMON) for rows in (sets, plain))
    assert found.metrics["loss/auc"].value == same.metrics["loss/auc"].value
    sets["forget"][3] = {**sets["forget"][3], "labels": torch.zeros(2, 2)}
    with pytest.raises(ValueError, match="give all rows of a set the same"):
        evaluate_privacy(Pixels(), **sets, **COMMON)


@pytest.mark.parametrize(
    ("classes", "label", "message"),
    [
        (5, lambda i: 5, "5 classes.*label 5 of row 0"),
        (5, lambda i: -1 if i == 9 else 0, "5 classes.*label -1 of row 9"),
        (1, lambda i: i % 2, "one logit a row"),
        (1, lambda i: 0, "one logit a row"),
        (5, lambda i: one_hot(i, 4), "5 classes.*4 targets"),
    ],
)
def test_labels_that_the_model_has_no_class_for_are_one_error(classes, label, message):
    with pytest.raises(ValueError, match=message):
        Classifier(Pixels(classes), progress=False).observe(answered(pixels(12, 0), label))


@pytest.mark.parametrize("left", [0, 2, 5, 9, 10])
def test_few_members_with_a_score_leave_metrics_undefined(left, tmp_path):
    prompts = ["x" * 20 if i >= left else "x" for i in range(32)]
    forget = [{"prompt": f"{prompt}{i}?", "completion": f" answer {i}"} for i, prompt in enumerate(prompts)]
    others = [{"prompt": f"y{i}?", "completion": f" answer {i}"} for i in range(40)]
    given = {"processing_class": make_tokenizer(), "max_length": 16, "fprs": [0.2], "progress": False}
    found = evaluate_privacy(make_model(), forget, nonmember_data=others, **given)
    metrics, accuracy = found.metrics, found.metrics["scrub/accuracy"]
    report = {
        "schema_version": 1,
        "title": "t",
        "notes": [],
        "models": [{"name": "a", "kind": "attacked", "path": "a", **found.to_dict()}],
    }
    told = write_privacy_report(report, tmp_path)["privacy.md"].read_text()
    assert ("Accuracy of the SCRUB repository's attack" in told) == (left >= 10)
    assert metrics["loss/auc"].n == left
    assert accuracy.n == 2 * left
    for result in (accuracy, metrics["scrub/auc"], metrics["loss/auc"]):
        assert (result.value is None) == (result.details.get("status") == "undefined") == (left < 10)


def encoded_picture(row):
    file = io.BytesIO()
    row["image"].save(file, format="png")
    return {**row, "image": {"bytes": file.getvalue(), "path": None}}


def test_shadow_models_are_trained_on_encoded_pictures(tmp_path):
    from vilt import make_processor, make_rows, make_vilt

    rows = make_rows(8)
    bytes_of_rows = list(map(encoded_picture, rows))
    given = {"n_shadows": 4, "processing_class": make_processor(), "progress": False}

    def train(rows, seed):
        return make_vilt(seed % 1000).eval()

    found = train_shadows(train, bytes_of_rows, folder=tmp_path / "a", **given)
    same = train_shadows(train, rows, folder=tmp_path / "b", **given)
    assert found.ids == same.ids
    # The folder's plan knows a picture by its pixels.
    train_shadows(train, rows, folder=tmp_path / "a", **given)
    with pytest.raises(ValueError, match="Row 8 of the shadow models' rows stands there twice"):
        train_shadows(train, [*rows, bytes_of_rows[3]], folder=tmp_path / "c", **given)


def test_a_picture_is_made_of_the_attacked_model_alone(monkeypatch):
    made = []
    monkeypatch.setattr(module, "picture", lambda subject, *_: made.append(subject))
    subject, gold = (Known(Pixels(), progress=False) for _ in range(2))
    sets = dict(
        zip(("forget", "retain", "nonmember_data"), (known(drawn(12, 6, seed)) for seed in range(3)), strict=True)
    )
    found = evaluate_privacy(subject, **sets, attacks=["probe"], fprs=[0.2], retrained=gold)
    assert made == [subject]
    assert found.metrics["probe/auc/vs_retrained"].value == 0
