# SPDX-License-Identifier: Apache-2.0
"""The package as it is installed: quick to import, whole in a wheel, and built as its rules say."""

import ast
import os
import shutil
import subprocess
import sys
import time
import zipfile
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
from conftest import ROOT

import hf_unlearn
from hf_unlearn.moved import MOVED


PACKAGE = ROOT / "hf_unlearn"
HEAVY = (
    "torch",
    "transformers",
    "datasets",
    "trl",
    "peft",
    "accelerate",
    "evaluate",
    "sklearn",
    "scipy",
    "matplotlib",
)
MODULES = sorted(PACKAGE.rglob("*.py"))


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def python(code: str, *argv: str, **kwargs) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", code, *argv], env=environment, capture_output=True, check=True, text=True, **kwargs
    )


@pytest.mark.parametrize(
    "code",
    [
        "import hf_unlearn",
        "import hf_unlearn; dir(hf_unlearn); hf_unlearn.__version__; list(hf_unlearn.METHODS)",
        "import hf_unlearn.audit, hf_unlearn.data, hf_unlearn.report, hf_unlearn.methods",
        "from hf_unlearn.cli.main import main; main(['--help'])",
        "from hf_unlearn.cli.main import main; main(['nonsense'])",
    ],
)
def test_light_things_answer_without_heavy_imports(code):
    report = f"{code}; import sys; print(sorted(set(sys.modules) & {set(HEAVY)!r}))"
    assert python(report).stdout.splitlines()[-1] == "[]"


def test_help_answers_in_under_a_second():
    def seconds() -> float:
        start = time.perf_counter()
        python("from hf_unlearn.cli.main import main; main(['--help'])")
        return time.perf_counter() - start

    # The quickest of several: other processes share the machine.
    assert min(seconds() for _ in range(3)) < 1


def test_public_names_are_there():
    assert {"GATrainer", "GAConfig", "NPOTrainer", "NPOConfig", "UnlearnTrainer", "UnlearnConfig", "METHODS"} <= set(
        hf_unlearn.__all__
    )
    for name in hf_unlearn.__all__:
        assert getattr(hf_unlearn, name) is not None
        assert name in dir(hf_unlearn)
    with pytest.raises(AttributeError, match="no attribute 'NPOTrainr'"):
        _ = hf_unlearn.NPOTrainr


@pytest.mark.parametrize(
    "name",
    ["audit", "audit.backdoor", "audit.privacy", "audit.scan", "fused", "report", "data.worlds.people", "data.vqa"],
)
def test_public_names_of_subpackages_are_there(name):
    module = __import__(f"hf_unlearn.{name}", fromlist=["__all__"])
    missing = [public for public in module.__all__ if not hasattr(module, public)]
    assert not missing


def test_every_method_names_its_config_and_describes_itself():
    for name, (config, trainer) in hf_unlearn.METHODS.items():
        assert trainer.config_class is config
        assert trainer.method == name
        assert hf_unlearn.METHODS.describe(name)
    with pytest.raises(KeyError, match="Did you mean 'npo'"):
        _ = hf_unlearn.METHODS["npoo"]


def test_every_file_carries_its_licence():
    files = [*MODULES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "scripts").glob("*.py"), ROOT / "setup.py"]
    assert len(files) > 80
    bare = [path for path in files if not path.read_text().startswith("# SPDX-License-Identifier: Apache-2.0\n")]
    assert not bare


def test_files_and_functions_stay_readable():
    long_files = {path.name: n for path in MODULES if (n := len(path.read_text().splitlines())) > 400}
    assert not long_files
    functions = (
        (path.name, node)
        for path in MODULES
        for node in ast.walk(tree_of(path))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    )
    # Without the docstring.
    long_functions = {
        f"{name}:{node.name}": n
        for name, node in functions
        if (n := node.end_lineno - node.body[0].end_lineno + 1) > 65
    }
    assert not long_functions


def imports_of(path: Path) -> set[str]:
    """Modules of this package that a file names in imports, at any depth, as `hf_unlearn.x.y`."""
    package = ".".join(path.relative_to(ROOT).with_suffix("").parts[:-1])
    found = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level > 1 else package
            module = ".".join(filter(None, (base if node.level else "", node.module)))
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.startswith("hf_unlearn")}


LAYERS = {
    "losses": tuple(f"hf_unlearn.{path.stem}" for path in PACKAGE.iterdir() if path.stem != "losses"),
    "audit": tuple(f"hf_unlearn.{name}" for name in ("training", "methods", "cli", "runs", "reference")),
    "report": tuple(f"hf_unlearn.{name}" for name in ("training", "methods", "cli", "runs", "audit")),
    "data": tuple(f"hf_unlearn.{name}" for name in ("training", "cli", "runs", "audit", "report")),
    "training/trainer.py": ("hf_unlearn.cli", "hf_unlearn.audit", "hf_unlearn.report"),
    "methods": ("hf_unlearn.cli", "hf_unlearn.audit", "hf_unlearn.report"),
}


@pytest.mark.parametrize("part", LAYERS)
def test_a_stage_knows_only_what_is_to_its_left(part):
    path = PACKAGE / part
    files = [path] if path.is_file() else sorted(path.rglob("*.py"))
    assert files
    found = {(file.name, name) for file in files for name in imports_of(file) if name.startswith(LAYERS[part])}
    # The synthetic world trains its own models, with the plain Trainer.
    assert not found


def test_only_the_views_of_audits_know_the_report():
    knows = {
        path.name
        for path in (PACKAGE / "audit").rglob("*.py")
        if any(name.startswith("hf_unlearn.report") for name in imports_of(path))
    }
    assert knows == {"view.py"}


def test_recipes_and_accelerate_configs_are_those_at_the_top():
    for name in ("recipes", "accelerate_configs"):
        assert (PACKAGE / name).resolve() == ROOT / name


def test_a_wheel_holds_everything_that_is_read_at_run_time(tmp_path):
    pytest.importorskip("setuptools", minversion="77")
    # From a copy, so that nothing is left in the repository.
    copy, target = tmp_path / "copy", tmp_path / "site"
    copy.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in ("hf_unlearn", "recipes", "accelerate_configs"):
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "--no-build-isolation",
            "-w",
            str(tmp_path),
            ".",
        ],
        cwd=copy,
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    # The copy follows links where the repository has them.
    read = {path.relative_to(ROOT) for path in followed(PACKAGE)}
    assert {path.suffix for path in read} >= {".py", ".yaml", ".md", ".typed"}
    assert not {path for path in read if not (target / path).is_file()}
    assert {path.name for path in target.iterdir()} <= {"hf_unlearn", *(p.name for p in target.glob("*.dist-info"))}

    # Away from the repository, a shipped recipe and config are found by name.
    code = (
        "import hf_unlearn, hf_unlearn.cli.run as run, hf_unlearn.runs.launch as launch;"
        "print(hf_unlearn.__file__, run.recipe_path('recipes/tofu/llama-2-7b/npo.yaml'), launch.config_path('zero3'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(target)},
        capture_output=True,
        check=True,
        text=True,
    )
    for line in done.stdout.split():
        assert Path(line).is_file()
        assert Path(line).is_relative_to(target)


def followed(folder: Path) -> list[Path]:
    """All files below a folder, also those behind links; no caches."""
    files = [Path(root) / name for root, _, names in os.walk(folder, followlinks=True) for name in names]
    return [path for path in files if not any(part.startswith((".", "__pycache__")) for part in path.parts)]


def test_parts_know_only_what_stands_below_them():
    """The contracts of pyproject.toml: no arrow upwards, no circle."""
    # In a process of its own: the linter switches off every logger that it finds.
    python(
        "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(sys.argv[1], no_cache=True))",
        str(ROOT / "pyproject.toml"),
    )


@pytest.mark.parametrize("old", sorted(MOVED))
def test_a_module_that_moved_is_found_under_its_former_name_with_a_warning(old, monkeypatch):
    monkeypatch.delitem(sys.modules, f"hf_unlearn.{old}", raising=False)
    with pytest.warns(DeprecationWarning, match=f"is hf_unlearn.{MOVED[old]} now"):
        found = import_module(f"hf_unlearn.{old}")
    assert found is import_module(f"hf_unlearn.{MOVED[old]}")
    assert not (PACKAGE / f"{old.replace('.', '/')}.py").exists()
