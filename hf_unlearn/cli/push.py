# SPDX-License-Identifier: Apache-2.0
"""`hf-unlearn push RUN --hub_model_id OWNER/NAME`: what a finished run made, to the Hub, in one commit.

Sends weights, tokenizer and model card. Reports, audits, recipes and training state stay here: they quote the rows, or
may hold tokens. Log in before with `hf auth login`, or set HF_TOKEN.
"""

import argparse
from pathlib import Path


def main(argv: list[str]) -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="hf-unlearn push", description=__doc__, formatter_class=form)
    parser.add_argument("run", metavar="RUN", help="output folder of a run")
    parser.add_argument("--hub_model_id", help="repository, OWNER/NAME; your own, named after the folder, by default")
    parser.add_argument("--hub_revision", help="branch to commit to")
    parser.add_argument("--hub_private_repo", action="store_true", default=None, help="make a new repository private")
    args = parser.parse_args(argv)

    from ..hub.push import create_repo, publish, published_files

    folder = Path(args.run)
    for file in published_files(folder):
        print(f"{file.stat().st_size:>14,}  {file.relative_to(folder)}")
    name = args.hub_model_id or folder.resolve().name
    repo_id = create_repo(name, private=args.hub_private_repo, folder=folder)
    commit = publish(folder, repo_id, "Upload by hf-unlearn", revision=args.hub_revision)
    print(f"Pushed: {commit.commit_url}")
