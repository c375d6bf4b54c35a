# SPDX-License-Identifier: Apache-2.0
"""Attacks that learn: out of fold, from representations and from outputs."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import make_model, make_tokenizer
from test_privacy_attacks import Pixels

from hf_unlearn.audit.privacy import Classifier, FittedAttack, as_subject, evaluate_privacy, named_attacks
from hf_unlearn.audit.privacy.compare import auc_difference, rate_difference
from hf_unlearn.audit.privacy.fitted import fitted_attacks, out_of_fold, regression
from hf_unlearn.audit.privacy.rates import auc_interval, auc_result, tpr_at_fpr
from hf_unlearn.audit.privacy.worst import chance_of_maximum
from hf_unlearn.data.formats import encode


ON_REQUEST = ("probe", "knn", "centroid", "features", "neural")
ON_STATES = ON_REQUEST[:3]


def area(members, others):
    return (members[:, None] > others[None]).mean()


def drawn(n, k, seed, shift=0.0):
    return np.random.default_rng(seed).normal(size=(n, k)) + shift


# Features


def test_states_are_what_the_last_layer_reads():
    from vilt import make_processor, make_rows, make_vilt

    model, tokenizer = make_model().eval(), make_tokenizer()
    rows = [{"prompt": "Who?", "completion": " Ada" + "!" * i} for i in range(5)]
    slow = []
    for row in rows:
        found = encode(row, tokenizer)
        with torch.no_grad():
            hidden = model.model(torch.tensor([found["input_ids"]])).last_hidden_state[0].double()
        places = [t for t, label in enumerate(found["labels"][1:]) if label != -100]
        slow.append(hidden[places].mean(0).numpy())
    subject = as_subject(model, processing_class=tokenizer, batch_size=2, progress=False)
    np.testing.assert_allclose(subject.states(rows), slow, atol=1e-5)
    vilt, rows, slow = make_vilt().eval(), make_rows(5), []
    for row in rows:
        batch = make_processor()(row["image"], row["question"], return_tensors="pt")
        with torch.no_grad():
            slow.append(vilt.vilt(**batch).pooler_output[0].double().numpy())
    subject = as_subject(vilt, processing_class=make_processor(), batch_size=2, progress=False)
    np.testing.assert_allclose(subject.states(rows), slow, atol=1e-5)


def test_a_row_without_labelled_tokens_has_no_representation():
    rows = [{"input_ids": [5, 6, 7], "labels": labels} for labels in ([5, 6, 7], [-100, -100, -100])]
    states = as_subject(make_model(), progress=False).states(rows)
    assert np.isfinite(states).all(1).tolist() == [True, False]


def test_all_attacks_on_representations_share_one_pass():
    members, others = ([{"text": f"secret {i:02d} of {name}"} for i in range(12)] for name in ("Ada", "Bob"))
    model, seen = make_model(), []
    model.register_forward_hook(lambda *_: seen.append(1))
    subject = as_subject(model, processing_class=make_tokenizer(), progress=False)
    for name in ON_STATES:
        named_attacks()[name].score_sets(subject, members, others)
    assert len(seen) == 2


class Known(Classifier):
    """A subject whose rows are their own representation and their own signals."""

    def _states(self, data):
        return np.stack([row["pixels"].numpy() for row in data])


def known(features):
    return [{"pixels": torch.tensor(x, dtype=torch.float), "labels": 0} for x in features]


def test_features_are_loss_confidence_margin_and_entropy():
    subject, rows = Classifier(Pixels(), progress=False), known(drawn(9, 6, 0))
    one = named_attacks()
    expected = [one[name].compute_scores(subject, rows) for name in ("loss", "confidence", "margin", "entropy")]
    expected[0], expected[3] = -expected[0], -expected[3]
    for name in ("features", "neural"):
        np.testing.assert_allclose(one[name].features(subject, rows), np.transpose(expected))


# Scores


def slow_knn(x, y, query):
    scores = []
    for row in query:
        r = [np.sort([np.sqrt(((row - other) ** 2).sum()) for other in x[y == label]])[4] for label in (0, 1)]
        scores.append(np.log(r[0]) - np.log(r[1]))
    return scores


def slow_centroid(x, y, query):
    means = [x[y == label].mean(0) for label in (0, 1)]
    return [np.sqrt(((row - means[0]) ** 2).sum()) - np.sqrt(((row - means[1]) ** 2).sum()) for row in query]


def learner(name):
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier

    if name == "neural":
        return MLPClassifier((16,), activation="tanh", solver="lbfgs", alpha=1.0, max_iter=1000, random_state=0)
    return LogisticRegression(class_weight="balanced", max_iter=1000)


@pytest.mark.parametrize("name", ON_REQUEST)
def test_scores_are_those_of_the_other_folds(name):
    """Against scikit-learn's own cross-validation, and against plain sums where it has no such classifier."""
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    members, others = drawn(30, 4, 1, 0.4), 3 * drawn(45, 4, 2)
    x, y = np.r_[members, others], np.repeat([1, 0], [30, 45])
    folds = StratifiedKFold(5, shuffle=True, random_state=7)
    found = np.concatenate(out_of_fold(members, others, 7, named_attacks()[name].estimator))
    if name in ("knn", "centroid"):
        expected = np.empty(75)
        for rest, fold in folds.split(x, y):
            mean, sd = x[rest].mean(0), x[rest].std(0)
            slow = slow_knn if name == "knn" else slow_centroid
            expected[fold] = slow((x[rest] - mean) / sd, y[rest], (x[fold] - mean) / sd)
    else:
        given = {"cv": folds, "method": "predict_proba"}
        p = cross_val_predict(make_pipeline(StandardScaler(), learner(name)), x, y, **given)
        expected = np.log(p[:, 1] / p[:, 0])
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)
    assert len(set(found.tolist())) == 75


@pytest.mark.parametrize("name", ON_REQUEST)
def test_noise_gives_nobody_away_and_a_shift_everybody(name):
    attack = named_attacks()[name]
    noise, same_rows = [], []
    for seed in range(8):
        members, others = drawn(40, 48, seed), drawn(60, 48, 100 + seed)
        noise.append(area(*out_of_fold(members, others, seed, attack.estimator)))
        learned = FittedAttack("own", lambda _, rows: np.stack(rows), attack.estimator)
        subject = Classifier(Pixels(), progress=False)
        scores = learned.fit(subject, members, others).compute_scores(subject, np.r_[members, others])
        same_rows.append(area(scores[:40], scores[40:]))
    assert 0.42 < np.mean(noise) < 0.58
    # What the same test would say of an attack that is scored on the rows that it learned from.
    assert np.mean(same_rows) > 0.65
    shifted = out_of_fold(drawn(40, 48, 0, 1.0), drawn(60, 48, 1), 0, attack.estimator)
    assert area(*shifted) > 0.97


def test_neighbours_and_the_network_find_what_no_line_separates():
    """Members within a shell of non-members around the same centre."""
    members, others = 0.3 * drawn(60, 4, 0), 1.5 * drawn(90, 4, 1)
    found = {name: area(*out_of_fold(members, others, 0, named_attacks()[name].estimator)) for name in ON_REQUEST}
    assert min(found["knn"], found["neural"]) > 0.9
    assert max(found["features"], found["probe"]) < 0.75


def test_attacks_on_representations_find_what_predictions_hide():
    subject = Known(Pixels(), progress=False)
    # Along a direction that the layer does not read: no prediction tells.
    away = np.linalg.svd(Pixels().layer.weight.detach().numpy())[2][-1]
    others = known(drawn(120, 6, 1))
    members = {shift: known(drawn(80, 6, 0) + shift * away) for shift in (0, 4)}
    for name in ON_REQUEST:
        attack = named_attacks()[name]
        found = {shift: area(*attack.score_sets(subject, rows, others)) for shift, rows in members.items()}
        assert 0.3 < found[0] < 0.7
        assert (found[4] > 0.95) == (name in ON_STATES)


@pytest.mark.parametrize("name", ON_REQUEST)
def test_rows_without_features_stay_without_a_score(name):
    estimator = named_attacks()[name].estimator
    members, others = drawn(30, 4, 0), drawn(40, 4, 1)
    holes = members.copy()
    holes[[3, 8], 1] = np.nan
    found, rest = out_of_fold(holes, others, 0, estimator)
    assert np.flatnonzero(np.isnan(found)).tolist() == [3, 8]
    whole = out_of_fold(np.delete(members, [3, 8], 0), others, 0, estimator)
    np.testing.assert_allclose(np.delete(found, [3, 8]), whole[0])
    np.testing.assert_allclose(rest, whole[1])
    # A fold without members can say nothing.
    holes[4:] = np.nan
    assert np.isnan(np.concatenate(out_of_fold(holes, others, 0, estimator))).all()


@pytest.mark.parametrize("name", ["knn", "neural"])
def test_rows_that_are_all_alike_are_at_chance(name):
    members, others = np.ones((30, 4)), np.ones((40, 4))
    found = np.concatenate(out_of_fold(members, others, 0, named_attacks()[name].estimator))
    assert np.isfinite(found).all()
    assert np.ptp(found) < 1e-3


# In an audit


def test_attacks_that_learn_are_made_where_they_are_asked_for():
    rows = [{"text": f"secret {i:02d} of Ada"} for i in range(24)]
    options = {"processing_class": make_tokenizer(), "progress": False, "fprs": [0.2]}
    assert [attack.name for attack in fitted_attacks()] == list(ON_REQUEST)
    plain = evaluate_privacy(make_model(), rows[:12], nonmember_data=rows[12:], **options)
    assert {name.split("/")[0] for name in plain.metrics}.isdisjoint(ON_REQUEST)
    asked = evaluate_privacy(
        make_model(), rows[:12], nonmember_data=rows[12:], attacks=[*ON_REQUEST, "loss"], **options
    )
    for name in ON_REQUEST:
        assert 0 <= asked.metrics[f"{name}/auc"].value <= 1
        assert len(asked.scores[name]["forget"]) == len(asked.scores[name]["nonmember"]) == 12
        assert f"{name}/retain_auc" not in asked.metrics
    with pytest.raises(ValueError, match="there is no 'kNN'.* probe, knn, centroid, features, neural,"):
        evaluate_privacy(make_model(), rows[:12], nonmember_data=rows[12:], attacks=["kNN"], **options)


def test_folds_are_drawn_by_the_seed_of_the_audit():
    rows = [{"text": f"secret {i:02d} of Ada"} for i in range(40)]
    model, options = make_model(), {"processing_class": make_tokenizer(), "progress": False, "fprs": [0.2]}
    scores = [
        evaluate_privacy(
            model, rows[:20], nonmember_data=rows[20:], attacks=["scrub", "features"], seed=seed, **options
        ).scores
        for seed in (0, 0, 1)
    ]
    for name in ("scrub", "features"):
        assert scores[0][name] == scores[1][name] != scores[2][name]


def test_a_subject_without_representations_says_who_reads_them():
    from hf_unlearn.audit.privacy import Subject

    class Opaque(Classifier):
        _states = Subject._states

    with pytest.raises(ValueError, match="Opaque gives no representations, which 'probe', 'knn' and"):
        named_attacks()["knn"].score_sets(Opaque(Pixels()), known(drawn(9, 6, 0)), known(drawn(9, 6, 1)))


# How sure


def covering(k: int, sizes: tuple[int, int], make, runs: int = 100) -> tuple[list[bool], list[bool], list[bool]]:
    """Whether 0.5 lies in the AUC's interval and in that of as many independent scores, and chance in the TPR's."""
    auc, plain, tpr = [], [], []
    for run in range(runs):
        scores = out_of_fold(drawn(sizes[0], k, run), drawn(sizes[1], k, 1000 + run), run, make)
        low, high = auc_result(*scores, FittedAttack.design_effect).interval
        auc.append(low <= 0.5 <= high)
        low, high = auc_result(*scores).interval
        plain.append(low <= 0.5 <= high)
        rate = tpr_at_fpr(scores[0], scores[1][::2], scores[1][1::2], 0.1, effect=FittedAttack.design_effect)
        tpr.append(rate.interval[0] <= rate.details["chance"] <= rate.interval[1])
    return auc, plain, tpr


@pytest.mark.parametrize(("k", "sizes"), [(1, (60, 1000)), (8, (60, 400)), (8, (100, 100))])
def test_the_intervals_of_learned_scores_hold_chance(k, sizes):
    """Out-of-fold scores share fits: as if independent, their intervals would be too narrow."""
    auc, plain, tpr = (np.mean(held) for held in covering(k, sizes, regression))
    # 95 %; two standard errors of 100 runs are 4.4 %.
    assert auc >= 0.9
    assert tpr >= 0.9
    assert plain < 0.9


def test_learned_attacks_are_counted_as_fewer_rows():
    forget, others = ([{"text": f"secret {i:02d} of {name}"} for i in range(20)] for name in ("Ada", "Bob"))
    found = evaluate_privacy(make_model(), forget, nonmember_data=others, attacks=["loss", "features"], fprs=[0.1],
                             processing_class=make_tokenizer(), progress=False)  # fmt: skip
    for name, effect in (("loss", 1), ("features", 2)):
        area, rate = found.metrics[f"{name}/auc"], found.metrics[f"{name}/tpr@1e-1"]
        assert area.interval == pytest.approx(auc_interval(area.value, 20 / effect, 20 / effect))
        assert (area.details["design_effect"], rate.details["design_effect"]) == (effect, effect)


def test_differences_of_learned_scores_are_wider_by_the_root_of_two():
    sets = [drawn(30, 1, seed)[:, 0] for seed in range(4)]
    narrow, wide = (np.diff(auc_difference(*sets, effect).interval) for effect in (1.0, 2.0))
    assert wide == pytest.approx(2**0.5 * narrow)
    found = [[float(x > 0) for x in part] for part in sets[:2]]
    narrow, wide = (np.diff(rate_difference("tpr@1e-1", *found, effect).interval) for effect in (1.0, 2.0))
    assert wide == pytest.approx(2**0.5 * narrow)


def test_the_chance_of_the_maximum_knows_which_scores_were_learned():
    scores = drawn(1, 400, 0)
    plain, learned = (chance_of_maximum(scores, 100, [30], [effect])[0] for effect in (1.0, 2.0))
    mean = 30 / 301
    assert learned - mean == pytest.approx(np.maximum(2**0.5 * (plain - mean), -mean))


def test_numbers_are_the_same_in_every_process(tmp_path):
    """Splits, folds and permutations are seeded, and not by `hash` of a text."""
    code = """
import sys
import numpy as np
from conftest import make_model, make_tokenizer
from hf_unlearn.audit.privacy import evaluate_privacy
forget, others = ([{"text": f"secret {i:02d} of {name}"} for i in range(14)] for name in ("Ada", "Bob"))
evaluate_privacy(make_model(), forget, nonmember_data=others, attacks=["loss", "scrub", "features"], fprs=[0.2],
                 processing_class=make_tokenizer(), progress=False).save(sys.argv[1])
"""
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        subprocess.run([sys.executable, "-c", code, str(tmp_path / seed)], env=environment, check=True)
    assert (tmp_path / "1").read_text() == (tmp_path / "2").read_text()
