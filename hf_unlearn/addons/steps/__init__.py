# SPDX-License-Identifier: Apache-2.0
"""Steps whose gradients are those at other weights than the model's: sharpness-aware steps, random smoothing."""
