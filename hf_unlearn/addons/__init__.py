# SPDX-License-Identifier: Apache-2.0
"""What can be added to any method: terms of its loss, what is done to gradients, optimizer and weights.

An add-on is a mixin dataclass of settings ([`~hf_unlearn.addons.settings.AddOnSettings`]) and an object with hooks
([`~hf_unlearn.addons.addon.AddOn`]). A config is the list of the add-ons that a run may have: those it is made of.
"""
