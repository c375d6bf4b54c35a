# SPDX-License-Identifier: Apache-2.0
"""What a weight mask may be chosen by."""

WAGLE = "wagle"
# Score -> roles whose rows it is computed from.
SCORES = {
    "gradient": ("forget",),
    "snip": ("forget",),
    "fisher": ("forget", "retain"),
    WAGLE: ("forget", "retain"),
    "wanda": ("forget",),
    "magnitude": (),
    "random": (),
}
FILE = "file"
