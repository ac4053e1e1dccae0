"""Picture files in and out: 8 and 16 bits, grey, colour, transparency, EXIF orientation, colour profiles."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from visionssm.data.classification import CorruptImage
from visionssm.data.errors import DataError

__all__ = ["Picture", "encode_picture", "read_picture"]

_MODES = {  # Pillow's mode -> (the mode to work in, what to tell)
    "L": ("L", None),
    "LA": ("LA", None),
    "RGB": ("RGB", None),
    "RGBA": ("RGBA", None),
    "1": ("L", "black-and-white converted to grey"),
    "P": ("RGB", "palette converted to RGB"),
    "PA": ("RGBA", "palette converted to RGB"),
    "CMYK": ("RGB", "CMYK converted to RGB, without colour management"),
    "YCbCr": ("RGB", "YCbCr converted to RGB"),
    "LAB": ("RGB", "LAB converted to RGB"),
    "RGBa": ("RGBA", "premultiplied alpha undone"),
    "La": ("LA", "premultiplied alpha undone"),
}
_DEEP = {"PNG", "TIFF"}  # formats with 16 bits, which Pillow would cut to 8 in colour
_ORIENTATION = 0x0112
_UPRIGHT = {  # EXIF orientation -> what makes the picture upright
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A decoded picture, upright.

    Args:
        pixels: (H, W, 1 or 3) uint8 or uint16.
        alpha: (H, W, 1) of the same dtype, or None.
        profile: ICC colour profile, or None.
        note: What had to be converted, or None.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    profile: bytes | None = None
    note: str | None = None


def read_picture(path: str | Path, *, convert: bool = False) -> Picture:
    """Decodes a picture file in full. Of files with several pictures the first is read.

    Args:
        path: The file.
        convert: Take palette, CMYK, YCbCr, LAB and 1-bit pictures, too, as 8-bit RGB or grey, which `note` says.

    Raises:
        CorruptImage: If it cannot be decoded.
        DataError: If it does not exist, or its pixels are of a kind that cannot be restored (32-bit, float) or would have to be
            converted.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            deep = _read_deep(data) if image.format in _DEEP else None
            profile = image.info.get("icc_profile")
            if deep is not None:
                turn = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1), lambda a: a)
                return _split(np.ascontiguousarray(turn(deep)), profile, None)
            if image.mode not in _MODES:
                raise DataError(
                    f"{path}: pixels of mode {image.mode!r} cannot be restored; save it with 8 or 16 bits per channel"
                )
            mode, note = _MODES[image.mode]
            if note is not None and not convert:
                raise DataError(
                    f"{path}: pixels of mode {image.mode!r} are neither grey nor RGB; convert the file, or allow it with "
                    f"--convert ({note})"
                )
            if mode == "RGB" and "transparency" in image.info:
                mode = "RGBA"
            elif mode == "L" and "transparency" in image.info:
                mode = "LA"
            upright = ImageOps.exif_transpose(image.convert(mode) if mode != image.mode else image)
            pixels = np.asarray(upright)
    except (OSError, SyntaxError, ValueError, EOFError, cv2.error, Image.DecompressionBombError) as error:
        if isinstance(error, DataError):
            raise
        if isinstance(error, FileNotFoundError):
            raise DataError(f"no such image: {path}") from error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CorruptImage(f"cannot read image {path}: {reason}") from error
    if note and note.startswith("CMYK"):
        profile = None  # one of four inks says nothing about RGB
    return _split(pixels, profile, note)


def _read_deep(data: bytes) -> np.ndarray | None:
    """The pixels in RGB order if the file has 16 bits per channel, else None."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16:
        return None
    if pixels.ndim == 3 and pixels.shape[2] >= 3:
        pixels = pixels[..., [2, 1, 0, *range(3, pixels.shape[2])]]
    return pixels


def _split(pixels: np.ndarray, profile: bytes | None, note: str | None) -> Picture:
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.shape[2] in (2, 4):
        return Picture(pixels=pixels[..., :-1], alpha=pixels[..., -1:], profile=profile, note=note)
    return Picture(pixels=pixels, profile=profile, note=note)


def encode_picture(picture: Picture, suffix: str = ".png") -> bytes:
    """The bytes of a picture file.

    Args:
        picture: What to write.
        suffix: ".png", ".tif", ".webp" (lossless all three) or ".jpg" (quality 95); 16 bits and transparency as far as the
            format has them.

    Raises:
        DataError: If the format cannot hold the picture.
    """
    suffix = suffix.lower()
    formats = {
        ".png": "PNG",
        ".tif": "TIFF",
        ".tiff": "TIFF",
        ".webp": "WEBP",
        ".jpg": "JPEG",
        ".jpeg": "JPEG",
    }
    if suffix not in formats:
        raise DataError(f"cannot write {suffix!r} files; known: {', '.join(formats)}")
    pixels = picture.pixels
    if picture.alpha is not None:
        pixels = np.concatenate([pixels, picture.alpha], 2)
    if pixels.dtype == np.uint16:
        return _encode_deep(pixels, suffix, formats[suffix])
    if formats[suffix] == "JPEG" and picture.alpha is not None:
        raise DataError("JPEG has no transparency; write a .png instead")
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    buffer = io.BytesIO()
    options = {"PNG": {"compress_level": 3}, "WEBP": {"lossless": True}, "JPEG": {"quality": 95}, "TIFF": {}}
    image.save(buffer, formats[suffix], icc_profile=picture.profile, **options[formats[suffix]])
    return buffer.getvalue()


def _encode_deep(pixels: np.ndarray, suffix: str, kind: str) -> bytes:
    if kind not in _DEEP:
        raise DataError(f"{suffix} files hold 8 bits per channel, this picture has 16; write a .png or .tif instead")
    if pixels.shape[2] == 2:  # OpenCV has no grey with transparency
        pixels = pixels[..., [0, 0, 0, 1]]
    if pixels.shape[2] >= 3:
        pixels = pixels[..., [2, 1, 0, *range(3, pixels.shape[2])]]
    done, data = cv2.imencode(suffix, pixels)
    if not done:
        raise DataError(f"cannot encode a picture of shape {pixels.shape} as {suffix}")
    return data.tobytes()
