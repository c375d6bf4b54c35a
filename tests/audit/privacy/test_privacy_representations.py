# SPDX-License-Identifier: Apache-2.0
"""The picture of representations: who is in it, where, and how it is drawn."""

import json

import numpy as np
import pytest
from conftest import make_model, make_tokenizer
from test_privacy_attacks import Pixels
from test_privacy_fitted import Known, drawn, known

from hf_unlearn.audit.privacy import Classifier, FittedAttack, Privacy, as_subject, evaluate_privacy
from hf_unlearn.audit.privacy import representations as module
from hf_unlearn.audit.privacy.fitted import regression, representation
from hf_unlearn.audit.privacy.representations import principal_components
from hf_unlearn.audit.privacy.view import VIEW
from hf_unlearn.report.privacy import figures as privacy_figures
from hf_unlearn.report.privacy.figures import MEMBER, NONMEMBER, representations_figure
from hf_unlearn.report.privacy.write import load_privacy_report, write_privacy_report
from hf_unlearn.report.style import MUTED
from hf_unlearn.sweep import collect


class Blank(Known):
    """Represents all rows alike."""

    def _states(self, data):
        return np.full((len(data), 6), 0.1)


def evaluated(attacks=("probe",), sets=None, retain=True, subject=Known, **options):
    forget, others, kept = map(known, sets or (drawn(30, 6, 0, 2.0), drawn(40, 6, 1), drawn(20, 6, 2)))
    model = subject(Pixels(), progress=False)
    return evaluate_privacy(
        model,
        forget,
        retain=kept if retain else None,
        nonmember_data=others,
        attacks=list(attacks),
        fprs=[0.2],
        **options,
    )


def sizes(found):
    return {name: len(points) for name, points in found["points"].items()}


def slow(sets):
    """Of the singular values and vectors of the standardised rows, which the subject holds in float32."""
    x = np.concatenate(sets).astype(np.float32).astype(np.float64)
    z = (x - x.mean(0)) / x.std(0)
    values, vectors = np.linalg.svd(z)[1:]
    return z @ vectors[:2].T, (values**2 / (values**2).sum())[:2]


def test_points_and_shares_are_those_of_a_singular_value_decomposition():
    sets = drawn(30, 6, 0, 2.0), 3 * drawn(40, 6, 1), drawn(20, 6, 2)
    found = evaluated(sets=sets).representations
    assert sizes(found) == {"forget": 30, "nonmember": 40, "retain": 20}
    points, shares = np.concatenate(list(found["points"].values())), found["variance_shares"]
    expected, expected_shares = slow(sets)
    expected *= np.sign((expected * points).sum(0))
    np.testing.assert_allclose(points, expected, rtol=5.1e-4, atol=1e-9)
    np.testing.assert_allclose(shares, expected_shares, rtol=5.1e-4)
    assert all(float(f"{value:.4g}") == value for value in [*points.ravel(), *shares])


def test_rows_are_drawn_by_the_seed_and_at_most_so_many(monkeypatch):
    monkeypatch.setattr(module, "MOST_ROWS", 12)
    first, same, other = (evaluated(seed=seed).representations for seed in (0, 0, 1))
    assert first == same
    assert (first["most_rows"], first["seed"], other["seed"]) == (12, 0, 1)
    assert sizes(first) == {"forget": 12, "nonmember": 12, "retain": 12}
    assert first["points"] != other["points"]
    # The rows are their own representation, so points say who was drawn: that is no matter of the attacks.
    assert evaluated(["loss", "knn"]).representations == first
    assert len({tuple(point) for points in first["points"].values() for point in points}) == 36


@pytest.mark.parametrize("attack", ["probe", "knn", "centroid"])
def test_it_is_there_where_an_attack_reads_representations(attack):
    found = evaluated(["loss", attack], retain=False)
    assert list(found.representations["points"]) == ["forget", "nonmember"]
    assert found.to_dict()["representations"] == found.representations
    assert Privacy.from_dict(json.loads(json.dumps(found.to_dict()))).representations == found.representations


def test_it_is_absent_where_none_does():
    class Opaque(Classifier):
        def _states(self, data):
            pytest.fail("nobody asked for representations")

    forget, retain, others = (known(drawn(n, 6, seed)) for seed, n in enumerate((20, 20, 40)))
    sets = {"retain": retain, "nonmember_data": others, "fprs": [0.2]}
    attacks = ["loss", "scrub", "features", "neural"]
    found = evaluate_privacy(Opaque(Pixels(), progress=False), forget, attacks=attacks, **sets)
    assert found.representations is None
    assert "representations" not in found.to_dict()
    assert Privacy.from_dict(found.to_dict()).representations is None
    own = FittedAttack("own", representation, regression)
    assert evaluated([own]).representations is not None


def test_of_forget_rows_and_nonmembers_no_pass_is_added(monkeypatch):
    monkeypatch.setattr(module, "MOST_ROWS", 12)
    rows = [{"text": f"secret {i:02d} of Ada"} for i in range(60)]
    model, seen = make_model(), []
    model.register_forward_hook(lambda _, inputs, kwargs, __: seen.append(len(kwargs["input_ids"])), with_kwargs=True)
    options = {"processing_class": make_tokenizer(), "progress": False, "fprs": [0.2], "attacks": ["probe", "knn"]}
    found = evaluate_privacy(model, rows[:20], nonmember_data=rows[20:40], **options)
    assert sum(seen) == 40
    seen.clear()
    same = evaluate_privacy(model, rows[:20], retain=rows[40:], nonmember_data=rows[20:40], **options)
    assert sum(seen) == 40 + 12
    assert set(same.representations["points"]) - set(found.representations["points"]) == {"retain"}


def test_rows_with_pictures_are_drawn_as_well(monkeypatch):
    from datasets import Dataset
    from vilt import make_processor, make_rows, make_vilt

    monkeypatch.setattr(module, "MOST_ROWS", 12)
    rows = Dataset.from_list(make_rows(55))
    sets = {"retain": rows.select(range(40, 55)), "nonmember_data": rows.select(range(20, 40)), "fprs": [0.2]}
    subject = as_subject(make_vilt().eval(), processing_class=make_processor(), progress=False)
    found = evaluate_privacy(subject, rows.select(range(20)), attacks=["centroid"], **sets).representations
    assert sizes(found) == {"forget": 12, "nonmember": 12, "retain": 12}


def test_rows_without_a_representation_are_left_out():
    sets = {"forget": drawn(9, 4, 0), "nonmember": drawn(8, 4, 1)}
    whole = principal_components({**sets, "forget": np.delete(sets["forget"], [2, 5], 0)})
    sets["forget"][2, 1], sets["forget"][5, 0] = np.nan, np.inf
    assert principal_components(sets) == whole
    assert len(whole[0]["forget"]) == 7


@pytest.mark.parametrize("kind", ["equal", "rounded", "undefined", "one", "huge"])
def test_what_does_not_vary_has_no_picture(kind):
    alike = np.full((30, 6), 0.1)
    sets = {
        "equal": alike,
        "rounded": alike * (1 + 1e-7 * drawn(30, 6, 0)),
        "undefined": np.full((30, 6), np.nan),
        "one": np.c_[drawn(30, 1, 0), alike],
        "huge": 1e300 * drawn(30, 6, 0),
    }
    assert principal_components({"forget": sets[kind][:10], "nonmember": sets[kind][10:]}) == (None, None)


# Reports


def report_of(*results, name="m"):
    models = [
        {"name": f"{name}{i}", "kind": "attacked", "path": f"{name}{i}", **found.to_dict()}
        for i, found in enumerate(results)
    ]
    about = {"schema_version": 1, "title": "T", "created": "", "command": None, "versions": {}, "notes": ["N"]}
    return {**about, "models": models}


@pytest.fixture(scope="module")
def results():
    """With all sets, without retain rows, of rows represented alike, and without such an attack."""
    attacks = ["loss", "knn"]
    blank = evaluated(attacks, subject=Blank)
    return evaluated(attacks), evaluated(attacks, retain=False), blank, evaluated(["loss"])


def panels(figure):
    return [ax.get_title(loc="left") for ax in figure.axes]


def test_the_figure_has_a_panel_a_model_in_the_colours_of_the_sets(results):
    from matplotlib.colors import to_rgb

    figure = representations_figure(report_of(*results))
    assert panels(figure) == ["m0 (attacked)", "m1 (attacked)"]
    inks = {"forget rows": MEMBER, "non-members": NONMEMBER, "retain rows": MUTED}
    for ax, found in zip(figure.axes, results[:2], strict=True):
        told = found.representations
        sets = {name: told["points"].get(key) for key, name, *_ in privacy_figures.SETS if key in told["points"]}
        assert {mark.get_label(): mark.get_offsets().tolist() for mark in ax.collections} == sets
        for mark in ax.collections:
            assert tuple(mark.get_facecolor()[0][:3]) == to_rgb(inks[mark.get_label()].light)
        shares = [f"{100 * share:.3g} % of the variance" for share in told["variance_shares"]]
        assert shares[0] in ax.get_xlabel()
        assert shares[1] in ax.get_ylabel()
    assert {text.get_text() for text in figure.legends[0].get_texts()} == set(inks)


@pytest.mark.drawn
def test_a_report_draws_links_and_tells_it(results, tmp_path):
    report = report_of(*results)
    files = write_privacy_report(report, tmp_path)
    assert (tmp_path / "plots" / "privacy_representations.png").stat().st_size > 10_000
    assert (tmp_path / "plots" / "privacy_representations.pdf").read_bytes().startswith(b"%PDF")
    text = files["privacy.md"].read_text()
    assert "![privacy_representations](plots/privacy_representations.png)" in text
    assert text.count("There is no picture of its representations: fewer than two of their features vary.") == 1
    share = 100 * sum(results[0].representations["variance_shares"])
    assert f"The picture of its representations has {share:.3g} % of their variance, and 500 rows a set" in text
    assert load_privacy_report(tmp_path) == json.loads(json.dumps(report))
    # What is merged from several runs is drawn as well.
    merged = VIEW.merge([load_privacy_report(tmp_path), report_of(results[0], name="other")], "T")
    assert panels(representations_figure(merged)) == ["m0 (attacked)", "m1 (attacked)", "other0 (attacked)"]


@pytest.mark.parametrize("which", [2, 3])
def test_without_points_there_is_no_figure(results, tmp_path, which):
    files = write_privacy_report(report_of(results[which]), tmp_path)
    assert {path.stem for path in (tmp_path / "plots").iterdir()} == {"privacy_roc", "privacy_tpr", "privacy_scores"}
    assert "plots/privacy_representations.png" not in files


def test_a_report_of_before_loads_and_draws_beside_a_new_one(results, tmp_path):
    before = report_of(results[0], name="before")
    del before["models"][0]["representations"]
    files = write_privacy_report(before, tmp_path)
    assert files["plots/privacy_roc.png"].is_file()
    assert "picture" not in files["privacy.md"].read_text()
    loaded = load_privacy_report(tmp_path)
    assert Privacy.from_dict(loaded["models"][0]).representations is None
    merged = VIEW.merge([loaded, report_of(results[0])], "T")
    assert panels(representations_figure(merged)) == ["m0 (attacked)"]


def test_what_a_page_has_no_room_for_is_named(results, monkeypatch):
    monkeypatch.setattr(privacy_figures, "MOST_PANELS", 3)
    figure = representations_figure(report_of(*[results[0]] * 5))
    assert panels(figure) == [f"m{i} (attacked)" for i in range(3)]
    assert "No room for m3, m4: see `privacy.json`." in " ".join(figure.get_supxlabel().split())


def test_a_sweep_keeps_none_of_the_points(results, tmp_path):
    write_privacy_report(report_of(*results[:2]), collect.privacy_folder(tmp_path))
    found = collect._privacy({"privacy": {}}, tmp_path)
    assert list(found) == ["target", "unlearned"]
    assert all(model["scores"] and "representations" not in model for model in found.values())
