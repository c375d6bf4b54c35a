# SPDX-License-Identifier: Apache-2.0
"""How a trainer pushes: at the end, and from its checkpoints while it trains."""

import logging
import os
import shutil
import tempfile
from pathlib import Path

from huggingface_hub import run_as_future
from transformers import Trainer
from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress

from .push import PushError, create_repo, publish, published_files


logger = logging.getLogger(__name__)


def check_hub(args) -> None:
    """Refuses to push what training is resumed from: optimizer states and pickles, the training arguments among them.

    Raises:
        `ValueError`: with the strategies that there are.
    """
    if str(args.trackio_static_space_id).lower() == "false":
        # Parsers hand on the word, and Trackio would publish a Space of that name.
        args.trackio_static_space_id = False
    if args.push_to_hub and args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
        raise ValueError(
            f"hub_strategy={args.hub_strategy.value!r} would push optimizer states and pickled training arguments, "
            "from which what was forgotten, or a token, may be read. Take 'end' or 'every_save', which push weights, "
            "tokenizer and model card."
        )


class HubTrainer(Trainer):
    """A trainer that pushes the checkpoint and the card (see [`~hf_unlearn.hub.push.PUBLISHED`]) and nothing else.

    Trainer sends the whole output folder: there, reports and audits quote the rows that were forgotten.
    """

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Makes the repository; at the start of a run with `push_to_hub`, so that a refused token is told early."""
        if self.is_world_process_zero():
            self._open_repo(token, private)

    def _open_repo(self, token: str | None, private: bool | None, folder: str | None = None) -> None:
        args = self.args
        self.hub_model_id = create_repo(
            args.hub_model_id or Path(args.output_dir).resolve().name,
            token=args.hub_token if token is None else token,
            private=args.hub_private_repo if private is None else private,
            folder=folder,
        )
        self.push_in_progress = None

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs,
    ):
        """Saves the model and its card into the output folder and pushes them.

        Args:
            commit_message, blocking, token, revision, private:
                As in [`~transformers.Trainer.push_to_hub`].
            kwargs:
                For `create_model_card`.

        Returns:
            `huggingface_hub.CommitInfo`, a `Future` of it where not `blocking`, `None` on all but the first process.

        Raises:
            [`~hf_unlearn.hub.push.PushError`]: saying why, where the checkpoint is and how to try again.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        # Saved first: what the Hub refuses is then at least here.
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        args = self.args
        if self.hub_model_id is None:
            self._open_repo(token, private, args.output_dir)
        self.create_model_card(**kwargs)
        self._finish_current_push()
        token = args.hub_token if token is None else token
        revision = args.hub_revision if revision is None else revision
        push = (args.output_dir, self.hub_model_id, commit_message or "End of training", token, revision)
        return publish(*push) if blocking else run_as_future(publish, *push)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Pushes a checkpoint's weights while training goes on; a push that fails is told and does not stop it."""
        args = self.args
        if not self.is_world_process_zero() or args.hub_strategy == HubStrategy.END:
            return
        busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if busy and not args.hub_always_push:
            return
        self.callback_handler.on_push_begin(args, self.state, self.control)
        message = f"Training in progress, step {self.state.global_step}"
        staged = _stage(checkpoint_folder, args.output_dir)
        push = (staged, checkpoint_folder, self.hub_model_id, message, args.hub_token, args.hub_revision)
        job = run_as_future(_publish_staged, *push)
        if busy:
            self.push_in_progress.jobs.append(job)
        else:
            self.push_in_progress = PushInProgress([job])


def _stage(checkpoint_folder: str, parent: str) -> Path:
    """Links to a checkpoint's files: the checkpoint itself may be rotated away before they are sent."""
    checkpoint = Path(checkpoint_folder)
    staged = Path(tempfile.mkdtemp(prefix="_push-", dir=parent))
    for file in published_files(checkpoint):
        link = staged / file.relative_to(checkpoint)
        link.parent.mkdir(exist_ok=True)
        try:
            os.link(file, link)
        except OSError:
            shutil.copyfile(file, link)
    return staged


def _publish_staged(staged: Path, checkpoint_folder: str, repo_id: str, message: str, token, revision) -> None:
    try:
        publish(staged, repo_id, message, token, revision, shown=checkpoint_folder)
    except PushError as error:
        logger.warning("%s. Training goes on.", error)
    finally:
        shutil.rmtree(staged)
