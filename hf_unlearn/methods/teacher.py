# SPDX-License-Identifier: Apache-2.0
"""Methods whose model is taught by the frozen original."""

import logging
from dataclasses import dataclass, field


logger = logging.getLogger(__name__)


@dataclass
class TeacherArguments:
    """Whether another model than the original may teach."""

    allow_oracle_teacher: bool = field(
        default=False,
        metadata={"help": "Allow a `ref_model` as teacher, such as one trained without the forget rows."},
    )


class Taught:
    """Of a trainer whose reference is a teacher: only the original is one, unless another is asked for."""

    def check_reference(self, args, ref_model) -> None:
        if ref_model is not None and self.reference_roles_of(args):
            if not args.allow_oracle_teacher:
                raise ValueError(
                    "`ref_model` would be the teacher in place of the frozen original. One that saw less than it "
                    "gives away what is to be found: pass allow_oracle_teacher=True if that is meant, or leave it out."
                )
            logger.warning("The teacher is the `ref_model` given, not the original: an oracle, if it saw less.")
