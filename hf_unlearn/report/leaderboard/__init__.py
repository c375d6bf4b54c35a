# SPDX-License-Identifier: Apache-2.0
"""One page over all methods of a sweep: what each forgot and kept, what came back, what it cost, and its rank."""
