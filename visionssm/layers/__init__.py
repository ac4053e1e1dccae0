"""Building blocks that timm does not have; what it has comes from timm."""

from .downsample import ConvDownsample, PatchMerging
from .feature_pyramid import PyramidFeatures, SimpleFeaturePyramid, plain_feature_cfg
from .head import PooledHead
from .hierarchical import HierarchicalModel, Stage
from .init import init_A_log, init_dt
from .plain import PatchEmbed, PlainModel
from .restoration import ResidualGroup, RestorationModel, RestorationUNet, Upsampler, pad_to_multiple
from .rope import GridRope, rope_tables
from .stem import ConvStem, PatchStem, PositionStem

__all__ = [
    "ConvDownsample",
    "ConvStem",
    "GridRope",
    "HierarchicalModel",
    "PatchEmbed",
    "PatchMerging",
    "PatchStem",
    "PlainModel",
    "PooledHead",
    "PositionStem",
    "PyramidFeatures",
    "ResidualGroup",
    "RestorationModel",
    "RestorationUNet",
    "SimpleFeaturePyramid",
    "Stage",
    "Upsampler",
    "init_A_log",
    "init_dt",
    "pad_to_multiple",
    "plain_feature_cfg",
    "rope_tables",
]
