"""Any picture -> 8 bits of red, green and blue, in sRGB.

The one idea: a file says how its numbers are meant: bits, sign, black or white at 0, a transparent
colour, a colour profile, a rotation. Whoever ignores one of these trains on other colours without
noticing.
"""

import contextlib
import io
import re
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms, ImageOps

BITS, PHOTOMETRIC, FORMAT = 258, 262, 339       # TIFF tags: bits, 0 for white at 0, 2 for signed


def plain_picture(image: Image.Image, ground: str = "white") -> Image.Image:
    """Any picture, just opened -> RGB: rotated as its EXIF data says, converted to sRGB as its
    profile says, and flattened onto a ground."""
    raw, tags = raw_mode(image), dict(getattr(image, "tag_v2", {}))
    if tags.get(PHOTOMETRIC) == 6 and raw == "RGBX" and image.tile[0][0] == "raw":
        raise ValueError("YCbCr without compression, which this version of Pillow reads as RGB")
    image.load()                                # this also rotates a TIFF file
    with contextlib.suppress(Exception):        # damaged EXIF data do not harm the pixels
        image = image if tags else ImageOps.exif_transpose(image)
    profile, key, alpha = image.info.get("icc_profile"), image.info.get("transparency"), None
    if image.mode in ("P", "PA"):
        image = image.convert("RGB" if image.mode == "P" and key is None else "RGBA")
    elif key is not None and image.mode not in ("LA", "RGBA"):
        alpha = Image.fromarray(np.where(is_key(image, key, raw), 0, 255).astype(np.uint8))
    if image.mode[0] in "IF":
        image = Image.fromarray(eight_bits(np.asarray(image), image.mode, tags))
    if image.mode in ("La", "RGBa"):            # colours that are multiplied by their opacity
        image = image.convert(image.mode[:-1] + "A")
    if image.mode in ("LA", "RGBA"):
        image, alpha = image.convert(image.mode[:-1]), image.getchannel("A")
    if image.mode in ("1", "HSV"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    transform = to_srgb(profile, image.mode) if profile or image.mode == "LAB" else None
    image = ImageCms.applyTransform(image, transform) if transform else image.convert("RGB")
    if alpha:
        image.putalpha(alpha)
        image = Image.alpha_composite(Image.new("RGBA", image.size, ground), image).convert("RGB")
    return image


def raw_mode(image: Image.Image) -> str:
    """How the pixels lie in a file that is not loaded yet, in Pillow's words. libtiff gives numbers
    in this machine's byte order. Pillow forgets this for some kinds, so it is told here."""
    codec, *place, how = image.tile[0] if getattr(image, "tile", None) else ("", image.mode)
    raw = how if isinstance(how, str) else str(how[0]) if how else ""
    if codec == "libtiff" and re.search(r";(16|32)B", raw):
        image.tile = [(codec, *place, (raw.replace("B", "N"), *how[1:]))]
    return raw


def is_key(image: Image.Image, key, raw: str) -> np.ndarray:
    """Which pixels (height, width) have the transparent colour `key` of a PNG file. The file gives
    it in its own bits, `raw`; Pillow gives the pixels of all but grey in 8 bits."""
    pixels, key = np.asarray(image), np.array(key)
    if image.mode == "L" and raw[-2:] in (";2", ";4"):
        key = key * (255 // (2**int(raw[-1]) - 1))
    elif image.mode == "RGB" and raw.endswith("16B"):
        key = key >> 8
    return (pixels == key).all(-1) if key.ndim else pixels == key


def eight_bits(pixels: np.ndarray, mode: str, tags: dict) -> np.ndarray:
    """Grey numbers of 12 bits and more, or fractions (height, width) -> 0 to 255, uint8. White is
    the largest number that the file's bits allow. A file of signed numbers or fractions does not
    say what white is; then it is the least usual one that no pixel exceeds."""
    bits, signed = tags.get(BITS, (16,))[0], tags.get(FORMAT, (1,))[0] == 2
    if mode == "I" and tags and bits == 32 and not signed:
        pixels = pixels.view(np.uint32)
    deep = np.nan_to_num(pixels.astype(np.float64))
    usual = {"F": (1, 255, 65535), "I": (65535, 2**31 - 1)}.get(mode, (2**bits - 1,))
    if mode == "I" and tags:
        usual = (2**(bits - signed) - 1,) if bits < 32 or not signed else usual
    white = next((w for w in usual if deep.max() <= w), deep.max())
    deep = white - deep if tags.get(PHOTOMETRIC) == 0 else deep
    return (deep / white * 255).round().clip(0, 255).astype(np.uint8)


@lru_cache(maxsize=16)
def to_srgb(profile: bytes | None, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From a mode and an ICC profile (None: LAB's own) to sRGB. None if the profile is damaged or
    is one of other colours than the mode's: then it is ignored, as browsers do."""
    try:
        source = (ImageCms.ImageCmsProfile(io.BytesIO(profile)) if profile
                  else ImageCms.createProfile("LAB"))
        return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return to_srgb(None, mode) if profile and mode == "LAB" else None


def fit_picture(image: Image.Image, side: int) -> np.ndarray:
    """Any picture -> (side, side, 3) uint8: RGB, scaled so that the shorter side fits, and cropped
    at the centre. As in ADM's preprocessing, it is halved by box filters while it is twice too
    large, and then scaled once by a bicubic filter."""
    image = plain_picture(image)
    while min(image.size) >= 2 * side:
        image = image.resize((image.width // 2, image.height // 2), Image.BOX)
    scale = side / min(image.size)
    width, height = (max(side, round(s * scale)) for s in image.size)
    left, top = (width - side) // 2, (height - side) // 2
    # Only the crop is scaled: a strip one pixel wide would grow to millions of rows.
    box = (left / scale, top / scale, min(image.width, (left + side) / scale),
           min(image.height, (top + side) / scale))
    return np.asarray(image.resize((side, side), Image.BICUBIC, box=box))
