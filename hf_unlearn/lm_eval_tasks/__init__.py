# SPDX-License-Identifier: Apache-2.0
"""Tasks for lm-eval: `lm_eval --include_path $(hf-unlearn tasks) --tasks rwku_forget_qa ...` (docs/lm_eval.md)."""
