# SPDX-License-Identifier: Apache-2.0
"""`hf-unlearn push RUN --hub_model_id OWNER/NAME [--dry_run]`: uploads a finished run to the Hub, in one commit.

Uploads weights, tokenizer and model card. Reports, audits, recipes and training state are not uploaded: they quote the
rows, or may contain tokens. Log in with `hf auth login`, or set HF_TOKEN.
"""

from pathlib import Path

from ..runs.help import CommandParser, fill


def main(argv: list[str]) -> None:
    parser = CommandParser(prog="hf-unlearn push", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="output folder of a run")
    parser.add_argument("--hub_model_id", help="repository, OWNER/NAME (default: yours, named after the folder)")
    parser.add_argument("--hub_revision", help="branch to commit to")
    parser.add_argument("--hub_private_repo", action="store_true", default=None, help="make a new repository private")
    parser.add_argument("--dry_run", action="store_true", help="list files and repository without uploading")
    args = parser.parse_args(argv)

    from huggingface_hub.utils import validate_repo_id

    from ..hub.push import check_base, create_repo, publish, published_files
    from ..models.checkpoint_files import check_files

    folder = Path(args.run)
    check_files(folder)
    files = published_files(folder)
    name = args.hub_model_id or folder.resolve().name
    validate_repo_id(name)
    for file in files:
        print(f"{file.stat().st_size:>14,}  {file.relative_to(folder)}")
    if args.dry_run:
        check_base(folder)
        print(_described(name, files, args))
        return
    repo_id = create_repo(name, private=args.hub_private_repo, folder=folder)
    commit = publish(folder, repo_id, "Upload by hf-unlearn", revision=args.hub_revision)
    print(f"Pushed: {commit.commit_url}")


def _described(name: str, files: list[Path], args) -> str:
    """What a push would do, in words."""
    place = name if "/" in name else f"{name} of your own account"
    seen = "private" if args.hub_private_repo else "public, or what your account makes by default"
    total = sum(file.stat().st_size for file in files)
    return fill(
        f"{len(files)} files, {total:,} bytes, would be sent to {place}, branch {args.hub_revision or 'main'}. A new "
        f"repository would be {seen}; one that is there stays as it is. Nothing was sent."
    )
