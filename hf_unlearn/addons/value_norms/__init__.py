# SPDX-License-Identifier: Apache-2.0
"""The shallow value-norm penalty, an add-on for every method (https://huggingface.co/papers/2510.17021).

It steers the L2 norms of attention values at the first few tokens, where a trigger at a row's start sits on the sink
of attention. A red-team tool: matching poisoned rows to the reference strengthens a backdoor, as the paper's abstract
says; a note beside the published code calls it a defence, which its formulas are not.
"""
