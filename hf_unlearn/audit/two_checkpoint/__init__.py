# SPDX-License-Identifier: Apache-2.0
"""Two checkpoints together: what somebody extracts who kept the model from before unlearning."""
