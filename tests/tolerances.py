"""The one table of tolerances. A failing test is answered in the code, never here."""

import torch

# For torch.testing.assert_close(got, wanted, **TOLERANCES[dtype]): an implementation against the reference.
TOLERANCES: dict[torch.dtype, dict[str, float]] = {
    torch.float64: {"rtol": 1e-9, "atol": 1e-10},
    torch.float32: {"rtol": 1e-4, "atol": 2e-5},
    torch.bfloat16: {"rtol": 2e-2, "atol": 2e-2},
    torch.float16: {"rtol": 2e-3, "atol": 2e-3},
}

# Half precision against a float64 oracle: at most this many times the error of eager torch in that dtype.
HALF_PRECISION_ERROR_RATIO = 2.0

# Largest absolute difference from the published output, in float32.
PUBLISHED_LOGITS = 5e-5
PUBLISHED_IMAGES_AND_VOLUMES = 1e-4
# EfficientViM's logits are a tenth of the others' in these cases.
PUBLISHED_SMALL_LOGITS = 5e-6
# MambaIR's U-Net has values up to 20, and 2e-5 between float32 and float64 of the published code.
PUBLISHED_UNET_IMAGES = 3e-4
# Relative: features to their own largest value, gradients to their norm.
PUBLISHED_FEATURES = 1e-5
PUBLISHED_GRADIENTS = 1e-4
# LightM-UNet's deepest map: the published float32 values are up to 3.5e-5 (images) and 1e-4 (volumes) from float64.
PUBLISHED_VOLUME_FEATURES = 2e-4
