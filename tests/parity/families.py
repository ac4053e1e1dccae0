"""How each family's reference cases are run: which model, which options, which outputs.

A family adds one `Family` here; `test_models.py` does the rest for every case file in its folder.
"""

import itertools
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

import visionssm
from tests import tolerances
from tests.parity.cases import Case
from visionssm.mixers import AttentiveScan, ImageScan

HERE = Path(__file__).parent


def logits(model: nn.Module, x: Tensor, case: Case) -> dict[str, Tensor]:
    return {"logits": model(x)}


def hierarchical(model: nn.Module, x: Tensor, case: Case) -> dict[str, Tensor]:
    """Logits, and the stages' maps where the case has them: NCHW, before downsampling."""
    outputs = logits(model, x, case)
    if "feat0" in case.expected:
        maps = model.forward_intermediates(x, intermediates_only=True)
        outputs |= {f"feat{i}": feature for i, feature in enumerate(maps)}
    return outputs


def dense_options(case: Case) -> dict[str, Any]:
    """Norms on every stage's map, where the case is of a published detector's backbone."""
    return {"stage_norms": True} if "backbone" in case.name else {}


def hierarchical_or_dense(model: nn.Module, x: Tensor, case: Case) -> dict[str, Tensor]:
    """What `hierarchical` gives, or the normed maps of a detector's backbone."""
    if "backbone" not in case.name:
        return hierarchical(model, x, case)
    return {f"out{i}": feature for i, feature in enumerate(model.forward_intermediates(x, intermediates_only=True))}


def vim_outputs(model: nn.Module, x: Tensor, case: Case) -> dict[str, Tensor]:
    """Logits, tokens after the norm, and what three blocks add to and find in the residual stream."""
    kept: dict[str, Tensor] = {}
    depth = len(model.blocks)
    hooks = []
    for name, index in (("first", 0), ("mid", depth // 2), ("last", depth - 1)):
        block = model.blocks[index]
        hooks.append(
            block.norm.register_forward_pre_hook(lambda _, a, n=name: kept.update({f"block_{n}_residual": a[0]}))
        )
        hooks.append(
            block.mixer.register_forward_hook(lambda _, a, out, n=name: kept.update({f"block_{n}_hidden": out}))
        )
    tokens = model.forward_features(x)
    for hook in hooks:
        hook.remove()
    return {"logits": model.forward_head(tokens), "tokens": tokens, **kept}


def local_vmamba(model: nn.Module, x: Tensor, case: Case) -> dict[str, Tensor]:
    """What a hierarchical model gives; at H != W with the published un-scan, and also with the right one."""
    if "logits_vfix" not in case.expected:
        return hierarchical(model, x, case)
    published = visionssm.create_model(FAMILIES[case.family].model(case), unscan="published").eval()
    published.load_state_dict(model.state_dict())
    return hierarchical(published, x, case) | {"logits_vfix": model(x)}


def local_vim_options(case: Case) -> dict[str, Any]:
    """The size, and the published un-scan at H != W: nothing else is recorded there."""
    height, width = case.spec["input"]["shape"][2:]
    return same_size(case) | ({} if height == width else {"unscan": "published"})


def plain_mamba_outputs(model: nn.Module, x: Tensor, case: Case) -> dict[str, Tensor]:
    """Logits, tokens after the norm, and what three blocks return."""
    depth = len(model.blocks)
    names = {0: "block_first", depth // 2: "block_mid", depth - 1: "block_last"}
    tokens, features = model.forward_intermediates(x, indices=list(names), output_fmt="NLC")
    return {
        "logits": model.forward_head(tokens),
        "tokens": tokens,
        **dict(zip(names.values(), features, strict=True)),
    }


def restored(model: nn.Module, x: Tensor, case: Case) -> dict[str, Tensor]:
    """The image, and the tokens after the first residual group, or after the first block of a U-Net."""
    kept: dict[str, Tensor] = {}
    module = model.encoder[0].blocks[0] if hasattr(model, "encoder") else model.groups[0]
    hook = module.register_forward_hook(lambda _, args, out: kept.update(feat=out.flatten(1, 2)))
    image = model(x)
    hook.remove()
    return {"image": image, **kept}


def mambairv2_options(case: Case) -> dict[str, Any]:
    """Routing by chance where the case says how to draw, else by the most probable category."""
    return {} if case.spec.get("routing", "no noise").startswith("no noise") else {"routing": "gumbel"}


def mambairv2_outputs(model: nn.Module, x: Tensor, case: Case) -> dict[str, Tensor]:
    """What `restored` gives, and the category of every position in every layer.

    Noise is by the file's rule, or from torch's seed 0.
    """
    routes: list[Tensor] = []
    mixers = [module for module in model.modules() if isinstance(module, AttentiveScan)]
    hooks = [m.router.register_forward_hook(lambda _, args, out: routes.append(out[1])) for m in mixers]
    with ExitStack() as stack:
        if "from numpy" in case.spec.get("routing", ""):
            for k, mixer in enumerate(mixers):
                stack.enter_context(patch.object(mixer, "draw_noise", partial(ruled_noise, k, mixer.categories)))
        else:
            torch.manual_seed(0)
        outputs = restored(model, x, case)
    for hook in hooks:
        hook.remove()
    return outputs | {"routes": torch.stack(routes)}


def ruled_noise(layer: int, categories: int, x: Tensor, generator: torch.Generator | None) -> Tensor:
    """The noise of the cases with "rule" routing."""
    drawn = np.random.Generator(np.random.PCG64(1000 + layer)).random((len(x), x[0, ..., 0].numel(), categories))
    return torch.from_numpy(-np.log(-np.log(drawn.clip(1e-12, 1 - 1e-12)))).float()


def volume_outputs(model: nn.Module, x: Tensor, case: Case) -> dict[str, Tensor]:
    """Logits, the encoder's maps, and what three parts of the first stage and of the decoder return."""
    stage, kept = model.encoder.stages[0], {}
    hooks = [
        module.register_forward_hook(lambda _, args, out, n=name: kept.update({n: out, f"{n}_in": args[0]}))
        for name, module in (
            ("gsc0", stage.gated_conv),
            ("mamba00", stage.blocks[0].mixer),
            ("enc1", model.decoder.first),
        )
    ]
    hooks.append(model.encoder.register_forward_hook(
        lambda _, args, maps: kept.update({f"vit{i}": feature for i, feature in enumerate(maps)})
    ))  # fmt: skip
    volume = model(x)
    for hook in hooks:
        hook.remove()
    return {"logits": volume, **kept}


def mamba_nd_outputs(model: nn.Module, x: Tensor, case: Case) -> dict[str, Tensor]:
    """Logits, patches with positions, what layers return as tokens, and the vector before the classifier."""
    embedded = model.stem(x).flatten(1, 2)
    last, maps = model.forward_intermediates(x)
    layers = {f"layer{i}": feature.flatten(2).transpose(1, 2) for i, feature in enumerate(maps)}
    pooled = model.forward_head(last, pre_logits=True)
    return {"logits": model.forward_head(last), "embed": embedded, "pooled": pooled, **layers}


def mamba2d_outputs(model: nn.Module, x: Tensor, case: Case) -> dict[str, Tensor]:
    """What `hierarchical` gives, and the stem's map, two mixers, a local branch and an attention, all NCHW."""
    kept: dict[str, Tensor] = {}
    blocks, attention = model.stages[0].blocks, model.stages[2].blocks[0].mixer
    named = {"stem": model.stem, "mixer0": blocks[0].mixer, "mixer1": blocks[1].mixer}
    named |= {"local0": blocks[0].mixer.local, "attn0": attention}
    hooks = [
        module.register_forward_hook(lambda _, args, out, n=name: kept.update({n: out.permute(0, 3, 1, 2)}))
        for name, module in named.items()
    ]
    outputs = logits(model, x, case)
    outputs |= {f"feat{i}": m for i, m in enumerate(model.forward_intermediates(x, intermediates_only=True))}
    for hook in hooks:
        hook.remove()
    return outputs | kept


def u_mamba_outputs(model: nn.Module, x: Tensor, case: Case) -> dict[str, Tensor]:
    """Logits of every level, and what stem, stages, Mamba layers and decoder steps return."""
    kept: dict[str, Tensor] = {}
    encoder, bottom = model.encoder, "bot" in case.variant
    named = {"stem": encoder.stem}
    named |= {f"enc{i}": stage for i, stage in enumerate(encoder.stages)}
    named |= {f"mamba{i}": mixer for i, mixer in enumerate(encoder.mixers)}
    named |= {f"dec{i}": up for i, up in enumerate(model.decoder.ups)}
    if bottom:
        named["mamba0"] = encoder.mixers[-1]
    hooks = [
        module.register_forward_hook(lambda _, args, out, n=name: kept.update({n: out}))
        for name, module in named.items()
    ]
    maps = model.decode(x)
    for hook in hooks:
        hook.remove()
    levels = [head(level) for head, level in zip([model.head, *model.further_heads], maps, strict=True)]
    return {"logits": model(x), **{f"ds{i}": level for i, level in enumerate(levels)}, **kept}


def light_m_unet_outputs(model: nn.Module, x: Tensor, case: Case) -> dict[str, Tensor]:
    """Logits, and what stem, stages, the first Mamba layer, the first widening and decoder steps return."""
    kept: dict[str, Tensor] = {}
    encoder = model.encoder
    named = {"stem": encoder.stem, "mamba0": encoder.stages[0][2].mamba1, "trans1": encoder.stages[1][1]}
    named |= {f"down{i}": stage for i, stage in enumerate(encoder.stages)}
    named |= {f"up{i}": up for i, up in enumerate(model.decoder.ups)}
    hooks = [
        module.register_forward_hook(lambda _, args, out, n=name: kept.update({n: out}))
        for name, module in named.items()
    ]
    outputs = {"logits": model(x), **kept}
    for hook in hooks:
        hook.remove()
    return outputs


def distance_from_float64(case: Case) -> float:
    """Three times the published code's own distance from float64: instance norms over tiny maps leave no fixed tolerance."""
    return 3 * case.spec["fp64_max_abs_diff"]


def efficient_vim_outputs(model: nn.Module, x: Tensor, case: Case) -> dict[str, Tensor]:
    """Logits, the stem's and the stages' maps, the first mixer's map, and the state that each stage's last mixer reads."""
    kept: dict[str, Tensor] = {}
    last = [stage.blocks[-1].mixer for stage in model.stages]
    hooks = [
        mixer.register_forward_hook(lambda _, args, out, i=i: kept.update({f"state{i}": out[1].transpose(1, 2)}))
        for i, mixer in enumerate(last)
    ]
    first = model.stages[0].blocks[0].mixer
    hooks.append(first.register_forward_hook(lambda _, args, out: kept.update(mixer0=out[0].permute(0, 3, 1, 2))))
    hooks.append(model.stem.register_forward_hook(lambda _, args, out: kept.update(stem=out.permute(0, 3, 1, 2))))
    outputs = hierarchical(model, x, case)
    if "feat2" in case.expected and "feat2" not in outputs:
        outputs["feat2"] = model.forward_intermediates(x, intermediates_only=True)[2]
    for hook in hooks:
        hook.remove()
    return outputs | kept


def scan_across_the_batch(self: ImageScan, x_BSD: Tensor) -> Tensor:
    """MobileMamba's scan as the published code has it on CPUs, where adding up the two routes broadcasts over the batch.

    (model/lib_mamba/csm_tritonk2.py, `cross_merge_fwd`: a map (B, D, L) plus one of (B, 1, D, L) is (B, B, D, L), summed over its
    second axis.) Only the cases with several images need it, and they alone are run with it. Every image gets the forward
    routes of all images and its own reversed route as often. The published kernel for GPUs adds up the two routes of each
    image, as we do; of a single image both are the same.
    """
    u_BLKD, order_KT, _, _ = self.paths(x_BSD.flatten(1, -2), x_BSD)
    y_BLKD = self.scan_tokens(u_BLKD, order_KT, "none", True)
    return (y_BLKD[:, :, 0].sum(0) + len(y_BLKD) * y_BLKD[:, :, 1]).view_as(x_BSD)


def mobile_mamba_outputs(model: nn.Module, x: Tensor, case: Case) -> dict[str, Tensor]:
    """Logits, the stem's and the stages' maps, what the first mixer's wide branch and its scan alone return."""
    kept: dict[str, Tensor] = {}
    wide = model.stages[0].blocks[0].mixer.inner.wide
    hooks = [
        module.register_forward_hook(
            lambda _, args, out, n=name, d=dims: kept.update({n: out.permute(d) if d else out})
        )
        for name, module, dims in (
            ("stem", model.stem, (0, 3, 1, 2)),
            ("wte0", wide, None),
            ("ss2d0", wide.mixer, (0, 3, 1, 2)),
        )
    ]
    with patch.object(ImageScan, "scan", scan_across_the_batch if len(x) > 1 else ImageScan.scan):
        outputs = hierarchical(model, x, case)
    for hook in hooks:
        hook.remove()
    return outputs | kept


def as_published_tokens(model: nn.Module) -> None:
    """Makes VSSD's maps go through memory as the published code has them behind its stem and its downsampling.

    There torch's BatchNorm gives a wrong gradient on CPUs for a single image: a map in the order NCHW whose gradient comes
    from a view of tokens, with a batch stride of its own. The recorded gradients hold that fault, in float64 too, and agree
    with ours to 1e-6 once the layout is the published one. So these cases show that we compute the published function, not that
    its recorded gradients are right: `test_gradients_are_those_of_the_function` shows ours right, by differences, and
    `test_torch_differentiates_batch_norm_wrongly_in_one_layout` the fault by itself.
    """
    for norm in (model.stem.conv5.norm, *(stage.downsample.norm for stage in list(model.stages)[1:])):
        norm.register_forward_pre_hook(lambda _, args: (args[0].contiguous(),))
        norm.register_forward_hook(
            lambda _, args, out: out.flatten(2).transpose(1, 2).unflatten(1, out.shape[2:]).permute(0, 3, 1, 2)
        )


def on_recorded_sides(model: nn.Module) -> None:
    """Puts what lies within 1e-5 of zero before a ReLU or LeakyReLU of SegMamba on the side that the recorded gradients tell of.

    Which side rounding puts it on is chance, and one position of the decoder on the other side moves gradients by 1e-3 of their
    norms. The sides of these 90 positions, of 12 million, were not published: they are those of a float32 run of ours that
    gives the recorded gradients to 2e-5. With them float64 does so too, and every backend in float32. All further sides are
    the model's own.
    """
    with np.load(HERE / "segmamba" / "grad_sides.npz") as file:
        calls, places, positive = (torch.from_numpy(file[name]) for name in ("call", "place", "positive"))
    places = places.long()
    number = itertools.count()

    def activate(x: Tensor, slope: float) -> Tensor:
        here = calls == next(number)
        side = (x.detach() > 0).flatten()
        near = x.detach().flatten()[places[here]]
        assert (near.abs() < 2e-5).all(), "these are not the values of the recorded run"
        side[places[here]] = positive[here]
        return torch.where(side.view(x.shape), x, slope * x)

    for module in model.modules():
        if isinstance(module, nn.ReLU | nn.LeakyReLU):
            module.forward = partial(activate, slope=getattr(module, "negative_slope", 0.0))


@dataclass(frozen=True)
class Family:
    """One folder of cases.

    Args:
        model: registered name for a case.
        options: what `create_model` is given for a case.
        outputs: every checked output of a model for an input; those that a case does not hold are ignored.
        tolerance: largest absolute difference of logits or images, a name in `tests.tolerances`; a function if it depends on
            the case.
        absolute: how the names of the outputs begin that this holds for.
        features: largest difference of the other outputs, relative to their own largest value.
        before_gradients: run on a model before these are taken.
    """

    model: Callable[[Case], str]
    options: Callable[[Case], dict[str, Any]] = field(default=lambda case: {})
    outputs: Callable[[nn.Module, Tensor, Case], dict[str, Tensor]] = logits
    tolerance: str | Callable[[Case], str | float] = "PUBLISHED_LOGITS"
    absolute: tuple[str, ...] = ("logits", "image")
    features: str = "PUBLISHED_FEATURES"
    before_gradients: Callable[[nn.Module], None] = lambda model: None


def same_size(case: Case) -> dict[str, Any]:
    """The image size that a case's position embedding is made for."""
    size = case.spec.get("constructor_override", {}).get("img_size")
    return {} if size is None else {"img_size": tuple(size) if isinstance(size, list) else size}


FAMILIES = {
    "vmamba": Family(lambda case: f"vmamba_{case.variant}", outputs=hierarchical),
    "efficient_vmamba": Family(
        lambda case: f"efficient_vmamba_{case.variant}", options=dense_options, outputs=hierarchical_or_dense
    ),
    "efficient_vim": Family(
        lambda case: f"efficient_vim_{case.variant}",
        outputs=efficient_vim_outputs,
        tolerance="PUBLISHED_SMALL_LOGITS",
    ),
    "group_mamba": Family(lambda case: f"group_mamba_{case.variant}", outputs=hierarchical),
    "light_m_unet": Family(
        lambda case: f"light_m_unet_{case.variant}",
        outputs=light_m_unet_outputs,
        tolerance=lambda case: "PUBLISHED_LOGITS" if case.variant == "2d" else "PUBLISHED_IMAGES_AND_VOLUMES",
        features="PUBLISHED_VOLUME_FEATURES",
    ),
    "local_vim": Family(lambda case: case.variant, options=local_vim_options, outputs=vim_outputs),
    "local_vmamba": Family(lambda case: f"local_vmamba_{case.variant}", outputs=local_vmamba),
    "mair": Family(lambda case: f"mair_{case.variant}", outputs=restored, tolerance="PUBLISHED_IMAGES_AND_VOLUMES"),
    "mamba2d": Family(lambda case: f"mamba2d_{case.variant}", outputs=mamba2d_outputs),
    "mamba_nd": Family(lambda case: f"mamba_nd_{case.variant}", outputs=mamba_nd_outputs),
    "mambair": Family(
        lambda case: f"mambair_{case.variant}",
        outputs=restored,
        tolerance=lambda case: "PUBLISHED_UNET_IMAGES" if case.variant == "real_dn" else "PUBLISHED_IMAGES_AND_VOLUMES",
    ),
    "mambairv2": Family(
        lambda case: f"mambairv2_{case.variant}",
        options=mambairv2_options,
        outputs=mambairv2_outputs,
        tolerance="PUBLISHED_IMAGES_AND_VOLUMES",
    ),
    "mobile_mamba": Family(lambda case: f"mobile_mamba_{case.variant}", outputs=mobile_mamba_outputs),
    "msvmamba": Family(lambda case: f"msvmamba_{case.variant}", options=dense_options, outputs=hierarchical_or_dense),
    "plain_mamba": Family(lambda case: case.variant, outputs=plain_mamba_outputs),
    "segmamba": Family(
        lambda case: f"segmamba_{case.variant}",
        outputs=volume_outputs,
        tolerance="PUBLISHED_IMAGES_AND_VOLUMES",
        before_gradients=on_recorded_sides,
    ),
    "spatial_mamba": Family(lambda case: f"spatial_mamba_{case.variant}", outputs=hierarchical),
    "u_mamba": Family(
        lambda case: f"u_mamba_{case.variant}",
        outputs=u_mamba_outputs,
        tolerance=distance_from_float64,
        absolute=("logits", "ds", "mamba"),
    ),
    "vim": Family(lambda case: case.variant, options=same_size, outputs=vim_outputs),
    "vssd": Family(
        lambda case: f"vssd_{case.variant}",
        options=dense_options,
        outputs=hierarchical_or_dense,
        before_gradients=as_published_tokens,
    ),
}


def stored_part(case: Case, name: str, output: Tensor) -> Tensor:
    """The slice of a full output that the case kept: "[0:1, :8] ..." as text."""
    text = case.stored.get(name)
    if text is None:
        return output
    index = []
    for part in text[1 : text.index("]")].split(","):
        numbers = [int(n) if n.strip() else None for n in part.split(":")]
        index.append(numbers[0] if len(numbers) == 1 else slice(*numbers))
    return output[tuple(index)]


def tolerance(case: Case) -> float:
    """Largest absolute difference of the case's logits or image."""
    bound = FAMILIES[case.family].tolerance
    bound = bound(case) if callable(bound) else bound
    return getattr(tolerances, bound) if isinstance(bound, str) else bound


def torch_weights(case: Case) -> dict[str, Tensor]:
    return {name: torch.from_numpy(value) for name, value in case.weights().items()}
