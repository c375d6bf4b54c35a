# SPDX-License-Identifier: Apache-2.0
"""What the site takes from the code; `make docs` builds it and checks its links."""

import dataclasses
import functools
import importlib
import importlib.util
import inspect
import re
import shlex

import pytest
import yaml
from conftest import ROOT

from hf_unlearn import METHODS, UnlearnConfig
from hf_unlearn.methods.families import FAMILIES, LIMITS, SETTINGS
from hf_unlearn.runs.methods_table import traits_of


DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def tables():
    spec = importlib.util.spec_from_file_location("docs_tables", DOCS / "site" / "tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclasses.dataclass
class Base:
    kept: int = 1
    changed: float = 0.1
    listed: list[int] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Derived(Base):
    changed: float = 0.2
    new: str | None = dataclasses.field(default=None, metadata={"help": "Of 100 %% `a|b`\nor none."})


def test_a_table_holds_what_differs_from_the_base_and_its_help(tables):
    fields = tables.own_fields(Derived, Base)
    assert [field.name for field in fields] == ["changed", "new"]
    assert tables.arguments_table(fields).splitlines()[2:] == [
        "| `changed` | `float` | `0.2` |  |",
        "| `new` | `str` | `None` | Of 100 % `a\\|b` or none. |",
    ]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_page_and_a_recipe_and_its_arguments_say_what_they_are(tables, name):
    page = (DOCS / "methods" / f"{name}.md").read_text(encoding="utf-8")
    assert page.startswith("# ")
    assert "$$" in page
    assert "\n## When to use\n" in page
    assert "\n## Published numbers\n" in page
    assert f"method: {name}\n" in tables.method_recipes(name)
    assert all(field.metadata.get("help") for field in tables.own_fields(METHODS[name][0], UnlearnConfig))


def test_the_page_of_all_methods_is_what_the_classes_and_pages_say(tables):
    assert (DOCS / "methods.md").read_text(encoding="utf-8") == tables.methods_page(), (
        "docs/methods.md is stale: `python docs/site/tables.py` writes it anew, from the classes, docs/methods/*.md "
        "and hf_unlearn/bench/measured.json."
    )


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_of_one_family(name):
    found = [family for family, (_, names) in FAMILIES.items() if name in names]
    assert len(found) == 1, f"{name} is of {found or 'no family'}: list it once, in hf_unlearn/methods/families.py."
    # Its table line is read from the class; what a config requires of its own stands in SETTINGS there.
    assert traits_of(name).family == found[0]


def test_no_family_and_no_limit_is_of_a_method_that_is_gone():
    named = {name for _, names in FAMILIES.values() for name in names}
    assert named | {*LIMITS} | {*SETTINGS} == {*METHODS}


def test_the_command_line_page_has_every_command_and_audit(tables):
    page = tables.commands_page()
    for heading in (
        "## `hf-unlearn run`",
        "## `hf-unlearn gates`",
        "### `hf-unlearn audit privacy`",
        "audit robustness`",
        "audit meta`",
    ):
        assert heading in page
    assert "--fprs" in page
    assert "Exit status: 0" in page


def walk() -> list[tuple[str, str]]:
    """`(file, name)` of each stop in CONTRIBUTING.md's walk."""
    text = (DOCS.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return re.findall(r"^\| \d+ \| `([\w/]+\.py)`: `([\w.]+)`", text, re.MULTILINE)


def test_the_walk_has_at_most_ten_stops_and_each_is_there():
    stops = walk()
    assert 5 <= len(stops) <= 10
    for file, name in stops:
        # Not a name that a module had before.
        assert (DOCS.parent / "hf_unlearn" / file).is_file()
        module = importlib.import_module("hf_unlearn." + file.removesuffix(".py").replace("/", "."))
        found = functools.reduce(getattr, name.split("."), module) if hasattr(module, name.split(".")[0]) else None
        # A method may be named without its class.
        assert found or any(name in vars(value) for value in vars(module).values() if inspect.isclass(value)), name


def run_lines() -> list[str]:
    """Every `hf-unlearn run recipes/...` of the documents, without its comment."""
    found = set()
    for page in [DOCS.parent / "README.md", *DOCS.rglob("*.md")]:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        found |= {
            " ".join(line.split("#")[0].split())
            for line in re.findall(r"^ *hf-unlearn run (recipes/.*)", text, re.MULTILINE)
        }
    return sorted(line.split(" && ")[0] for line in found)


@pytest.mark.parametrize("line", run_lines())
def test_a_documented_run_is_one_that_the_parser_takes(line, tmp_path, monkeypatch):
    from hf_unlearn.cli.run import recipe_path
    from hf_unlearn.runs.launch import take_launch_options, take_option
    from hf_unlearn.runs.recipe import parse_recipe
    from hf_unlearn.sweep.requests import read_requests

    monkeypatch.chdir(tmp_path)
    for name in ("forget", "retain"):
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    recipe, *rest = shlex.split(line)
    argv = ["--config", recipe_path(recipe), *rest]
    take_launch_options(argv)
    requests = take_option(argv, "requests")
    take_option(argv, "requests_from")
    assert requests is None or read_requests(recipe_path(requests))
    assert parse_recipe(argv).run.method


def test_the_thresholds_of_the_page_on_pipelines_are_gates():
    from hf_unlearn.report.gates.spec import read_gates

    text = (DOCS / "howto" / "ci.md").read_text(encoding="utf-8")
    (gates,) = re.findall(r"```yaml\n# gates\.yaml\n(.*?)```", text, re.DOTALL)
    assert [gate.name for gate in read_gates(yaml.safe_load(gates))] == ["forgotten", "useful", "not_found"]
