"""A convolution of stride 2, whichever way its sizes choose."""

import pytest
import torch
import torch.nn.functional as F

from tests.tolerances import TOLERANCES
from visionssm.layers import ConvDownsample


@pytest.mark.parametrize("size", [(1, 1), (4, 6), (7, 5), (14, 14), (40, 33)])
@pytest.mark.parametrize("channels", [(4, 8), (64, 96)])
def test_conv_downsample(size, channels):
    layer = ConvDownsample(*channels)
    x = torch.randn(2, *size, channels[0])
    double = ConvDownsample(*channels).double()
    double.load_state_dict(layer.state_dict())
    wanted = F.conv2d(x.double().permute(0, 3, 1, 2), double.conv.weight, double.conv.bias, 2, 1)
    wanted = double.norm(wanted.permute(0, 2, 3, 1))
    torch.testing.assert_close(layer(x).double(), wanted, **TOLERANCES[torch.float32])
    with torch.no_grad():
        torch.testing.assert_close(layer(x).double(), wanted, **TOLERANCES[torch.float32])
        torch.testing.assert_close(torch.jit.script(layer)(x).double(), wanted, **TOLERANCES[torch.float32])
