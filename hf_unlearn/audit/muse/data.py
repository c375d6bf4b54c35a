# SPDX-License-Identifier: Apache-2.0
"""MUSE's questions, passages and texts, from local files or the Hub."""

from dataclasses import dataclass, field
from pathlib import Path

from ...data.sources import load_rows
from .measure import check_columns


HUB = {"news": "muse-bench/MUSE-News", "books": "muse-bench/MUSE-Books"}
KNOWMEM = ("forget_qa", "retain_qa")
PRIVLEAK = ("forget", "holdout")


@dataclass
class MuseSets:
    """What MUSE asks.

    Args:
        corpus (`str`):
            `"news"` or `"books"`.
        questions (`dict[str, list[dict]]`):
            `forget` and `retain`, with `question` and `answer`.
        examples (`dict[str, list[dict]]`):
            The ten examples in context of each.
        passages (`list[dict]`):
            VerbMem: `prompt` and `gt`; empty where there is no such file.
        texts (`dict[str, list[str]]`):
            PrivLeak: `forget` and `holdout`; empty where there are no such files.
    """

    corpus: str
    questions: dict[str, list[dict]]
    examples: dict[str, list[dict]]
    passages: list[dict] = field(default_factory=list)
    texts: dict[str, list[str]] = field(default_factory=dict)


def load_muse(corpus: str, path: str | Path | None = None) -> MuseSets:
    """Loads a corpus of MUSE.

    Args:
        corpus (`str`):
            `"news"` or `"books"`.
        path (`str` or `Path`, *optional*):
            Folder of `<corpus>_knowmem_{forget,retain}_qa[_icl].json`, and, if there, `<corpus>_verbmem_forget.json`
            and `<corpus>_privleak_{forget,holdout}.json`. By default the Hub, with all of them.

    Raises:
        `ValueError`: for an unknown corpus, or files that are missing or hold something else.
    """
    if corpus not in HUB:
        raise ValueError(f"MUSE has no corpus {corpus!r}; allowed: {', '.join(HUB)}.")
    read = _from_hub(corpus) if path is None else _from_folder(corpus, Path(path).expanduser())
    questions, examples = {}, {}
    for split in KNOWMEM:
        role = split.removesuffix("_qa")
        questions[role], examples[role] = read("knowmem", split), read("knowmem", f"{split}_icl")
        for name, rows in ((split, questions[role]), (f"{split}_icl", examples[role])):
            check_columns(f"MUSE {corpus} knowmem {name}", rows, ("question", "answer"))
    passages = read("verbmem", "forget", optional=True)
    texts = {name: read("privleak", name, optional=True) for name in PRIVLEAK}
    if passages:
        check_columns(f"MUSE {corpus} verbmem", passages, ("prompt", "gt"))
    if not all(texts.values()):
        return MuseSets(corpus, questions, examples, passages)
    for name, rows in texts.items():
        check_columns(f"MUSE {corpus} privleak {name}", rows, ("text",))
    return MuseSets(corpus, questions, examples, passages, {k: [row["text"] for row in v] for k, v in texts.items()})


def _from_hub(corpus: str):
    def read(config: str, split: str, optional: bool = False) -> list[dict]:
        return load_rows(HUB[corpus], config, split).to_list()

    return read


def _from_folder(corpus: str, folder: Path):
    if not folder.is_dir():
        raise ValueError(f"No folder at {str(folder)!r}. Give the folder that holds MUSE's JSON files.")

    def read(config: str, split: str, optional: bool = False) -> list[dict]:
        file = folder / f"{corpus}_{config}_{split}.json"
        if not file.is_file():
            if optional:
                return []
            raise ValueError(f"{file} is missing. Put MUSE's JSON files there, or leave the path out for the Hub.")
        return load_rows(str(file)).to_list()

    return read
