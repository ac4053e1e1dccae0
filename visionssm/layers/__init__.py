"""Building blocks that timm does not have; what it has comes from timm."""

from .conv_norm import ConvNorm, LinearNorm, Residual
from .downsample import ConvDownsample, InvertedMerging, PatchMerging
from .feature_pyramid import PyramidFeatures, SimpleFeaturePyramid, plain_feature_cfg
from .head import PooledHead
from .hierarchical import HierarchicalModel, Stage
from .init import init_A_log, init_dt, init_dt_bias
from .linear import Linear, Mlp, project
from .plain import PatchEmbed, PlainModel
from .restoration import ResidualGroup, RestorationModel, RestorationUNet, Upsampler, pad_to_multiple
from .rope import GridRope, rope_tables
from .stem import ConvNormStem, ConvStem, PatchStem, PositionStem
from .wavelet import haar, inverse_haar

__all__ = [
    "ConvDownsample",
    "ConvNorm",
    "ConvNormStem",
    "ConvStem",
    "GridRope",
    "HierarchicalModel",
    "InvertedMerging",
    "Linear",
    "LinearNorm",
    "Mlp",
    "PatchEmbed",
    "PatchMerging",
    "PatchStem",
    "PlainModel",
    "PooledHead",
    "PositionStem",
    "PyramidFeatures",
    "Residual",
    "ResidualGroup",
    "RestorationModel",
    "RestorationUNet",
    "SimpleFeaturePyramid",
    "Stage",
    "Upsampler",
    "haar",
    "init_A_log",
    "init_dt",
    "init_dt_bias",
    "inverse_haar",
    "pad_to_multiple",
    "plain_feature_cfg",
    "project",
    "rope_tables",
]
