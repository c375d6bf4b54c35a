# SPDX-License-Identifier: Apache-2.0
"""Latent adversarial training: the forget term under a perturbation of states that makes the forget answers likely."""
