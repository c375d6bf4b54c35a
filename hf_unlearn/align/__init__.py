# SPDX-License-Identifier: Apache-2.0
"""Parts of Align-then-Unlearn: what a language model's states say of the text to come, in a text encoder's space."""
