# SPDX-License-Identifier: Apache-2.0
"""`hf-unlearn merge ADAPTER --output_dir FOLDER`: merges an adapter into its base model.

An adapter on top of another adapter is merged with both. `run` takes the result, and it loads without PEFT.
"""

from pathlib import Path

from ..places import check_folder
from ..runs.help import CommandParser


def main(argv: list[str]) -> None:
    parser = CommandParser(prog="hf-unlearn merge", description=__doc__)
    parser.add_argument("adapter", metavar="ADAPTER", help="folder of an adapter, such as the output of a LoRA run")
    parser.add_argument("--output_dir", required=True, help="output folder, new or empty")
    parser.add_argument("--dtype", default="auto", help="dtype of the merged weights (default: that of the base)")
    parser.add_argument("--trust_remote_code", action="store_true", help="run the code of the base model's repository")
    args = parser.parse_args(argv)
    merge(args.adapter, args.output_dir, args.dtype, args.trust_remote_code)


def merge(adapter: str, output_dir: str, dtype: str = "auto", trust_remote_code: bool = False) -> None:
    """Writes an adapter's model with the adapter in its weights, and its tokenizer.

    Raises:
        `ValueError`: if there is no adapter, its files or its base's are not whole, or the output is taken.
    """
    from ..models.checkpoint_paths import adapter_folder, check_checkpoint_path

    folder = Path(output_dir)
    check_folder("--output_dir", folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"--output_dir={output_dir!r} holds files. Give a new or empty folder.")
    if adapter_folder(adapter) is None:
        raise ValueError(f"{adapter!r} holds no adapter. Give a folder with an adapter_config.json and its weights.")
    check_checkpoint_path(adapter)

    from ..audit.checkpoints import checkpoint_of, tokenizer_of
    from ..models.wrappers import merged

    tokenizer = tokenizer_of(adapter, trust_remote_code)
    model = merged(checkpoint_of(adapter, trust_remote_code, tokenizer, dtype=dtype))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    print(f"Merged: {folder}")
