# SPDX-License-Identifier: Apache-2.0
"""A run's folder to the Hub: the checkpoint and its card, nothing else, in one commit or not at all."""

import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..models.checkpoint_files import ADAPTER_CONFIG
from ..models.checkpoint_paths import METHOD_STATE, REFERENCE_ADAPTER, adapter_folder
from ..models.wrapper_files import WRAPPER_CONFIG, is_wrapper_folder


# What another machine needs to load the model. All else in a run's folder stays at home: reports and audits quote the
# rows, recipes and training arguments may hold tokens, optimizer states hold what the rows did to the weights.
PUBLISHED = (
    "README.md",
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    WRAPPER_CONFIG,
    "tokenizer*",
    "*.tiktoken",
    "*.spm",
    "sentencepiece*.model",
    "spiece.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template.*",
    "additional_chat_templates/*.jinja",
    "*.py",
)

logger = logging.getLogger(__name__)


class PushError(ValueError):
    """The Hub did not take a push, or could not be reached. The local checkpoint is as it was."""


def published_files(folder: str | Path) -> list[Path]:
    """The files of a run's folder that a push sends.

    Raises:
        `ValueError`: if the folder holds no whole checkpoint with a model card.
    """
    folder = Path(folder)
    found = {path for pattern in PUBLISHED for path in folder.glob(pattern) if path.is_file()}
    # Of a checkpoint: what goes on with a run may hold what its rows did.
    found.discard(folder / METHOD_STATE)
    if (adapter := adapter_folder(folder)) is not None:
        # PEFT saves an adapter that has a name of its own in a folder of that name.
        found |= {adapter / ADAPTER_CONFIG, *adapter.glob("*.safetensors")}
    names = {path.name for path in found}
    wraps = is_wrapper_folder(folder)
    missing = [
        what
        for what, there in (
            ("weights (*.safetensors)", wraps or any(name.endswith(".safetensors") for name in names)),
            ("config.json or adapter_config.json", names & {"config.json", "adapter_config.json", WRAPPER_CONFIG}),
            ("README.md", "README.md" in names),
        )
        if not there
    ]
    if missing:
        raise ValueError(
            f"{str(folder)!r} is no checkpoint that can be pushed: {', '.join(missing)} is missing. Give the output "
            "folder of a finished run."
        )
    _check_no_reference(found)
    return sorted(found)


def _check_no_reference(files: Iterable[Path]) -> None:
    """Raises `ValueError` for a file that holds the adapter before unlearning beside the one after it."""
    from safetensors import SafetensorError, safe_open

    for path in sorted(files):
        if path.suffix == ".safetensors":
            try:
                with safe_open(path, framework="np") as file:
                    names = list(file.keys())
            except SafetensorError:
                # Nobody can read it.
                continue
            if path.parent.name == REFERENCE_ADAPTER or any(f".{REFERENCE_ADAPTER}" in name for name in names):
                raise ValueError(
                    f"{str(path)!r} holds the adapter as it was before unlearning ({REFERENCE_ADAPTER!r}), which "
                    "earlier versions left in files, and must not be published. Train again, or write the file anew "
                    f"without the tensors of that name."
                )


def create_repo(repo_id: str, token: str | None = None, private: bool | None = None, folder=None) -> str:
    """Makes a model repository unless it is there; returns its full name, `owner/name`.

    Raises:
        [`PushError`]: if the Hub refuses or cannot be reached.
    """
    with _explained(repo_id, folder):
        return _api().create_repo(repo_id, token=token, private=private, exist_ok=True).repo_id


def publish(
    folder: str | Path, repo_id: str, message: str, token: str | None = None, revision: str | None = None, shown=None
):
    """Uploads a checkpoint and its card as one commit.

    `HfApi.upload_folder` commits a large folder in parts, the first before the last file is sent; a cut between two of
    them would leave a repository that loads wrong weights or none. What was uploaded without a commit is seen by
    nobody, and is not sent again by the next try.

    Args:
        folder (`str` or `Path`):
            A run's output folder.
        repo_id (`str`):
            `owner/name`, an existing repository.
        message (`str`):
            Of the commit.
        token, revision (`str`, *optional*):
            As in `HfApi.create_commit`.
        shown (`str` or `Path`, *optional*):
            The folder to name in errors, if it is another.

    Returns:
        `huggingface_hub.CommitInfo`

    Raises:
        [`PushError`]: saying why, where the checkpoint is and how to try again.
        `ValueError`: if the folder holds no whole checkpoint.
    """
    from huggingface_hub import CommitOperationAdd

    folder, files = Path(folder), published_files(folder)
    check_base(folder)
    operations = [CommitOperationAdd(file.relative_to(folder).as_posix(), file) for file in files]
    with _explained(repo_id, shown or folder):
        return _api().create_commit(
            repo_id, operations, commit_message=message, token=token, revision=revision, repo_type="model"
        )


def check_base(folder: Path) -> None:
    """Warns of an adapter or a wrapper whose base is a folder of this machine."""
    what, name = ("wrapper", WRAPPER_CONFIG) if is_wrapper_folder(folder) else ("adapter", ADAPTER_CONFIG)
    config = folder / name
    base = json.loads(config.read_text(encoding="utf-8")).get("base_model_name_or_path") if config.is_file() else None
    if base and Path(base).exists():
        logger.warning(
            "The %s names %r as its base model, a folder of this machine: nobody else can load it, and the path "
            "is pushed. Unlearn from a Hub id, or push that model and put its id into %s.",
            what,
            base,
            config,
        )


def _api():
    from huggingface_hub import HfApi

    from ..version import __version__

    return HfApi(library_name="hf_unlearn", library_version=__version__)


@contextmanager
def _explained(repo_id: str, folder) -> Iterator[None]:
    try:
        yield
    # The client raises what its transports raise, which no common class covers.
    except Exception as error:
        kept = ""
        if folder is not None:
            kept = (
                f" The checkpoint is whole in {str(folder)!r}. To try again: hf-unlearn push {folder} "
                f"--hub_model_id {repo_id}"
            )
        raise PushError(f"The push to {repo_id!r} did not go through: {_reason(error)}{kept}") from error


def _reason(error: Exception) -> str:
    from huggingface_hub.errors import LocalTokenNotFoundError, OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set. Unset it."
    if isinstance(error, LocalTokenNotFoundError):
        return "there is no token. Log in with `hf auth login`, or set HF_TOKEN."
    told = " ".join(f"{type(error).__name__}: {error}".split())
    told = told if told.endswith(".") else f"{told}."
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return f"the token was refused ({status}); it must be valid and may write to this repository. {told}"
    return f"{told}"
