# SPDX-License-Identifier: Apache-2.0
"""Attacks on tiny models, against slow float64 loops, and LiRA against what can be known at best."""

import math
import zlib

import numpy as np
import pytest
import torch
from conftest import make_model, make_tokenizer
from scipy.stats import norm

from hf_unlearn.audit.privacy import (
    BaseAttack,
    Classifier,
    LanguageModel,
    LiRAAttack,
    MinKAttack,
    ReferenceAttack,
    ScrubAttack,
    Shadows,
    ULiRAAttack,
    as_subject,
    evaluate_privacy,
    named_attacks,
    train_shadows,
)
from hf_unlearn.audit.privacy.fitted import fitted_attacks, out_of_fold
from hf_unlearn.audit.privacy.lira import gaussians
from hf_unlearn.audit.privacy.rates import tpr_at_fpr
from hf_unlearn.audit.privacy.shadows import IN, OUT, UNLEARNED, shadow_seed, shadow_states
from hf_unlearn.audit.privacy.signals import softmax_signals, token_signals
from hf_unlearn.data.formats import encode


WORDS = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen")


def rows_of(n, seed=0):
    rng = np.random.default_rng(seed)

    def text(words):
        return " ".join(rng.choice(WORDS, size=words))

    return [
        {"prompt": f"Who is {text(1)} {i} {seed}?", "completion": f" {text(int(rng.integers(1, 6)))}."}
        for i in range(n)
    ]


def slow_predictions(model, tokenizer, row):
    """Every number of every labelled token, from its own forward pass and plain sums in float64."""
    encoded = encode(row, tokenizer)
    with torch.no_grad():
        logits = model(torch.tensor([encoded["input_ids"]])).logits[0].double().tolist()
    found = []
    for t, label in enumerate(encoded["labels"]):
        if t == 0 or label == -100:
            continue
        top = max(logits[t - 1])
        weights = [math.exp(value - top) for value in logits[t - 1]]
        p = [w / sum(weights) for w in weights]
        logs = [math.log(q) for q in p]
        mean = sum(q * value for q, value in zip(p, logs, strict=True))
        first, second = sorted(p, reverse=True)[:2]
        found.append({
            "logp": logs[label],
            "log_odds": logs[label] - math.log(sum(q for v, q in enumerate(p) if v != label)),
            "top": first,
            "margin": first - second,
            "entropy": -mean,
            "spread": math.sqrt(sum(q * (value - mean) ** 2 for q, value in zip(p, logs, strict=True))),
        })  # fmt: skip
    return found


@pytest.fixture(scope="module")
def setting():
    model, tokenizer, rows = make_model(seed=3), make_tokenizer(), rows_of(9)
    return LanguageModel(model, tokenizer, batch_size=4, progress=False), rows, [
        slow_predictions(model, tokenizer, row) for row in rows
    ]  # fmt: skip


def test_signals_equal_slow_sums(setting):
    subject, rows, slow = setting
    signals = subject.observe(rows)
    assert signals.lengths.tolist() == [len(predictions) for predictions in slow]
    for name, column in signals.columns.items():
        expected = [prediction[name] for predictions in slow for prediction in predictions]
        np.testing.assert_allclose(column, expected, rtol=1e-5, atol=1e-6, err_msg=name)


def lowest(values, k):
    kept = sorted(values)[: max(1, int(k * len(values)))]
    return sum(kept) / len(kept)


def test_every_named_attack_equals_its_formula(setting):
    subject, rows, slow = setting
    mean = {name: [np.mean([p[name] for p in predictions]) for predictions in slow] for name in slow[0][0]}
    texts = [row["completion"] for row in rows]
    expected = {
        "loss": mean["logp"],
        "confidence": mean["top"],
        "entropy": [-value for value in mean["entropy"]],
        "margin": mean["margin"],
        "min-k": [lowest([p["logp"] for p in predictions], 0.2) for predictions in slow],
        "min-k++": [
            lowest([(p["logp"] + p["entropy"]) / p["spread"] for p in predictions], 0.2) for predictions in slow
        ],
        "zlib": [logp / len(zlib.compress(t.encode())) for logp, t in zip(mean["logp"], texts, strict=True)],
    }
    attacks = named_attacks()
    assert expected.keys() | {"scrub", *(attack.name for attack in fitted_attacks())} == attacks.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(attacks[name].compute_scores(subject, rows), values, rtol=2e-5, err_msg=name)


@pytest.mark.parametrize("k", [0.1, 0.3, 0.5, 1.0])
def test_min_k_takes_the_right_number_of_tokens(setting, k):
    subject, rows, slow = setting
    expected = [lowest([p["logp"] for p in predictions], k) for predictions in slow]
    np.testing.assert_allclose(MinKAttack(k).compute_scores(subject, rows), expected, rtol=1e-5)
    # One token at least, where k of a short row is none.
    assert {len(predictions) for predictions in slow} & {4, 5, 6}


def test_min_k_plus_plus_survives_a_certain_prediction(tokenizer):
    model = make_model()
    with torch.no_grad():
        model.lm_head.weight.mul_(1e4)
    scores = MinKAttack(normalized=True).compute_scores(LanguageModel(model, tokenizer, progress=False), rows_of(5))
    assert np.isfinite(scores).all()


def test_reference_is_a_difference(setting, tokenizer):
    subject, rows, slow = setting
    other = LanguageModel(make_model(seed=5), tokenizer, progress=False)
    mine = [np.mean([p["logp"] for p in predictions]) for predictions in slow]
    theirs = [np.mean([p["logp"] for p in slow_predictions(other.model, tokenizer, row)]) for row in rows]
    np.testing.assert_allclose(
        ReferenceAttack(other).compute_scores(subject, rows), np.subtract(mine, theirs), rtol=1e-4, atol=1e-6
    )


def test_all_row_types_are_scored_alike(tokenizer):
    model = make_model()
    subject = LanguageModel(model, tokenizer, progress=False)
    turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "A spy."}]
    rows = [
        {"prompt": turns[:1], "completion": turns[1:]},
        {"question": "Who?", "answer": "A spy."},
        {"messages": turns},
    ]
    scores = [named_attacks()["loss"].compute_scores(subject, [row])[0] for row in rows]
    assert scores[0] == pytest.approx(scores[1])
    assert scores[0] == pytest.approx(scores[2])
    tokens = [encode(row, tokenizer) for row in rows[:1]]
    assert named_attacks()["loss"].compute_scores(as_subject(model, progress=False), tokens)[0] == pytest.approx(
        scores[0]
    )
    with pytest.raises(ValueError, match="need the model's tokenizer"):
        as_subject(model).observe(rows[2:])


def test_a_row_without_labelled_tokens_has_no_score(setting):
    subject, _, _ = setting
    rows = [{"input_ids": [1, 5, 6], "labels": [-100, 5, 6]}, {"input_ids": [1, 5], "labels": [-100, -100]}]
    for name in ("loss", "min-k", "min-k++"):
        scores = named_attacks()[name].compute_scores(subject, rows)
        assert np.isfinite(scores).tolist() == [True, False]


def test_rows_that_float32_calls_certain_are_told_apart(tokenizer):
    logits = torch.zeros(2, 2, 4)
    logits[0, 0, 1], logits[1, 0, 1] = 25.0, 28.0
    assert logits[0].softmax(-1)[0, 1] == logits[1].softmax(-1)[0, 1] == 1
    rows = token_signals(logits, torch.tensor([[-100, 1], [-100, 1]]))
    for first, second in zip(*rows, strict=True):
        assert first[0] != second[0]
    assert rows[0][1][0] == pytest.approx(25 - math.log(3))


class Pixels(torch.nn.Module):
    """A classifier of nothing in particular, with dropout to show that it is attacked in evaluation mode."""

    def __init__(self, classes=5):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.dropout = torch.nn.Linear(6, classes), torch.nn.Dropout(0.5)

    def forward(self, pixels):
        return self.layer(self.dropout(pixels))


def test_a_classifier_with_integer_labels():
    model = Pixels().train()
    rows = [{"pixels": torch.randn(6), "labels": i % 5, "forget": True} for i in range(7)]
    subject = Classifier(model, batch_size=3, progress=False)
    p = torch.stack([model.layer(row["pixels"]) for row in rows]).double().softmax(-1).detach().numpy()
    right = p[np.arange(7), [row["labels"] for row in rows]]
    order = np.sort(p, axis=1)
    expected = {
        "loss": np.log(right),
        "confidence": order[:, -1],
        "margin": order[:, -1] - order[:, -2],
        "entropy": (p * np.log(p)).sum(1),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(named_attacks()[name].compute_scores(subject, rows), values, rtol=1e-5)
    np.testing.assert_allclose(subject.observe(rows).mean("log_odds"), np.log(right / (1 - right)), rtol=1e-5)
    assert model.training
    with pytest.raises(ValueError, match="'min-k' reads sequences"):
        MinKAttack().compute_scores(subject, rows)


def test_a_classifier_with_soft_targets_of_several_labels():
    model = Pixels().eval()
    rng = np.random.default_rng(0)
    rows = [{"pixels": torch.randn(6), "labels": torch.tensor(rng.choice([0, 1 / 3, 1.0], size=5))} for _ in range(12)]
    z = torch.stack([model.layer(row["pixels"]) for row in rows]).double().detach().numpy()
    t = torch.stack([row["labels"] for row in rows]).numpy()
    p = 1 / (1 + np.exp(-z))
    signals = Classifier(model, progress=False).observe(rows)
    np.testing.assert_allclose(signals.mean("logp"), (t * np.log(p) + (1 - t) * np.log(1 - p)).sum(1), rtol=1e-5)
    np.testing.assert_allclose(signals.mean("top"), p.max(1), rtol=1e-5)
    answered = t.sum(1) > 0
    np.testing.assert_allclose(
        signals.mean("log_odds")[answered], ((t * z).sum(1) / np.maximum(t.sum(1), 1e-9))[answered], rtol=1e-5
    )
    shares = t[answered] / t[answered].sum(1, keepdims=True)
    soft = Classifier(model, head="softmax", progress=False).observe(
        [r for r, a in zip(rows, answered, strict=True) if a]
    )
    logs = np.log(np.exp(z) / np.exp(z).sum(1, keepdims=True))[answered]
    np.testing.assert_allclose(soft.mean("logp"), (shares * logs).sum(1), rtol=1e-5)
    mixed = (shares * np.exp(logs)).sum(1)
    np.testing.assert_allclose(soft.mean("log_odds"), np.log(mixed / (1 - mixed)), rtol=1e-5)


def test_vilt_with_its_soft_labels():
    from transformers import ViltConfig, ViltForQuestionAnswering

    torch.manual_seed(0)
    config = ViltConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=32,
        patch_size=16,
        num_labels=7,
        max_position_embeddings=8,
    )
    model = ViltForQuestionAnswering(config).eval()
    rows = [
        {
            "input_ids": torch.randint(0, 50, (8,)),
            "attention_mask": torch.ones(8, dtype=torch.long),
            "pixel_values": torch.randn(3, 32, 32),
            "pixel_mask": torch.ones(32, 32, dtype=torch.long),
            "labels": torch.nn.functional.one_hot(torch.tensor(i % 7), 7).float(),
        }
        for i in range(6)
    ]
    subject = as_subject(model, batch_size=4, progress=False)
    assert isinstance(subject, Classifier)
    scores = named_attacks()["loss"].compute_scores(subject, rows)
    for row, score in zip(rows, scores, strict=True):
        batch = {name: value[None] for name, value in row.items()}
        # ViLT's own loss is the mean over answers times their number.
        assert -score == pytest.approx(model(**batch).loss.item(), rel=1e-4)
    torch.rand(3)
    again = Classifier(model, batch_size=4, progress=False)
    assert named_attacks()["loss"].compute_scores(again, rows).tolist() == scores.tolist()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor(0.5), "give an integer class"),
        (torch.tensor([0.5, 2.0]), "in \\[0, 1\\]"),
        (torch.tensor([1, 0]), "give an integer class"),
        (None, "need `labels`"),
    ],
)
def test_other_labels_are_refused(labels, message):
    row = {"pixels": torch.randn(6)} | ({} if labels is None else {"labels": labels})
    with pytest.raises(ValueError, match=message):
        Classifier(Pixels(2), progress=False).observe([row])


def test_subjects_are_told_apart():
    assert isinstance(as_subject(make_model()), LanguageModel)
    assert isinstance(as_subject(Pixels()), Classifier)
    with pytest.raises(ValueError, match="processing_class would be ignored"):
        as_subject(Pixels(), processing_class=make_tokenizer())
    with pytest.raises(ValueError, match="The model is a str"):
        as_subject("model")


def test_an_attack_of_ones_own(setting):
    class Length(BaseAttack):
        name = "length"

        def compute_scores(self, model, data):
            return as_subject(model).observe(data).lengths

    subject, rows, slow = setting
    members, others = Length().score_sets(subject, rows[:4], rows[4:])
    assert [*members, *others] == [len(predictions) for predictions in slow]


# The SCRUB repository's attack


def test_scrub_scores_are_out_of_fold():
    rng = np.random.default_rng(0)
    members, others = rng.normal(size=(60, 1)), rng.normal(size=(90, 1))
    found = np.concatenate(out_of_fold(members, others, seed=2))
    # Each score again, from a fit on the other folds alone.
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold

    features, labels = np.r_[members, others], np.r_[np.ones(60), np.zeros(90)]
    for train, test in StratifiedKFold(5, shuffle=True, random_state=2).split(features, labels):
        assert not set(train) & set(test)
        fit = LogisticRegression(class_weight="balanced").fit(features[train], labels[train])
        np.testing.assert_allclose(found[test], fit.decision_function(features[test]), rtol=1e-6)


def test_scrub_of_noise_finds_nothing_and_of_a_shift_either_way_does():
    rng = np.random.default_rng(0)
    draw = lambda rows, shift=0: rng.normal(shift, size=(rows, 1))  # noqa: E731
    noise = [tpr_at_fpr(*_split(*out_of_fold(draw(100), draw(400)))).value for _ in range(40)]
    assert np.mean(noise) < 0.1
    for shift in (-4, 4):
        members, others = out_of_fold(draw(100, shift), draw(400))
        assert tpr_at_fpr(*_split(members, others)).value > 0.9


def _split(members, others):
    return members, others[:200], others[200:], 0.05


def test_scrub_reports_the_accuracy_of_balanced_splits(setting, tokenizer):
    subject, _, _ = setting
    attack = ScrubAttack()
    mean, deviation, size = attack.accuracy(subject, rows_of(30), rows_of(60, seed=1))
    assert 0.2 < mean < 0.8
    assert size == 30
    assert deviation >= 0
    with pytest.raises(ValueError, match="call `fit"):
        attack.compute_scores(subject, rows_of(30))
    assert attack.fit(subject, rows_of(30), rows_of(30, seed=1)).compute_scores(subject, rows_of(5)).shape == (5,)


# LiRA


def gaussian_family(n, n_shadows, seed=0, gap=1.0, sd_of_means=3.0):
    rng = np.random.default_rng(seed)
    centre = rng.normal(0, sd_of_means, size=n)
    states = shadow_states(n_shadows, n, seed)
    shadow_phi = centre + gap * (states == IN) + rng.normal(size=(n_shadows, n))
    is_member = rng.random(n) < 0.5
    return centre, shadow_phi, states, is_member, centre + gap * is_member + rng.normal(size=n)


def lira(phi, shadow_phi, states, mode, fixed):
    from hf_unlearn.audit.privacy.signals import Signals
    from hf_unlearn.audit.privacy.subjects import Subject

    class Known(Subject):
        def __init__(self):
            pass

        def observe(self, data):
            return Signals(np.arange(len(data) + 1), {"log_odds": phi})

        def row_ids(self, data):
            return [str(i) for i in data]

        row_keys = row_ids

        def settings(self):
            return {}

        def _compute(self, data):
            raise NotImplementedError

    shadows = Shadows([str(i) for i in range(len(phi))], states, {"log_odds": shadow_phi})
    return LiRAAttack(shadows, mode, fixed).compute_scores(Known(), list(range(len(phi))))


def tpr_of(scores, is_member, fpr=1e-2):
    others = scores[~is_member]
    return tpr_at_fpr(scores[is_member], others[::2], others[1::2], fpr).value


def test_lira_comes_near_the_oracle_on_a_known_family():
    found = {}
    for seed in range(3):
        centre, shadow_phi, states, is_member, phi = gaussian_family(20000, 64, seed)
        scores = {"oracle": phi - centre, "global": phi}
        scores |= {
            f"{mode}{'-fixed' * fixed}": lira(phi, shadow_phi, states, mode, fixed)
            for mode in ("online", "offline", "offline-two-sided")
            for fixed in (True, False)
        }
        for name, values in scores.items():
            found.setdefault(name, []).append(tpr_of(values, is_member))
    found = {name: np.mean(values) for name, values in found.items()}
    # Known at best: 1 - Phi(z - 1) with z of 1 %; without any shadow model 1 - Phi(z - 1 / sqrt(10)).
    best, worst = norm.sf(norm.isf(0.01) - 1), norm.sf(norm.isf(0.01) - 1 / math.sqrt(10))
    assert found["oracle"] == pytest.approx(best, abs=0.02)
    assert found["global"] == pytest.approx(worst, abs=0.01)
    for name in ("online-fixed", "offline-fixed"):
        assert found["oracle"] - 0.025 < found[name] < found["oracle"] + 0.005
    # A row's own variance, from 32 models, costs some; a two-sided score gives half away.
    assert found["global"] < found["offline-two-sided"] < found["offline-fixed"]
    assert found["global"] + 0.02 < found["online"] < found["online-fixed"]


def test_lira_equals_its_formula():
    _, shadow_phi, states, _, phi = gaussian_family(5, 8)
    for mode in ("online", "offline", "offline-two-sided"):
        found = lira(phi, shadow_phi, states, mode, False)
        for j in range(5):
            inside, outside = (sorted(shadow_phi[states[:, j] == state, j]) for state in (IN, OUT))

            def log_density(x, values):
                middle = (values[1] + values[2]) / 2
                mean = sum(values) / 4
                variance = sum((v - mean) ** 2 for v in values) / 4
                return -0.5 * math.log(2 * math.pi * variance) - (x - middle) ** 2 / (2 * variance), middle, variance

            above, below = log_density(phi[j], inside), log_density(phi[j], outside)
            expected = {
                "online": above[0] - below[0],
                "offline": (phi[j] - below[1]) / math.sqrt(below[2]),
                "offline-two-sided": -below[0],
            }[mode]
            assert found[j] == pytest.approx(expected)


def test_a_row_forgotten_too_much_is_seen_two_sided_only():
    centre, shadow_phi, states, is_member, _ = gaussian_family(4000, 32)
    phi = centre - 6 * is_member + np.random.default_rng(1).normal(size=4000)
    rates = {
        mode: tpr_of(lira(phi, shadow_phi, states, mode, True), is_member) for mode in ("online", "offline-two-sided")
    }
    assert rates["online"] < 0.005
    assert rates["offline-two-sided"] > 0.9


def test_shadow_models_that_agree_give_no_infinities():
    values = np.random.default_rng(0).normal(size=(8, 3))
    values[:, 0] = 1.0
    states = shadow_states(8, 3)
    for fixed in (True, False):
        centre, spread = gaussians(values, states == IN, fixed)
        assert (spread > 0).all()
        assert np.isfinite(centre).all()
    with pytest.raises(ValueError, match="All shadow models agree"):
        gaussians(np.ones((8, 3)), states == IN, True)


def test_states_are_balanced_and_seeded():
    states = shadow_states(16, 100, seed=4)
    assert ((states == IN).sum(0) == 8).all()
    assert 20 < (states[0] == IN).sum() < 80
    assert (states == shadow_states(16, 100, seed=4)).all()
    assert (states != shadow_states(16, 100, seed=5)).any()
    thirds = shadow_states(12, 50, unlearning=True)
    assert all(((thirds == state).sum(0) == 4).all() for state in (IN, OUT, UNLEARNED))
    for n, unlearning in ((5, False), (2, False), (8, True), (3, True)):
        with pytest.raises(ValueError, match="give a multiple of"):
            shadow_states(n, 10, unlearning=unlearning)


# Training of shadow models, by a caller's function


class Lookup(torch.nn.Module):
    """Four answers to each of thirty questions."""

    def __init__(self, seed):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.table = torch.nn.Parameter(0.3 * torch.randn(30, 4, generator=generator))

    def forward(self, question):
        return self.table[question]


def memorise(rows, seed, log=None):
    """A model that is surer of the answers that it was given."""
    if log is not None:
        log.append((len(rows), seed))
    model = Lookup(seed)
    with torch.no_grad():
        for row in rows:
            model.table[row["question"], row["labels"]] += 4
    return model


def class_rows(n):
    return [{"question": torch.tensor(i), "labels": i % 4} for i in range(n)]


class KilledError(Exception):
    pass


def test_a_killed_shadow_training_goes_on(tmp_path):
    rows, log = class_rows(24), []

    def dies(rows, seed):
        if len(log) == 3:
            raise KilledError
        return memorise(rows, seed, log)

    with pytest.raises(KilledError):
        train_shadows(dies, rows, folder=tmp_path / "a", n_shadows=8, progress=False)
    assert len(log) == 3
    resumed = train_shadows(
        lambda rows, seed: memorise(rows, seed, log), rows, folder=tmp_path / "a", n_shadows=8, progress=False
    )
    assert [seed for _, seed in log] == [shadow_seed(0, s) for s in range(8)]
    whole = train_shadows(memorise, rows, folder=tmp_path / "b", n_shadows=8, progress=False)
    assert (resumed.states == whole.states).all()
    np.testing.assert_array_equal(resumed.values("log_odds"), whole.values("log_odds"))
    assert not list(tmp_path.rglob("*.part"))
    # Nothing is left to train.
    train_shadows(dies, rows, folder=tmp_path / "a", n_shadows=8, progress=False)
    for change in ({"seed": 1}, {"n_shadows": 10}, {"note": "other"}, {"background": class_rows(30)[24:]}):
        with pytest.raises(ValueError, match=f"differ in {next(iter(change))}"):
            train_shadows(memorise, rows, folder=tmp_path / "a", **({"n_shadows": 8, "progress": False} | change))
    with pytest.raises(ValueError, match="stands there twice"):
        train_shadows(memorise, [*rows, rows[3]], folder=tmp_path / "c", n_shadows=8, progress=False)


def test_lira_finds_what_shadow_models_show(tmp_path):
    rows = class_rows(24)
    shadows = train_shadows(memorise, rows, folder=tmp_path, n_shadows=16, progress=False)
    is_member = np.arange(24) % 2 == 0
    target = Classifier(
        memorise([row for row, member in zip(rows, is_member, strict=True) if member], 99), progress=False
    )
    for mode in ("online", "offline"):
        scores = LiRAAttack(shadows, mode).compute_scores(target, rows)
        assert scores[is_member].min() > scores[~is_member].max()
    with pytest.raises(ValueError, match="1 of 2 rows, first row 1, were not among"):
        LiRAAttack(shadows).compute_scores(target, [rows[0], {"question": torch.tensor(29), "labels": 0}])
    with pytest.raises(ValueError, match="unlearned anything"):
        ULiRAAttack(shadows)


def test_u_lira_tells_unlearned_rows_from_unseen_ones(tmp_path):
    rows, seen = class_rows(24), []

    def unlearn(model, forget, retain, seed):
        # Overshoots: what is forgotten becomes less likely than what was never seen.
        seen.append((len(forget), len(retain)))
        with torch.no_grad():
            for row in forget:
                model.table[row["question"], row["labels"]] -= 8
        return model

    shadows = train_shadows(
        memorise,
        rows,
        folder=tmp_path,
        n_shadows=12,
        unlearn=unlearn,
        background=class_rows(30)[24:],
        progress=False,
    )
    forgotten, kept = ((shadows.states == state).sum(1) for state in (UNLEARNED, IN))
    assert seen == list(zip(forgotten, kept + 6, strict=True))
    was_unlearned = np.arange(24) % 2 == 0
    forget = [row for row, was in zip(rows, was_unlearned, strict=True) if was]
    target = Classifier(unlearn(memorise(forget, 99), forget, [], 0), progress=False)
    scores = ULiRAAttack(shadows).compute_scores(target, rows)
    assert scores[was_unlearned].min() > scores[~was_unlearned].max()


def test_rows_with_pictures_are_attacked_as_they_are():
    from datasets import Dataset
    from vilt import make_processor, make_rows, make_vilt

    model, rows = make_vilt().eval(), make_rows(12)
    logits, targets = [], []
    for row in rows:
        batch = make_processor()(row["image"], row["question"], return_tensors="pt")
        with torch.no_grad():
            logits.append(model(**batch).logits[0].double().numpy())
        targets.append([min(row["answers"].count(name) / 3, 1) for name in model.config.label2id])
    z, t = np.array(logits), np.array(targets)
    expected = (t * -np.logaddexp(0, -z) + (1 - t) * -np.logaddexp(0, z)).mean(1)
    for data in (rows, Dataset.from_list(rows)):
        subject = as_subject(model, processing_class=make_processor(), batch_size=5, progress=False)
        found = named_attacks()["loss"].compute_scores(subject, data)
        np.testing.assert_allclose(found / found[0], expected / expected[0], rtol=1e-4)
        assert len(set(subject.row_ids(data))) == len(rows)
    privacy = evaluate_privacy(
        model,
        Dataset.from_list(rows),
        retain=None,
        nonmember_data=Dataset.from_list(make_rows(12, first=50)),
        fprs=[0.2],
        processing_class=make_processor(),
        progress=False,
    )
    assert 0 <= privacy.metrics["loss/auc"].value <= 1
    with pytest.raises(ValueError, match="1 of 12 rows of nonmember_data are forget rows too"):
        evaluate_privacy(
            model,
            Dataset.from_list(rows),
            retain=None,
            nonmember_data=Dataset.from_list([*make_rows(11, first=50), rows[0]]),
            fprs=[0.2],
            processing_class=make_processor(),
            progress=False,
        )


@pytest.mark.parametrize("gap", [-800.0, 800.0], ids=["p=0", "p=1"])
def test_log_odds_are_finite_where_a_probability_is_0_or_1(gap):
    logits, label = torch.tensor([[[gap, 0.0, -1.0]] * 2]), torch.tensor([[0, 0]])
    assert logits[0, 0].double().softmax(-1)[0] in (0, 1)
    wrong = math.log(1 + math.exp(-1))
    (of_tokens,) = token_signals(logits, label)
    (of_classes,) = softmax_signals(logits[:, 0], torch.tensor([[1.0, 0.0, 0.0]]))
    for found in (of_tokens, of_classes):
        assert found[1] == pytest.approx(gap - wrong)
