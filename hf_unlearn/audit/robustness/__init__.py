# SPDX-License-Identifier: Apache-2.0
"""What audits of robustness share: does what was forgotten come back under an attack?

A kind of audit (`relearn`, `quantize`, `prompts`, ...) attacks one model at a time and returns what it measured
(`measured`). Models are then compared (`compare`): `remaining` is the share of what the original model knew, and a
retrained one does not, that the unlearned model shows (`recovery`).
"""
