# SPDX-License-Identifier: Apache-2.0
"""Files are there whole or not at all, whoever writes them; what older versions left half written is told or made
anew."""

import ast
import contextlib
import logging
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_tokenizer
from datasets import Dataset
from test_privacy_attacks import Pixels, class_rows, memorise

import hf_unlearn
from hf_unlearn.audit import Audit, BackdoorAudit, Privacy
from hf_unlearn.audit.arguments import AuditArguments
from hf_unlearn.audit.privacy import Classifier, train_shadows
from hf_unlearn.audit.privacy.cache import SignalCache
from hf_unlearn.data.qa import QAFormat
from hf_unlearn.data.sets import Sets
from hf_unlearn.files import read_json, whole_file, write_json, write_text
from hf_unlearn.runs.suite_audits import AuditCache


PACKAGE = Path(hf_unlearn.__file__).parent
# What writes a file in place, by the name of the call.
WRITERS = {"write_text", "write_bytes", "savefig", "dump", "save_file", "savez", "to_csv", "to_json"}
# The kernel's own file, and a sweep's log, which grows.
ALLOWED = {("bench/memory.py", "write_text"), ("sweep/worker.py", "open")}


def writes_in_place(file: Path):
    """Calls that write to a place, but for those inside `with whole_file(...) as part`, where the place is `part`."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", None))
        texts = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        inside = {name.id for arg in [*node.args, node.func] for name in ast.walk(arg) if isinstance(name, ast.Name)}
        opens = name in ("open", "fdopen") and any(text[:1] in ("w", "x") for text in texts[-1:])
        is_writer = isinstance(node.func, ast.Attribute) or name == "save_file"
        if (opens or (name in WRITERS and is_writer)) and not inside & {"part", "file", "buffer"}:
            yield name, node.lineno


def test_no_file_of_the_package_is_written_in_place():
    found = {
        (str(file.relative_to(PACKAGE)), name): line
        for file in sorted(PACKAGE.rglob("*.py"))
        for name, line in writes_in_place(file)
        if file.name != "files.py"
    }
    # `stored/` writes into a folder that is renamed when it is whole.
    wrong = {key: line for key, line in found.items() if key not in ALLOWED and not key[0].startswith("stored/")}
    assert not wrong, f"write these through hf_unlearn.files: {wrong}"


KILLED = """
import os, signal, sys
from hf_unlearn import files
class Slow:
    def __str__(self): os.kill(os.getpid(), signal.SIGKILL)
with files.whole_file(sys.argv[1]) as part, part.open("w") as file:
    file.write('{"half": '); file.flush(); str(Slow())
"""


def test_a_killed_writer_leaves_what_was_there(tmp_path):
    path = write_json(tmp_path / "deep" / "a.json", {"whole": 1})
    for place in (path, tmp_path / "b.json"):
        child = subprocess.run([sys.executable, "-c", KILLED, str(place)], check=False)
        assert child.returncode == -signal.SIGKILL
    assert read_json(path) == {"whole": 1}
    assert not (tmp_path / "b.json").exists()


def test_a_writer_that_fails_leaves_nothing(tmp_path):
    path = write_text(tmp_path / "a.txt", "before\r\n")
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    with contextlib.suppress(ZeroDivisionError), whole_file(path) as part:
        part.write_text("half")
        raise ZeroDivisionError
    assert path.read_bytes() == b"before\r\n"
    assert list(tmp_path.iterdir()) == [path]


# Damaged files of older versions


@pytest.mark.parametrize("content", ["", '{"n_shad', "\x00\x00"])
def test_shadow_models_whose_plan_was_half_written_are_trained(tmp_path, content):
    rows, folder = class_rows(12), tmp_path / "shadows"
    folder.mkdir()
    (folder / "shadows.json").write_text(content)
    given = {"folder": folder, "n_shadows": 4, "progress": False}
    found = train_shadows(memorise, rows, **given)
    assert len(found) == 4
    # With models there, nobody knows what they saw.
    (folder / "shadows.json").write_text(content)
    with pytest.raises(ValueError, match=r"shadows.json is no JSON .* remove .*shadows\.$") as told:
        train_shadows(memorise, rows, **given)
    assert "\n" not in str(told.value)


def test_a_damaged_shadow_model_is_trained_again(tmp_path):
    rows = class_rows(12)
    given = {"folder": tmp_path, "n_shadows": 4, "progress": False}
    whole = train_shadows(memorise, rows, **given)
    for name, content in (("shadow-0001.npz", b""), ("shadow-0003.npz", b"PK\x03\x04 half")):
        (tmp_path / name).write_bytes(content)
    again = train_shadows(memorise, rows, **given)
    np.testing.assert_array_equal(again.values("logp"), whole.values("logp"))


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[: len(b) // 2], lambda b: b[:100] + b"?" + b[101:]])
def test_damaged_signals_are_computed_again(tmp_path, damage):
    rows = [{"pixels": torch.arange(6).float() + i, "labels": i % 5} for i in range(12)]
    subject = Classifier(Pixels(), cache=SignalCache(tmp_path), progress=False)
    before = subject.observe(rows).mean("logp")
    (file,) = tmp_path.glob("*.npz")
    file.write_bytes(damage(file.read_bytes()))
    again = Classifier(Pixels(), cache=SignalCache(tmp_path), progress=False).observe(rows)
    np.testing.assert_array_equal(again.mean("logp"), before)


@pytest.mark.parametrize("kind", [Audit, Privacy])
@pytest.mark.parametrize(
    "content", ["", '{"audit_version": 1, "pri', "[]", '{"audit_version": 1, "privacy_version": 1}']
)
def test_a_damaged_result_is_one_line(tmp_path, kind, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match="is no JSON|can read: (audit|privacy)_version=None|lacks metrics") as told:
        kind.load(tmp_path / "a.json")
    assert "again" in str(told.value)
    assert "\n" not in str(told.value)


def test_a_damaged_backdoor_audit_is_one_line():
    for saved in ([], {}, {"backdoor_audit_version": 1}):
        with pytest.raises(ValueError, match="Audit the checkpoint again"):
            BackdoorAudit.from_dict(saved)


# Audits that are kept


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A function of options: the cache of an audit of one checkpoint."""
    monkeypatch.setenv("HF_UNLEARN_CACHE", str(tmp_path / "cache"))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"weights")

    def cache(answer="a", computed=None, **options):
        rows = Dataset.from_list([{"question": "q", "answer": answer}])
        sets = Sets(rows, None, audited={"forget": rows})
        return AuditCache(AuditArguments(**options), QAFormat(), sets, make_tokenizer(), computed or {})

    return str(tmp_path / "model"), cache


def test_a_damaged_audit_in_the_cache_is_made_anew(kept, caplog):
    model, cache = kept
    cache().put(model, Audit({}, []))
    assert cache().get(model) == Audit({}, [])
    cache().path(model).write_text('{"audit_ver')
    assert cache().get(model) is None
    assert "cannot be read and is made anew" in caplog.text


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"max_new_tokens": 7}, "differs in max_new_tokens (200 then, 7 now)."),
        ({"answer": "b"}, "differs in rows of forget ("),
        ({"computed": {"dtype": "bfloat16"}}, 'differs in dtype (None then, "bfloat16" now).'),
        (
            {"audit_max_items": 3, "prompts": ["Hi"]},
            'prompts (null then, ["Hi"] now), audit_max_items (null then, 3 now)',
        ),
    ],
)
def test_an_audit_that_is_made_anew_says_why(kept, caplog, options, told):
    model, cache = kept
    caplog.set_level(logging.INFO)
    assert cache().get(model) is None
    assert "made anew" not in caplog.text
    cache().put(model, Audit({}, []))
    cache(max_new_tokens=9, answer="other").put(model, Audit({}, []))
    assert cache(**options).get(model) is None
    assert told in caplog.text


def test_other_weights_are_told(kept, caplog):
    model, cache = kept
    caplog.set_level(logging.INFO)
    cache().put(model, Audit({}, []))
    (Path(model) / "model.safetensors").write_bytes(b"other weights")
    assert cache().get(model) is None
    assert "differs in weights (" in caplog.text
