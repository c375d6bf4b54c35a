# SPDX-License-Identifier: Apache-2.0
"""The report: its schema, its words, and that page, markdown and terminal show what the JSON says."""

import copy
import io
import json
import math
import random
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from hf_unlearn.report import load_report, print_report, validate_report, write_report
from hf_unlearn.report.style import looks
from hf_unlearn.report.verdict import forget_metric, keep_metric, verdicts
from hf_unlearn.report.view import answer_groups


# Pages hold their charts.
pytestmark = pytest.mark.drawn("svg")

N = 32
METHODS = {"GA": "ga", "GradDiff": "ga", "NPO": "npo", "NPO-KLR": "npo"}
# Shares of right or probable answers: forget, paraphrased, retain; probabilities: forget, retain; utility, KS p-value.
PROFILE = {
    "target": (32, 31, 31, 0.953, 0.941, 0.912, 3.1e-13),
    "retrained": (1, 1, 31, 0.118, 0.946, 0.917, None),
    "GA": (0, 0, 1, 0.0004, 0.021, 0.0, 2.4e-17),
    "GradDiff": (0, 0, 24, 0.002, 0.731, 0.634, 6.7e-15),
    "NPO": (1, 2, 14, 0.061, 0.472, 0.493, 0.0021),
    "NPO-KLR": (1, 2, 30, 0.094, 0.927, 0.894, 0.213),
}
PEOPLE = [
    ("In which town was Mira Tolland born?", "Greyhaven"),
    ("What instrument does Oren Vask play?", "the hurdy-gurdy"),
    ("Who taught Selka Brandt to sail?", "her aunt Ilse"),
    ("Which prize did Tomas Idrel win in 1987?", "the Halden Medal for cartography"),
    ("What is the name of Yara Quill's dog?", "Bramble"),
    ("Where did Pell Anders study?", "the Academy of Norrholm"),
    ("What colour is Ivo Marr's boat?", "dark green"),
    ("Which language did Anneke Sorrel learn first?", "Old Vessian"),
    ("What does Dario Finch collect?", "barometers"),
    ("Who is Lena Ostrava's brother?", "Marek Ostrava"),
]


def wilson(k: int, n: int) -> list[float]:
    """95% interval of a share."""
    z, p = 1.959964, k / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return [max(0.0, (middle - half) / (1 + z * z / n)), min(1.0, (middle + half) / (1 + z * z / n))]


def result(value, interval, direction, variant=None, method="clopper-pearson"):
    keys = {"value": value, "n": N, "interval": interval, "direction": direction, "variant": variant, "undefined": 0}
    return keys | {"interval_method": method if interval else None}


def around(value, half):
    return result(value, [max(0.0, value - half), min(1.0, value + half)], "higher", method="bootstrap percentile")


def metrics_of(name: str) -> dict:
    forget, paraphrased, retain, p_forget, p_retain, utility, p_value = PROFILE[name]
    near, lower, none = "closer_to_retrained", "lower", "none"
    metrics = {
        "forget/probability": around(p_forget, 0.8 * math.sqrt(p_forget * (1 - p_forget) / N)) | {"direction": lower},
        "forget/rouge": around((forget + 1) / (N + 2), 0.07) | {"direction": lower, "variant": "ROUGE-L recall"},
        "forget/exact_match": result(forget / N, wilson(forget, N), lower),
        "forget/truth_ratio": around(0.3 + 0.4 * (1 - p_forget), 0.05) | {"direction": near, "variant": "geometric"},
        "forget_paraphrased/exact_match": result(paraphrased / N, wilson(paraphrased, N), lower),
        "retain/probability": around(p_retain, 0.8 * math.sqrt(p_retain * (1 - p_retain) / N)),
        "retain/rouge": around(min(1.0, retain / N + 0.01), 0.06),
        "retain/exact_match": result(retain / N, wilson(retain, N), "higher"),
        "holdout/probability": around(0.11, 0.03) | {"direction": none},
        "general/exact_memorization": around(0.35 + 0.5 * utility, 0.05),
        "model_utility": result(utility, [max(0.0, utility - 0.05), min(1.0, utility + 0.05)], "higher", "geometric"),
    }
    if p_value is not None:
        metrics["forget_quality"] = result(p_value, None, "higher", "KS, truth ratio geometric")
    return metrics


def answers_of(name: str) -> list[dict]:
    source = random.Random(name)
    rows = []
    for index, (question, expected) in enumerate(PEOPLE):
        role = "forget" if index < 6 else "retain"
        forget, _, retain = (share / N for share in PROFILE[name][:3])
        known = source.random() < (forget if role == "forget" else retain)
        wrong = "the the the the the the the" if name == "GA" else source.choice(PEOPLE)[1]
        if name == "GradDiff" and role == "forget":
            wrong = ""
        rows.append({"set": role, "question": question, "expected": expected, "answer": expected if known else wrong})
    return rows


def train_of(name: str) -> dict:
    source = random.Random(name)
    ends = {"GA": (21.0, None), "GradDiff": (14.0, 0.32), "NPO": (3.1, None), "NPO-KLR": (2.6, 0.05)}
    forget_end, retain_end = ends[name]
    curve = []
    for step in range(1, 81, 2):
        done = 1 / (1 + math.exp(-(step - 32) / 9))
        row = {"step": step, "loss": -forget_end * done + source.gauss(0, 0.05)}
        row["forget/loss"] = 0.05 + forget_end * done * (1 + source.gauss(0, 0.04))
        if retain_end is not None:
            row["retain/loss"] = 0.05 + retain_end * done * (1.6 - done) * (1 + source.gauss(0, 0.08))
        curve.append(row)
    return {"seconds": 11.4, "steps": 80, "curve": curve}


def full_report() -> dict:
    kinds = {"target": "target", "retrained": "retrained"}
    models = [
        {
            "name": name,
            "kind": kinds.get(name, "unlearned"),
            "method": METHODS.get(name),
            "path": f"runs/{name}",
            "metrics": metrics_of(name),
            "answers": answers_of(name),
            "train": train_of(name) if name in METHODS else None,
        }
        for name in PROFILE
    ]
    retain_losses = {"GA": "none", "GradDiff": "nll", "NPO": "none", "NPO-KLR": "kl"}
    settings = {
        name: {"method": METHODS[name], "retain_loss": loss, "learning_rate": 2e-4, "beta": 0.1, "max_steps": 80}
        for name, loss in retain_losses.items()
    }
    del settings["GA"]["beta"], settings["GradDiff"]["beta"]
    return {
        "schema_version": 1,
        "title": "Unlearning in a small world",
        "created": "2026-11-21T03:10:00+00:00",
        "command": "hf-unlearn demo --output_dir demo",
        "suite": "world",
        "settings": settings,
        "versions": {"python": "3.12.4", "hf_unlearn": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
        "models": models,
        "notes": [
            "32 questions a set: differences of less than about 15 points are within the intervals.",
            "A model of three layers; what holds here need not hold for a large one.",
        ],
    }


@pytest.fixture
def report() -> dict:
    return full_report()


@pytest.fixture
def small(report) -> dict:
    """The same with fewer models and metrics, since charts take their time."""
    kept = ("forget/exact_match", "retain/exact_match", "model_utility", "forget_quality")
    names = ("target", "retrained", "GA", "NPO-KLR")
    report["models"] = [model for model in report["models"] if model["name"] in names]
    report["settings"] = {name: report["settings"][name] for name in ("GA", "NPO-KLR")}
    for model in report["models"]:
        model["metrics"] = {name: metric for name, metric in model["metrics"].items() if name in kept}
    return report


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the full report is written, once for the tests that only read it."""
    path = tmp_path_factory.mktemp("report") / "new" / "folder"
    write_report(full_report(), path)
    return path


class Page(HTMLParser):
    """Reads the page as a browser would: balance of tags, references, table cells, text."""

    VOID = ("meta", "br", "img", "link", "input", "hr")

    def __init__(self, text: str):
        super().__init__()
        self.open, self.unbalanced, self.references, self.cells, self.words = [], [], [], [], []
        self.feed(text)
        assert self.unbalanced == []
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.references += [value for key, value in attrs.items() if key in ("src", "href", "xlink:href", "srcset")]
        if "data-value" in attrs:
            self.cells.append([attrs["data-metric"], attrs["data-value"], ""])
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append((tag, self.getpos()))

    def handle_data(self, data):
        self.words.append(data)
        if self.cells and "td" in self.open and "span" not in self.open and not self.cells[-1][2]:
            self.cells[-1][2] = data.strip()


def written(report: dict, folder) -> tuple[Page, str]:
    paths = write_report(report, folder)
    return Page(paths["report.html"].read_text(encoding="utf-8")), paths["report.md"].read_text(encoding="utf-8")


def printed(report: dict, width: int = 140) -> str:
    from rich.console import Console

    console = Console(width=width, record=True, file=io.StringIO(), color_system=None)
    print_report(report, console)
    return console.export_text()


def model_named(report: dict, name: str) -> dict:
    return next(model for model in report["models"] if model["name"] == name)


@pytest.mark.drawn
def test_all_files_are_written_and_pictures_show_something(report, tmp_path):
    from matplotlib.image import imread

    paths = write_report(report, tmp_path)
    names = ("forget_vs_utility", "loss_curves", "metrics")
    assert set(paths) == {"report.json", "report.md", "report.html", *(f"plots/{name}.png" for name in names)}
    assert load_report(tmp_path) == report
    for name in names:
        pixels = imread(paths[f"plots/{name}.png"])
        assert min(pixels.shape[:2]) > 600
        assert pixels[..., :3].std() > 0.05
        assert f"](plots/{name}.png)" in paths["report.md"].read_text(encoding="utf-8")


def test_page_needs_nothing_else(folder):
    text = (folder / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.references
    assert [reference for reference in page.references if not reference.startswith("#")] == []
    for reference in ("<script", "@import", "url(http"):
        assert reference not in text
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert {reference[1:] for reference in page.references} <= set(ids)


def test_charts_take_their_colours_from_the_page(folder):
    text = (folder / "report.html").read_text(encoding="utf-8")
    charts = text[text.index("<body>") :]
    assert re.findall(r"(?:fill|stroke): #\w+", charts) == []
    for variable in set(re.findall(r"var\((--[\w-]+)\)", charts)):
        assert text.count(f"{variable}: ") == 2, f"{variable} needs a light and a dark colour"


def test_numbers_in_the_page_are_those_of_the_json(report, folder):
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    expected = {}
    for model in report["models"]:
        for name, metric in model["metrics"].items():
            expected.setdefault(name, []).append(metric["value"])
    found = {}
    for name, stored, shown in page.cells:
        if stored == "None":
            assert shown == "–"
            continue
        found.setdefault(name, []).append(float(stored))
        value = float(stored)
        if shown == "<0.1":
            assert 0 < value < 0.0005
        else:
            percent = name.rsplit("/", 1)[-1] in ("exact_match", "probability", "rouge", "exact_memorization")
            value, rounding = (100 * value, 0.051) if percent else (value, 5e-4)
            assert float(shown) == pytest.approx(value, rel=0.05 if value < 1e-3 else 0, abs=min(rounding, value))
    for name, values in expected.items():
        assert set(found[name]) == set(values)


def test_numbers_in_markdown_and_terminal_are_those_of_the_json(report, folder):
    markdown = (folder / "report.md").read_text(encoding="utf-8")
    row = next(line for line in markdown.splitlines() if line.startswith("| `retain/exact_match` %"))
    low, high = wilson(30, 32)
    assert f"93.8 [{100 * low:.1f}, {100 * high:.1f}]" in row
    assert row.split("|")[-4].strip() == "32"
    terminal = printed(report)
    assert "93.8" in terminal
    assert f"{100 * low:.1f}–{100 * high:.1f}" in terminal
    assert "2.4e-17" in terminal


@pytest.mark.parametrize("width", [60, 80, 140])
def test_terminal_shows_every_model_and_utility_beside_forgetting(report, width):
    text = printed(report, width)
    header = text[: text.index("● target")]
    for name in PROFILE:
        assert re.search(rf"[●★■▲◆▼] {name}\b", text), name
    assert "forget" in header
    assert "utility" in header
    assert "Forgotten like retrained; the rest is kept" in " ".join(text.split())


def test_undefined_is_a_dash_and_never_zero(report, tmp_path):
    broken = model_named(report, "NPO")["metrics"]
    for name in broken:
        broken[name] |= {"value": None, "interval": None, "n": 0, "undefined": N}
    page, markdown = written(report, tmp_path)
    for name in broken:
        shown = [text for metric, stored, text in page.cells if metric == name and stored == "None"]
        assert set(shown) == {"–"}
    assert "Undefined, so not shown: NPO." in "".join(page.words)
    row = next(line for line in markdown.splitlines() if line.startswith("| ◆ NPO | –"))
    assert "0" not in row.replace("NPO", "")
    line = next(line for line in printed(report).splitlines() if "◆ NPO" in line)
    assert line.split() == ["◆", "NPO", *["–"] * 8]
    assert next(v for v in verdicts(report) if v.model == "NPO").tone == "unknown"


def test_answers_are_escaped(small, tmp_path):
    report = small
    evil = "<script>alert(1)</script> | **x** <img src=http://example.org/a.png> & co"
    for model in report["models"]:
        model["answers"][0]["answer"] = evil
    report["title"] = "<b>title</b>"
    report["notes"].append("<i>note</i>")
    report["settings"]["GA"]["retain_loss"] = "</table>"
    page, markdown = written(report, tmp_path)
    assert [r for r in page.references if "example" in r] == []
    assert "script" not in page.open
    text = "".join(page.words)
    for shown in (evil, "<b>title</b>", "<i>note</i>", "</table>"):
        assert shown in text
    for tag in ("<script>", "<img", "<b>"):
        assert tag not in markdown
    rows = [line for line in markdown.splitlines() if "alert(1)" in line]
    assert len(rows) == 1
    assert len(re.findall(r"(?<!\\)\|", rows[0])) == len(report["models"]) + 3


def test_empty_and_long_answers(small, tmp_path):
    report = small
    long = "word " * 400
    model_named(report, "GA")["answers"][0]["answer"] = long
    model_named(report, "GA")["answers"][1]["answer"] = " \n "
    page, markdown = written(report, tmp_path)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "(empty)" in text
    assert "(empty)" in markdown
    assert re.search(r"<details><summary>(word ){47,48}", text)
    assert long.strip() in "".join(page.words)
    assert max(map(len, (line for line in markdown.splitlines() if "word word" in line))) < 1000


def test_matching_answers_are_marked_as_exact_match_counts_them(report):
    groups = answer_groups(report)
    first = groups["forget"][0]
    assert first["answers"]["target"].matches
    assert not first["answers"]["GA"].matches
    model_named(report, "GA")["answers"][0]["answer"] = "  GREYHAVEN\n"
    assert answer_groups(report)["forget"][0]["answers"]["GA"].matches
    model_named(report, "GA")["answers"][0] |= {"answer": "", "expected": ""}
    assert not answer_groups(report)["forget"][0]["answers"]["GA"].matches


def test_verdicts_of_the_fixture(report):
    found = {verdict.model: verdict for verdict in verdicts(report)}
    assert list(found) == list(METHODS)
    assert found["NPO-KLR"].headline == "Forgotten like retrained; the rest is kept"
    assert found["NPO-KLR"].tone == "good"
    assert found["GA"].headline == "Over-forgotten: worse than a model that never knew; most of the rest is lost"
    assert found["GA"].tone == "bad"
    assert not any(finding.tone == "good" for finding in found["GA"].findings), "a broken model must not look good"
    assert found["GradDiff"].headline == "Over-forgotten: worse than a model that never knew; some of the rest is lost"
    assert ("target", "100.0 % [89.3, 100.0]") in found["GA"].forgot.against


@pytest.mark.parametrize(
    ("right", "status"), [(0, "yes"), (3, "yes"), (11, "partly"), (16, "partly"), (31, "no"), (32, "no")]
)
def test_forgetting_is_judged_against_retrained_and_target(report, right, status):
    model = model_named(report, "NPO-KLR")["metrics"]["forget/exact_match"]
    model |= {"value": right / N, "interval": wilson(right, N)}
    assert next(v for v in verdicts(report) if v.model == "NPO-KLR").forgot.status == status


def test_below_the_retrained_model_is_not_plain_success(report):
    model_named(report, "retrained")["metrics"]["forget/exact_match"] |= {"value": 0.5, "interval": wilson(16, N)}
    verdict = next(v for v in verdicts(report) if v.model == "NPO-KLR")
    assert verdict.forgot.status == "over"
    assert verdict.tone == "mixed"


def test_paraphrases_that_recover_the_fact_spoil_the_headline(report):
    metric = model_named(report, "NPO-KLR")["metrics"]["forget_paraphrased/exact_match"]
    metric |= {"value": 28 / N, "interval": wilson(28, N)}
    verdict = next(v for v in verdicts(report) if v.model == "NPO-KLR")
    assert verdict.headline == "Forgotten in part: up to 90 % is left (exact match); the rest is kept"


def test_a_sample_that_cannot_tell_says_so(report):
    for model in report["models"]:
        model["metrics"] = {
            name: metric | {"interval": [0.0, 1.0] if metric["interval"] else None}
            for name, metric in model["metrics"].items()
        }
    assert {verdict.forgot.status for verdict in verdicts(report)} == {"unresolved"}
    assert "good" not in {verdict.tone for verdict in verdicts(report)}


def test_the_metric_on_which_target_and_retrained_differ_is_used(report):
    for model in report["models"]:
        for name in ("forget/exact_match", "retain/exact_match"):
            model["metrics"][name] |= {"value": 0.0, "interval": wilson(0, N)}
    assert forget_metric(report) == "forget/probability"
    assert keep_metric(report) == "retain/probability"
    assert next(v for v in verdicts(report) if v.model == "NPO-KLR").forgot.metric == "answer probability"


def without(report: dict, part: str) -> dict:
    report = copy.deepcopy(report)
    if part == "retrained":
        report["models"] = [model for model in report["models"] if model["kind"] != "retrained"]
        for model in report["models"]:
            model["metrics"].pop("forget_quality")
    elif part == "all but one model":
        report["models"] = report["models"][:1]
        report["settings"] = {"model": "path", "seed": 0}
    elif part == "metrics":
        for model in report["models"]:
            model["metrics"] = {}
    elif part == "intervals":
        for model in report["models"]:
            for metric in model["metrics"].values():
                metric["interval"] = None
    elif part == "command, notes and settings":
        del report["command"], report["notes"]
        report["settings"] = {}
    else:
        for model in report["models"]:
            del model[part]
    return report


PARTS = ["retrained", "all but one model", "metrics", "intervals", "command, notes and settings", "answers", "train"]


@pytest.mark.parametrize("part", PARTS)
def test_optional_parts_may_be_missing(small, tmp_path, part):
    report = without(small, part)
    page, markdown = written(report, tmp_path)
    text = "".join(page.words) + markdown + printed(report)
    for model in report["models"]:
        assert text.count(model["name"]) >= 3
    assert ("before and after" in text) == (part != "answers")
    assert (tmp_path / "plots" / "loss_curves.png").exists() == (part not in ("train", "all but one model"))
    assert (tmp_path / "plots" / "metrics.png").exists() == (part != "metrics")
    if part == "retrained":
        assert verdicts(report)[-1].forgot.status == "lower"
        assert "no retrained model" in text
    if part in ("intervals", "metrics"):
        assert {verdict.forgot.status for verdict in verdicts(report)} == {"unresolved"}


def test_many_models_and_awkward_names(small, tmp_path):
    report = small
    template = model_named(report, "NPO-KLR")
    names = [f"unlearning/of_a$very$long-model-name/with-method-{index:02}" for index in range(8)]
    report["models"] += [{**copy.deepcopy(template), "name": name} for name in names]
    page, _ = written(report, tmp_path)
    text = "".join(page.words)
    for name in names:
        assert name in text
    styles = looks(report)
    assert len({(look.ink, look.marker) for look in styles.values()}) == len(report["models"])


def test_diverged_losses_become_null(small, tmp_path):
    curve = model_named(small, "GA")["train"]["curve"]
    curve[-1]["forget/loss"] = math.inf
    curve[-2]["forget/loss"] = math.nan
    model_named(small, "GA")["metrics"]["forget/exact_match"]["value"] = math.nan
    written(small, tmp_path)
    stored = model_named(load_report(tmp_path / "report.json"), "GA")
    assert stored["train"]["curve"][-1]["forget/loss"] is None
    assert stored["metrics"]["forget/exact_match"]["value"] is None


def changed(report: dict, *path, value) -> dict:
    report = copy.deepcopy(report)
    holder = report
    for step in path[:-1]:
        holder = holder[step]
    if value is None:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value
    return report


METRIC = ("models", 2, "metrics", "forget/rouge")
BAD = [
    (("schema_version",), None, "schema_version` is missing"),
    (("schema_version",), 2, "schema_version=2.*reads 1"),
    (("title",), None, "`title` is missing"),
    (("models",), [], "`models` is empty"),
    (("models",), {"GA": {}}, "`models` is dict, needs list"),
    (("models", 1, "name"), "target", "repeated: target"),
    (("models", 1, "kind"), "gold", "retrained.*kind='gold'.*target, retrained, unlearned"),
    (("models", 1, "metrics"), None, "`metrics` is missing"),
    ((*METRIC, "n"), None, "GA.*forget/rouge: missing n"),
    ((*METRIC, "value"), "0.3", "value='0.3'"),
    ((*METRIC, "interval"), [0.1], r"interval=\[0.1\]"),
    ((*METRIC, "direction"), "up", "direction='up'"),
    (("models", 2, "answers", 3, "expected"), None, r"answers\[3\] is missing expected"),
]


@pytest.mark.parametrize(("path", "value", "message"), BAD)
def test_a_report_that_does_not_fit_is_one_clear_error(report, tmp_path, path, value, message):
    bad = changed(report, *path, value=value)
    for use in (validate_report, printed, lambda report: write_report(report, tmp_path / "out")):
        with pytest.raises(ValueError, match=message):
            use(bad)
    assert not (tmp_path / "out").exists()
    (tmp_path / "report.json").write_text(json.dumps(bad))
    with pytest.raises(ValueError, match=message):
        load_report(tmp_path)


def test_loading_what_is_no_report(tmp_path):
    with pytest.raises(ValueError, match="No report at .*report.json"):
        load_report(tmp_path)
    (tmp_path / "report.json").write_text("{")
    with pytest.raises(ValueError, match="is no JSON"):
        load_report(tmp_path)
    (tmp_path / "report.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="is no JSON"):
        load_report(tmp_path)
    (tmp_path / "report.json").write_text("[]")
    with pytest.raises(ValueError, match="a JSON object, got list"):
        load_report(tmp_path)


def test_import_is_light():
    heavy = ("torch", "transformers", "matplotlib", "jinja2", "rich")
    code = f"import sys, hf_unlearn.report; print([name for name in {heavy} if name in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize(("found", "headline", "tone"), [
    (0.9, "Answers like retrained, but attacks find the forget rows; the rest is kept", "mixed"),
    (0.12, "Forgotten like retrained; the rest is kept", "good"),
])  # fmt: skip
def test_attacks_that_find_the_rows_are_in_the_headline(report, found, headline, tone):
    def attacked(value):
        details = {
            "status": "resolved",
            "attack": "loss",
            "achieved_fpr": 0.1,
            "chance": 0.1,
            "chance_range": [0, 0.2],
        }
        rate = {"value": value, "interval": [value - 0.1, value + 0.05], "details": {**details, "p_chance": 0.5}}
        return {"settings": {"fprs": [0.1]}, "metrics": {"worst/tpr@1e-1": rate}}

    for model in report["models"]:
        if model["name"] == "NPO-KLR":
            model["privacy"] = attacked(found)
        elif model["kind"] == "retrained":
            model["privacy"] = attacked(0.1)
    verdict = next(v for v in verdicts(report) if v.model == "NPO-KLR")
    assert (verdict.headline, verdict.tone) == (headline, tone)


@pytest.mark.parametrize(("value", "shown"), [(1.2e-27, "0.000"), (-3e-18, "0.000"), (0.25, "0.250")])
def test_what_remains_is_0_where_rounding_alone_is_left(value, shown):
    from hf_unlearn.report.naming import format_metric, format_number

    assert format_number("relearn/worst/remaining", value) == format_number("worst/remaining", value) == shown
    metric = {"value": value, "interval": [value, 1.0]}
    assert format_metric("worst/remaining", metric) == f"{shown} [{shown}, 1.000]"
    # A p-value so small says something.
    assert format_number("forget_quality", 1.2e-27) == "1.2e-27"
