"""Vim's published names: the routes' tensors carry no suffix (forward) or "_b" (backward) and are stacked here."""

from .layout import Layout

__all__ = ["LAYOUT"]

LAYOUT = Layout(
    source="hustvl/Vim@dd0358a vim/models_mamba.py",
    wrappers=("model", "state_dict", "model_ema"),
    renames=(
        (r"^layers\.", "blocks."),
        (r"^norm_f\.", "norm."),
        (r"\.A_b_log$", ".A_log#1"),
        (r"\.A_log$", ".A_log#0"),
        (r"\.D_b$", ".D#1"),
        (r"\.D$", ".D#0"),
        (r"\.conv1d(_b)?\.", r".conv_\1."),
        (r"\.conv_(_b)?\.(weight|bias)$", r".conv_\2#\1"),
        (r"\.x_proj(_b)?\.weight$", r".x_proj#\1"),
        (r"\.dt_proj(_b)?\.weight$", r".dt_proj#\1"),
        (r"\.dt_proj(_b)?\.bias$", r".dt_bias#\1"),
        (r"#_b$", "#1"),
        (r"#$", "#0"),
    ),
    reshape=(r"\.conv_weight$",),
)
