# SPDX-License-Identifier: Apache-2.0
"""VQA-v2 from files in its published form, its splits, and rows parted by index."""

import json
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image

from hf_unlearn.data.vqa import UnlearningDataset, make_split, read_manifest, read_vqa, write_manifest
from hf_unlearn.data.vqa.manifest import split_of


IMAGES = (42, 9, 458752)


@pytest.fixture
def files(tmp_path):
    """Questions, annotations and pictures, as their archives unpack."""
    folder = tmp_path / "train2014"
    folder.mkdir()
    questions, annotations = [], []
    for number, image_id in enumerate(IMAGES):
        Image.new("RGB", (20 + number, 10), (80 * number, 0, 0)).save(folder / f"COCO_train2014_{image_id:012d}.jpg")
        for k in range(2):
            question_id = image_id * 1000 + k
            answers = ["net"] * 8 + ["netting", "mesh"] if k else ["yes"] * 6 + ["no"] * 4
            questions.append({"image_id": image_id, "question": f"What is {k}?", "question_id": question_id})
            annotations.append(
                {
                    "question_type": "what is",
                    "multiple_choice_answer": answers[0],
                    "answers": [
                        {"answer": answer, "answer_confidence": "maybe", "answer_id": i + 1}
                        for i, answer in enumerate(answers)
                    ],
                    "image_id": image_id,
                    "answer_type": "other",
                    "question_id": question_id,
                }
            )
    about = {"info": {"year": 2017}, "license": {}, "data_subtype": "train2014", "data_type": "mscoco"}
    paths = {"questions": tmp_path / "questions.json", "annotations": tmp_path / "annotations.json", "images": folder}
    write(paths["questions"], {**about, "task_type": "Open-Ended", "questions": questions})
    # The published files are not in the same order.
    write(paths["annotations"], {**about, "annotations": annotations[::-1]})
    return paths


def write(path, content):
    path.write_text(json.dumps(content))


def change(path, edit):
    content = json.loads(path.read_text())
    edit(content)
    write(path, content)


def test_rows(files):
    rows = read_vqa(**files)
    assert len(rows) == 6
    assert isinstance(rows.features["image"], ImageFeature)
    row = rows[3]
    assert {name: row[name] for name in ("example_id", "image_id", "question", "answer")} == {
        "example_id": "9001",
        "image_id": "9",
        "question": "What is 1?",
        "answer": "net",
    }
    assert row["answers"] == ["net"] * 8 + ["netting", "mesh"]
    assert row["image"].size == (21, 10)
    assert rows[0]["answers"] == ["yes"] * 6 + ["no"] * 4
    assert rows[0]["answer"] == "yes"
    assert rows[5]["image"].size == (22, 10)


def test_pictures_are_read_when_asked_for(files):
    rows = read_vqa(**files)
    (files["images"] / "COCO_train2014_000000000042.jpg").unlink()
    assert rows[2]["image"].size == (21, 10)
    with pytest.raises(FileNotFoundError):
        rows[0]["image"]


def test_missing_pictures_are_one_error(files):
    for image_id in (42, 9):
        (files["images"] / f"COCO_train2014_{image_id:012d}.jpg").unlink()
    with pytest.raises(ValueError, match=r"2 of the 3 pictures .* missing: .*000000000009.jpg, .*000000000042.jpg\."):
        read_vqa(**files)
    with pytest.raises(ValueError, match="3 of the 3 pictures"):
        read_vqa(files["questions"], files["annotations"], files["images"] / "val2014")


@pytest.mark.parametrize(
    ("which", "edit", "message"),
    [
        ("annotations", lambda c: c["annotations"].pop(), "1 questions have no annotation (question_id 42000)"),
        ("questions", lambda c: c["questions"].pop(0), "1 annotations have no question (question_id 42000)"),
        ("questions", lambda c: c["questions"].append(c["questions"][0]), "1 repeated question_ids"),
        ("annotations", lambda c: c["annotations"][0].update(image_id=9), "1 questions are about another picture"),
        ("annotations", lambda c: c["annotations"][0].update(answers=[]), "1 annotations have no answers"),
        ("questions", lambda c: c["questions"][4].pop("question"), "Entry 4 of"),
        ("questions", lambda c: c.pop("data_subtype"), "is no questions file of VQA-v2"),
        ("questions", lambda c: c.update(questions=[]), "holds no questions"),
    ],
)
def test_files_that_do_not_fit(files, which, edit, message):
    change(files[which], edit)
    with pytest.raises(ValueError, match=re.escape(message)):
        read_vqa(**files)


def test_files_that_are_none(files, tmp_path):
    with pytest.raises(ValueError, match="No file at"):
        read_vqa(tmp_path / "none.json", files["annotations"], files["images"])
    files["questions"].write_text("{")
    with pytest.raises(ValueError, match="is no JSON"):
        read_vqa(**files)
    with pytest.raises(ValueError, match="is no questions file of VQA-v2: .* and has .'annotations', 'data_subtype'"):
        read_vqa(files["annotations"], files["annotations"], files["images"])


# Splits


def table(n, first=0, per_image=3):
    """Rows without pictures, a fifth of them answered "yes"."""
    return Dataset.from_dict(
        {
            "example_id": [f"{first + i}" for i in range(n)],
            "image_id": [f"{(first + i) // per_image}" for i in range(n)],
            "answer": ["yes" if i % 5 == 0 else "no" for i in range(n)],
        }
    )


@pytest.fixture(scope="module")
def big():
    return table(21_000), table(6_000, first=90_000)


def ids(split, name):
    return set(split.example_ids(name))


@pytest.mark.parametrize("by_image", [True, False])
def test_sample_deletion(big, by_image):
    split = make_split(*big, "5k", seed=1, forget=0.1, by_image=by_image)
    sizes = {name: len(split.dataset(name)) for name in ("forget", "retain", "test", "holdout")}
    assert sizes["forget"] + sizes["retain"] == 5000
    assert sizes["test"] + sizes["holdout"] == 1250
    assert 500 <= sizes["forget"] <= (502 if by_image else 500)
    assert 625 <= sizes["holdout"] <= (627 if by_image else 625)
    for kept, gone in (("retain", "forget"), ("test", "holdout")):
        assert not ids(split, kept) & ids(split, gone)
        images = [set(split.dataset(name)["image_id"]) for name in (kept, gone)]
        assert bool(images[0] & images[1]) is not by_image
    # It is a draw, and not the first rows.
    assert 15_000 < max(split.indices["forget"])
    assert 0.1 < np.mean([answer == "yes" for answer in split.dataset("forget")["answer"]]) < 0.3


def test_number_of_rows(big):
    assert len(make_split(*big, "5k", forget=7, by_image=False).indices["forget"]) == 7
    assert 7 <= len(make_split(*big, "5k", forget=7).indices["forget"]) <= 9


def test_answer_deletion(big):
    split = make_split(*big, "20k", answer="yes", val_rows=1000)
    assert set(split.dataset("forget")["answer"]) == set(split.dataset("holdout")["answer"]) == {"yes"}
    assert set(split.dataset("retain")["answer"]) == set(split.dataset("test")["answer"]) == {"no"}
    assert len(split.indices["forget"]) + len(split.indices["retain"]) == 20_000
    assert len(split.indices["test"]) + len(split.indices["holdout"]) == 1000


def test_seed_decides(big):
    first, again = (make_split(*big, "5k", seed=4, forget=0.2) for _ in range(2))
    other = make_split(*big, "5k", seed=5, forget=0.2)
    assert first.indices == again.indices
    assert first.indices["forget"] != other.indices["forget"]
    # Two draws of 5000 in 21000 share about a quarter.
    used = [set(s.indices["forget"]) | set(s.indices["retain"]) for s in (first, other)]
    assert 1000 < len(used[0] & used[1]) < 1400


def test_draws_do_not_depend_on_the_machine():
    # Numbers of this generator are the same on every platform; changing the draw would change published splits.
    split = make_split(table(40), table(40, first=90), "full", seed=0, forget=4, by_image=False)
    permutation = np.random.default_rng([0, 2]).permutation(40)
    assert split.indices["forget"] == sorted(permutation[:4].tolist())


def test_smaller_splits_are_part_of_larger_ones(big):
    used = []
    for name in ("5k", "20k", "full"):
        split = make_split(*big, name, forget=0.1)
        used.append(set(split.indices["forget"]) | set(split.indices["retain"]))
    assert [len(rows) for rows in used] == [5000, 20_000, 21_000]
    assert used[0] < used[1] < used[2]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"split": "6k"}, "Unknown split '6k', choose one of 5k, 20k, 80k, full"),
        ({"split": "80k"}, "takes 80000 rows and `train` has 21000"),
        ({"forget": None}, "Give either `forget`"),
        ({"answer": "yes"}, "Give either `forget`"),
        ({"forget": 1.5}, "at least 1) or a share below 1, got 1.5"),
        ({"forget": True}, "got True"),
        ({"forget": 5000}, "no rows for retain"),
        ({"forget": None, "answer": "maybe"}, "The most frequent answers of the split are 'no'"),
        ({"seed": -1}, "seed must be"),
        ({"val_rows": 7000}, "val_rows must lie between 1 and the 6000 rows"),
    ],
)
def test_unusable_splits(big, wrong, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make_split(*big, **{"split": "5k", "forget": 0.1, **wrong})


def test_trained_rows_are_no_non_members(big):
    with pytest.raises(ValueError, match="21000 example_ids are in both"):
        make_split(big[0], big[0], forget=0.1)
    with pytest.raises(ValueError, match="image_ids are in both"):
        make_split(table(30, per_image=9), table(30, first=30, per_image=9), "full", forget=3)


# Manifest


def test_manifest_gives_the_split_again(big, files, tmp_path):
    split = make_split(*big, "5k", seed=2, forget=0.1)
    path = write_manifest(split, tmp_path / "m" / "manifest.json", [files["questions"]], "me --seed 2")
    manifest = read_manifest(path, [files["questions"]])
    assert manifest["seed"] == 2
    assert manifest["split"] == "5k"
    assert manifest["deletion"] == "sample"
    assert manifest["command"] == "me --seed 2"
    assert manifest["sizes"] == {name: len(split.indices[name]) for name in manifest["sizes"]}
    again = split_of(manifest, *big)
    assert again.indices == split.indices
    assert again.settings == split.settings


def test_manifest_notices_changes(big, files, tmp_path):
    split = make_split(*big, "5k", seed=2, answer="yes")
    path = write_manifest(split, tmp_path / "manifest.json", [files["questions"]])
    assert read_manifest(path)["command"] == shlex.join(sys.orig_argv)
    with pytest.raises(ValueError, match="rows of forget are not in the given data"):
        split_of(read_manifest(path), big[1], big[0])
    with pytest.raises(ValueError, match="knows no file of that name"):
        read_manifest(path, [files["annotations"]])
    change(files["questions"], lambda c: c["questions"].pop())
    with pytest.raises(ValueError, match="has another SHA-256"):
        read_manifest(path, [files["questions"]])
    change(path, lambda c: c["example_ids"]["forget"].pop())
    with pytest.raises(ValueError, match="was changed: the example_ids of forget"):
        read_manifest(path)
    change(path, lambda c: c.update(manifest_version=9))
    with pytest.raises(ValueError, match="manifest_version 9"):
        read_manifest(path)
    path.write_text("[]")
    with pytest.raises(ValueError, match="is no manifest"):
        read_manifest(path)


# Rows parted by index


@pytest.fixture
def saved(files, tmp_path):
    """The rows as a saved folder and as JSONL with paths beside the pictures."""
    rows = read_vqa(**files)
    rows.save_to_disk(tmp_path / "saved")
    lines = []
    for entry, row in zip(json.loads(files["questions"].read_text())["questions"], rows, strict=True):
        name = f"train2014/COCO_train2014_{entry['image_id']:012d}.jpg"
        lines.append(json.dumps({**{k: v for k, v in row.items() if k != "image"}, "image": name}))
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    return {"folder": tmp_path / "saved", "jsonl": tmp_path / "rows.jsonl"}


@pytest.mark.parametrize("form", ["folder", "jsonl"])
def test_unlearning_dataset(saved, form):
    data = UnlearningDataset(saved[form], [5, 0], range(1, 4))
    assert data.forget["example_id"][:] == ["458752001", "42000"]
    assert data.retain["example_id"][:] == ["42001", "9000", "9001"]
    assert data.uncovered == 1
    assert data.forget[0]["image"].size == (22, 10)
    assert data.retain[2]["image"].size == (21, 10)


def test_transform_is_applied_to_rows(saved):
    data = UnlearningDataset(saved["folder"], [0], [1, 2], lambda row: {**row, "image": row["image"].resize((4, 4))})
    assert data.forget[0]["image"].size == (4, 4)
    assert data.retain[1]["question"] == "What is 0?"
    batch = data.retain[0:2]
    assert [image.size for image in batch["image"]] == [(4, 4), (4, 4)]


@pytest.mark.parametrize(
    ("forget", "retain", "message"),
    [
        ([6], [1], "1 of the forget_indices are no rows of 0 to 5, such as 6"),
        ([0], [-1], "1 of the retain_indices are no rows"),
        ([0, 1, 2], [2, 1], "2 rows are in both sets, such as 1, 2"),
        ([0, 0], [1], "1 rows are more than once in forget_indices, such as 0"),
        ([], [1], "forget_indices is empty"),
        ([1.5], [1], "forget_indices: [1.5] are no row numbers"),
    ],
)
def test_unusable_indices(saved, forget, retain, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        UnlearningDataset(saved["folder"], forget, retain)


def test_coverage(saved, caplog):
    with pytest.raises(ValueError, match="3 of 6 rows are in neither set, such as 2, 3, 4"):
        UnlearningDataset(saved["folder"], [0, 1], [5], require_coverage=True)
    assert UnlearningDataset(saved["folder"], [0, 1], [5]).uncovered == 3
    assert "3 of the 6 rows" in caplog.text
    caplog.clear()
    assert UnlearningDataset(saved["folder"], [0, 1], range(2, 6), require_coverage=True).uncovered == 0
    assert not caplog.text


def test_missing_pictures_of_jsonl(saved, files):
    for path in Path(files["images"]).iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="3 of the 3 pictures"):
        UnlearningDataset(saved["jsonl"], [0], [1])


def test_data_path_that_is_none(tmp_path):
    with pytest.raises(ValueError, match="No file or folder"):
        UnlearningDataset(tmp_path / "none", [0], [1])
