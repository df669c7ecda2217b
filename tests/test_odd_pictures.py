"""Odd picture files, made byte by byte: each must come out of `plain_picture` as its format says.

75 png, 203 tiff, 22 pnm, 7 bmp, 2 gif, 14 jpeg, 9 webp, 20 icc; 32 damaged. They differ in depth,
transparency, byte order, sign, compression, orientation and colour profile.

The small encoders below know the numbers that they write, so the expected pixels follow from the
formats' specifications. Only the colours of ICC profiles come from the library that Pillow uses.
Pillow itself can't read some TIFF files, or misreads them. They may end in an exception, but never
in wrong pixels.
"""

import io
import resource
import struct
import sys
import time
import zlib
from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageCms

from arpg_mini.data.folders import plain_picture

HEIGHT, WIDTH = 6, 9                            # all seven passes of an interlaced PNG have pixels
rng = np.random.default_rng(0)
TABLE = {}                                      # name: bytes, expected pixels, tolerance
REFUSED = set()                                 # names of files that may end in an exception


def add(name, data, expected, tolerance=0, refused=False):
    assert name not in TABLE
    TABLE[name] = data, np.asarray(expected, np.float64).clip(0, 255).round(), tolerance
    REFUSED.update([name] * refused)


def numbers(bits, channels=1):
    """Random numbers of so many bits. The first pixel is all 0, the second the largest number."""
    made = rng.integers(0, 2**bits, (HEIGHT, WIDTH, channels), np.uint32)
    made[0, 0], made[0, 1] = 0, 2**bits - 1
    return made


def grey(values, white):
    return (values / white).repeat(3, axis=-1) * 255


def on_white(colours, alpha):
    return colours * alpha + 255 * (1 - alpha)


def rows(samples, bits, order=">"):
    """The bytes of each row. Numbers of 1 to 8 bits, or of 12, are packed from the top bit on."""
    if bits in (16, 32):
        return [r.astype(f"{order}{r.dtype.kind}{bits // 8}").tobytes() for r in samples]
    return [np.packbits((r[..., None] >> np.arange(bits)[::-1] & 1).astype(np.uint8)).tobytes()
            for r in samples]


PASSES = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2),
          (1, 0, 2, 1)]                         # of Adam7: top, left, step down, step right
PALETTE, ALPHAS = rng.integers(0, 256, (256, 3), np.uint8), rng.integers(0, 256, 256, np.uint8)
ALPHAS[:2] = 0, 128


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(samples, bits, colour, *chunks, laced=False):
    size = struct.pack(">IIBBBBB", *samples.shape[1::-1], bits, colour, 0, 0, laced)
    raw = b"".join(b"\0" + row for top, left, down, right in (PASSES if laced else [(0, 0, 1, 1)])
                   for row in rows(samples[top::down, left::right], bits))
    return b"\x89PNG\r\n\x1a\n" + b"".join([
        chunk(b"IHDR", size), *chunks, chunk(b"IDAT", zlib.compress(raw)), chunk(b"IEND", b"")])


def add_pngs(laced):
    def file(name, colour, expected, tolerance, *chunks):
        add(f"png {name} {bits} bits{', interlaced' if laced else ''}",
            png(samples, bits, colour, *chunks, laced=laced), expected, tolerance)

    for bits in (1, 2, 4, 8, 16):
        samples, top, near = numbers(bits), 2**bits - 1, int(bits == 16)
        key = samples[1, 1] = samples[0, 2] = (2**bits - 2) * 5 // 8
        samples[2, 2] = key ^ 1                 # at 16 bits, of the same high byte
        file("grey", 0, grey(samples, top), near)
        file("grey, transparent value,", 0, on_white(grey(samples, top), samples != key), near,
             chunk(b"tRNS", struct.pack(">H", key)))
        if bits < 16:
            plte, colours = chunk(b"PLTE", PALETTE[:top + 1].tobytes()), PALETTE[samples[..., 0]]
            file("palette", 3, colours, 0, plte)
            file("palette, graded alpha,", 3, on_white(colours, ALPHAS[samples] / 255), 1, plte,
                 chunk(b"tRNS", ALPHAS[:top + 1].tobytes()))
            file("palette, transparent index,", 3, on_white(colours, samples != 1), 0, plte,
                 chunk(b"tRNS", b"\xff\0"))
        if bits >= 8:
            samples = numbers(bits, 3)
            key = samples[1, 1] = samples[3, 4]
            hidden = (samples == key).all(-1, keepdims=True)
            file("RGB", 2, samples * 255 / top, near)
            file("RGB, transparent colour,", 2, on_white(samples * 255 / top, ~hidden), near,
                 chunk(b"tRNS", struct.pack(">3H", *key)))
            samples = numbers(bits, 2)
            file("grey and alpha", 4, on_white(grey(samples[..., :1], top), samples[..., 1:] / top),
                 1 + near)
            samples = numbers(bits, 4)
            file("RGBA", 6, on_white(samples[..., :3] * 255 / top, samples[..., 3:] / top),
                 1 + near)


add_pngs(False)
add_pngs(True)


def tiff(order, strips, bits, photometric, channels=1, packed=False, tags={}):
    """A TIFF file of one strip, or of one per channel."""
    strips = [zlib.compress(s) if packed else s for s in strips]
    body = b"".join(strips) + b"\0" * (sum(map(len, strips)) % 2)
    entries = b""
    for tag, values in sorted(({
            256: [WIDTH], 257: [HEIGHT], 258: [bits] * channels, 259: [8 if packed else 1],
            262: [photometric], 273: [8 + sum(map(len, strips[:i])) for i in range(len(strips))],
            277: [channels], 278: [HEIGHT], 279: [len(s) for s in strips],
            284: [1 if len(strips) == 1 else 2]} | tags).items()):
        kind = 7 if isinstance(values, bytes) else 4 if max(values) > 65535 else 3
        raw = values if kind == 7 else b"".join(struct.pack(order + " HI"[kind - 2], v)
                                                for v in values)
        if len(raw) > 4:
            raw, body = struct.pack(order + "I", 8 + len(body)), body + raw + b"\0" * (len(raw) % 2)
        entries += struct.pack(order + "HHI", tag, kind, len(values)) + raw.ljust(4, b"\0")
    return (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8 + len(
        body)) + body + struct.pack(order + "H", len(entries) // 12) + entries + b"\0" * 4


def from_lab(lab):
    """CIE L*a*b* of illuminant D50 -> sRGB."""
    y = (lab[..., 0] + 16) / 116
    f = np.stack([y + lab[..., 1] / 500, y, y - lab[..., 2] / 200], -1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * [0.9642, 1, 0.8249]
    linear = xyz @ [[3.13386, -0.97877, 0.07195], [-1.61687, 1.91614, -0.22899],
                    [-0.49061, 0.03345, 1.40524]]
    return 255 * np.where(linear > 0.0031308, 1.055 * linear.clip(0) ** (1 / 2.4) - 0.055,
                          linear * 12.92)


def ink(cmyk):
    """Cyan, magenta, yellow and black from 0 to 1 -> RGB."""
    return 255 * (1 - cmyk[..., :3]) * (1 - cmyk[..., 3:])


def add_tiffs(order, packed):
    big, end = order == ">", f", {'II' if order == '<' else 'MM'}{', deflated' if packed else ''}"

    def file(name, samples, bits, photometric, expected, tolerance=0, refused=False, **tags):
        add(f"tiff {name}{end}", tiff(order, [b"".join(rows(samples, bits, order))], bits,
                                      photometric, samples.shape[-1], packed,
                                      {int(tag[1:]): value for tag, value in tags.items()}),
            expected, tolerance, refused)

    for bits in (1, 2, 4, 8, 12, 16, 32):
        samples, top, near = numbers(bits), 2**bits - 1, int(bits > 8)
        file(f"grey {bits} bits", samples, bits, 1, grey(samples, top), near,
             big and bits in (12, 32))
        file(f"grey {bits} bits, white is 0", samples, bits, 0, grey(top - samples, top), near,
             bits in (12, 32) or big and bits == 16)
    swapped = big and packed                    # Pillow reads such files, but swaps bytes twice
    for bits, white, least, most in ((16, 32767, -32768, 32767), (32, 2**31 - 1, -2**31, 2**31 - 1),
                                     (32, 65535, -70000, 65535), (32, 65535, 0, 20000)):
        samples = rng.integers(least, most, (HEIGHT, WIDTH, 1), np.int32, endpoint=True)
        samples[0, :2, 0] = least, most
        file(f"grey {bits} bits, signed, {least} to {most}", samples, bits, 1, grey(samples, white),
             1, swapped, t339=[2])
    for most, white in ((0.3, 1), (1, 1), (200, 255), (3000, 65535), (1e6, 1e6)):
        samples = rng.uniform(-most / 4, most, (HEIGHT, WIDTH, 1)).astype(np.float32)
        samples[0, 1] = most
        file(f"float up to {most}", samples, 32, 1, grey(samples, white), 1, swapped, t339=[3])
    samples = rng.uniform(0, 1, (HEIGHT, WIDTH, 1)).astype(np.float32)
    file("float, white is 0", samples, 32, 0, grey(1 - samples, 1), 1, swapped, t339=[3])
    samples[::2, ::2] = np.nan
    file("float with NaN", samples, 32, 1, grey(np.nan_to_num(samples), 1), 1, swapped, t339=[3])

    for bits in (8, 16):
        samples, top, near = numbers(bits, 4), 2**bits - 1, int(bits == 16)
        rgb, alpha = samples[..., :3] * 255 / top, samples[..., 3:] / top
        file(f"RGB {bits} bits", samples[..., :3], bits, 2, rgb, near)
        file(f"RGB {bits} bits and a sample of no meaning", samples, bits, 2, rgb, near, t338=[0])
        file(f"RGBA {bits} bits", samples, bits, 2, on_white(rgb, alpha), 1 + near, t338=[2])
        file(f"CMYK {bits} bits", samples, bits, 5, ink(samples / top), 1 + near)
        held = (samples * [1, 1, 1, 0] * alpha + samples * [0, 0, 0, 1]).astype(int)
        file(f"RGBA {bits} bits, associated alpha", held, bits, 2,
             held[..., :3] * 255 / top + 255 * (1 - alpha), 1 + 2 * near, t338=[1])
    samples = numbers(8, 3)
    add(f"tiff RGB, channel by channel{end}", tiff(order, [samples[..., i].astype(
        np.uint8).tobytes() for i in range(3)], 8, 2, 3, packed), samples)
    samples = numbers(8, 2)
    index, alpha = samples[..., :1], samples[..., 1:] / 255
    file("grey and a sample of no meaning", samples, 8, 1, grey(index, 255), t338=[0])
    file("grey and alpha", samples, 8, 1, on_white(grey(index, 255), alpha), 1, t338=[2])
    held = np.concatenate([(index * alpha).astype(int), samples[..., 1:]], -1)
    file("grey and associated alpha", held, 8, 1, grey(held[..., :1], 255) + 255 * (1 - alpha), 1,
         t338=[1])
    for bits in (1, 2, 4, 8):
        indices, table = numbers(bits), (PALETTE[:2**bits].T.astype(int) * 257).ravel().tolist()
        file(f"palette {bits} bits", indices, bits, 3, PALETTE[indices[..., 0]], t320=table)
    file("palette and alpha", samples, 8, 3, on_white(PALETTE[index[..., 0]], alpha), 1,
         t338=[2], t320=table)
    samples = numbers(8, 3)
    ycc = samples @ [[1, 1, 1], [0, -0.344136, 1.772], [1.402, -0.714136, 0]]
    file("YCbCr", samples, 8, 6, ycc - 128 * np.array([1.402, -1.058272, 1.772]), 2, t530=[1, 1])
    lab = rng.integers([130, -12, -12], [220, 13, 13], (HEIGHT, WIDTH, 3))
    file("LAB", lab, 8, 8, from_lab(lab * [100 / 255, 1, 1]), 2)


for order in "<>":
    add_tiffs(order, False)
    add_tiffs(order, True)

for maxval in (1, 100, 255, 4095, 65535):
    for magic, how in ((2, "plain"), (5, "raw")):
        for channels, what in ((1, "grey"), (3, "RGB")):
            samples = rng.integers(0, maxval + 1, (HEIGHT, WIDTH, channels))
            samples[0, 0] = maxval
            raw = (b" ".join(b"%d" % v for v in samples.ravel()) if how == "plain"
                   else b"".join(rows(samples, 8 if maxval < 256 else 16)))
            add(f"pnm {what} up to {maxval}, {how}",
                f"P{magic + channels // 3}\n# odd\n{WIDTH} {HEIGHT}\n{maxval}\n".encode() + raw,
                samples * np.full(3, 255 / maxval), int(maxval != 255))
samples, size = numbers(1), f"{WIDTH} {HEIGHT}\n".encode()
plain = b" ".join(b"%d" % v for v in samples.ravel())
add("pnm bits, plain", b"P1 " + size + plain, grey(samples == 0, 1))
add("pnm bits, raw", b"P4 " + size + b"".join(rows(samples, 1)), grey(samples == 0, 1))


def bmp(lines, bits, after=b"", packing=0, header=40, up=True):
    """`after` is what follows the header of 40 bytes: masks or a palette."""
    data = b"".join(line + b"\0" * (-len(line) % 4) for line in lines[::-1 if up else 1])
    start = 54 + len(after)
    return b"BM" + struct.pack(
        "<IIIIiiHHIIiiII", start + len(data), 0, start, header, WIDTH, HEIGHT if up else -HEIGHT, 1,
        bits, packing, len(data), 0, 0, 0, 0) + after + data


for bits in (1, 4, 8):
    samples, table = numbers(bits), np.pad(PALETTE[:2**bits, ::-1], ((0, 0), (0, 1))).tobytes()
    add(f"bmp palette {bits} bits", bmp(rows(samples, bits), bits, table), PALETTE[samples[..., 0]])
samples = numbers(8, 4)
rgb, alpha = samples[..., :3], samples[..., 3:] / 255
lines, full = rows(rgb[..., ::-1], 8), rows(samples[..., [2, 1, 0, 3]], 8)
add("bmp RGB 24 bits", bmp(lines, 24), rgb)
add("bmp RGB 24 bits, from the top", bmp(lines, 24, up=False), rgb)
add("bmp RGB 32 bits, a byte of no meaning", bmp(full, 32), rgb)
add("bmp RGBA 32 bits", bmp(full, 32, struct.pack("<4I", 255 << 16, 255 << 8, 255, 255 << 24), 3,
                            header=56), on_white(rgb, alpha), 1)


def gif(samples, *extra):
    """Four colours. The codes start anew after every two pixels, so each has three bits."""
    codes = np.append(np.insert(samples.reshape(-1, 2), 0, 4, axis=1), 5)
    data = np.packbits((codes[:, None] >> np.arange(3) & 1).astype(np.uint8), bitorder="little")
    return (b"GIF89a" + struct.pack("<HHBBB", WIDTH, HEIGHT, 0x91, 0, 0) + PALETTE[:4].tobytes()
            + bytes(extra) + struct.pack("<BHHHHBBB", 44, 0, 0, WIDTH, HEIGHT, 0, 2, len(data))
            + data.tobytes() + b"\0;")


samples = numbers(2)
colours = PALETTE[samples[..., 0]]
add("gif", gif(samples), colours)
add("gif, transparent index", gif(samples, 33, 249, 4, 1, 0, 0, 2, 0),
    on_white(colours, samples != 2))


def saved(picture, kind, **how):
    """The file that Pillow writes."""
    file = io.BytesIO()
    (Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture).save(
        file, kind, **how)
    return file.getvalue()


def turned(picture, n):
    """A stored picture as it is to be shown, for the eight orientations of EXIF."""
    picture = picture.transpose(1, 0, 2) if n > 4 else picture
    return picture[::-1 if n in (3, 4, 7, 8) else 1, ::-1 if n in (2, 3, 6, 7) else 1]


def exif(n):
    return b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 274, 3, 1, n, 0, 0)


tiles = rng.integers(0, 256, (2, 3, 4), np.uint8).repeat(16, 0).repeat(16, 1)   # JPEG keeps them
photo, best = tiles[..., :3].copy(), {"quality": 100, "subsampling": 0}
small = photo[:16, :16]
add("jpeg RGB", saved(photo, "JPEG", **best), photo, 2)
add("jpeg RGB, progressive", saved(photo, "JPEG", progressive=True, **best), photo, 2)
add("jpeg RGB, not as YCbCr", saved(photo, "JPEG", keep_rgb=True, **best), photo, 2)
add("jpeg RGB, colours at half size", saved(small, "JPEG", quality=100, subsampling=2), small, 2)
add("jpeg grey", saved(photo[..., 0], "JPEG", quality=100), grey(photo[..., :1], 255), 2)
add("jpeg CMYK", saved(Image.fromarray(tiles, "CMYK"), "JPEG", quality=100), ink(tiles / 255), 3)
samples = numbers(8, 4).astype(np.uint8)
rgb, dark, alpha = samples[..., :3], samples[..., :1], samples[..., 3:] / 255
strip, lossless = rgb.tobytes(), {"lossless": True, "exact": True}
for n in range(1, 9):
    add(f"jpeg orientation {n}", saved(photo, "JPEG", exif=b"Exif\0\0" + exif(n), **best),
        turned(photo, n), 2)
    add(f"png orientation {n}", png(rgb, 8, 2, chunk(b"eXIf", exif(n))), turned(rgb, n))
    add(f"tiff orientation {n}", tiff("<", [strip], 8, 2, 3, tags={274: [n]}), turned(rgb, n))
    add(f"webp orientation {n}", saved(rgb, "WEBP", exif=b"Exif\0\0" + exif(n), **lossless),
        turned(rgb, n))
add("webp RGBA", saved(samples, "WEBP", **lossless), on_white(rgb, alpha), 1)

index, pair = (Image.frombytes(mode, (WIDTH, HEIGHT), samples[..., :2 * len(mode):3].tobytes())
               for mode in ("P", "PA"))
index.putpalette(PALETTE.tobytes())
pair.putpalette(PALETTE.tobytes())
deep = numbers(16).astype(np.uint16)
part = rng.uniform(0, 1, (HEIGHT, WIDTH, 1)).astype(np.float32)
colours = PALETTE[samples[..., 0]]
for kinds, mode, picture, expected, near in (
        ("PNG TIFF", "1", samples[..., 0] > 99, grey(dark > 99, 1), 0),
        ("PNG TIFF", "L", samples[..., 0], grey(dark, 255), 0),
        ("PNG TIFF", "LA", samples[..., ::3], on_white(grey(dark, 255), alpha), 1),
        ("PNG TIFF", "P", index, colours, 0), ("TIFF", "PA", pair, on_white(colours, alpha), 1),
        ("PNG TIFF", "RGB", rgb, rgb, 0), ("PNG TIFF", "RGBA", samples, on_white(rgb, alpha), 1),
        ("TIFF", "CMYK", Image.fromarray(samples, "CMYK"), ink(samples / 255), 1),
        ("PNG TIFF", "I;16", deep[..., 0], grey(deep, 65535), 1),
        ("TIFF", "I", deep[..., 0].astype(np.int32), grey(deep, 65535), 1),
        ("TIFF", "F", part[..., 0], grey(part, 1), 1)):
    for kind in kinds.split():
        how = {"compression": "tiff_lzw"} if kind == "TIFF" else {}
        add(f"{kind.lower()} of Pillow's {mode}", saved(picture, kind, **how), expected, near)


def xyz(*values):
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(v * 65536) for v in values))


def profile(space, **tags):
    """An ICC profile of a screen: its colours are relative to D50, as in every profile."""
    at, names, body = 132 + 12 * len(tags), b"", b""
    for name, value in tags.items():
        names += name.encode() + struct.pack(">II", at + len(body), len(value))
        body += value + b"\0" * (-len(value) % 4)
    return struct.pack(">I4xI4s4s4s12x4s28x12s48xI", at + len(body), 0x04200000, b"mntr", space,
                       b"XYZ ", b"acsp", D50[8:], len(tags)) + names + body


D50, SRGB = xyz(0.9642, 1, 0.8249), ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
curve = b"para\0\0\0\0\0\3\0\0" + struct.pack(">5i", *(round(65536 * v) for v in (
    2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)))
P3 = profile(b"RGB ", wtpt=D50, rTRC=curve, gTRC=curve, bTRC=curve,             # Display P3
             rXYZ=xyz(0.51512, 0.24120, -0.00105), gXYZ=xyz(0.29198, 0.69225, 0.04189),
             bXYZ=xyz(0.15710, 0.06657, 0.78407))
DARK = profile(b"GRAY", wtpt=D50, kTRC=b"curv\0\0\0\0" + struct.pack(">IH", 1, 358))  # gamma 1.4


def in_srgb(picture, icc):
    return np.asarray(ImageCms.profileToProfile(Image.fromarray(picture), ImageCms.ImageCmsProfile(
        io.BytesIO(icc)), SRGB, outputMode="RGB"))


def iccp(icc):
    return chunk(b"iCCP", b"odd\0\0" + zlib.compress(icc))


wide, gamma = in_srgb(rgb, P3), in_srgb(samples[..., 0], DARK)
jpeg = saved(photo, "JPEG", icc_profile=P3, **best)
decoded = np.asarray(Image.open(io.BytesIO(jpeg)))
for name, data, expected in (
        ("png RGB", png(rgb, 8, 2, iccp(P3)), wide),
        ("png RGB, transparent colour", png(rgb, 8, 2, iccp(P3), chunk(b"tRNS", struct.pack(
            ">3H", *rgb[1, 1]))), on_white(wide, (rgb != rgb[1, 1]).any(-1, keepdims=True))),
        ("png RGB 16 bits", png(rgb.astype(int) * 257, 16, 2, iccp(P3)), wide),
        ("png RGBA", png(samples, 8, 6, iccp(P3)), on_white(wide, alpha)),
        ("png palette", png(dark, 8, 3, iccp(P3), chunk(b"PLTE", PALETTE.tobytes())),
         in_srgb(colours, P3)),
        ("tiff RGB", tiff(">", [strip], 8, 2, 3, tags={34675: P3}), wide),
        ("webp RGBA", saved(samples, "WEBP", icc_profile=P3, **lossless), on_white(wide, alpha)),
        ("jpeg", jpeg, in_srgb(decoded, P3)),
        ("jpeg orientation 6", saved(photo, "JPEG", icc_profile=P3, exif=b"Exif\0\0" + exif(6),
                                     **best), turned(in_srgb(decoded, P3), 6)),
        ("png grey", png(dark, 8, 0, iccp(DARK)), gamma),
        ("png grey 16 bits", png(dark.astype(int) * 257, 16, 0, iccp(DARK)), gamma),
        ("png grey and alpha", png(samples[..., ::3], 8, 4, iccp(DARK)), on_white(gamma, alpha)),
        ("png RGB of sRGB", png(rgb, 8, 2, iccp(SRGB.tobytes())), rgb)):
    add(f"icc {name}", data, expected, 2)
for what, icc in (("text", b"none"), ("half", P3[:250]), ("empty", b""), ("of grey", DARK)):
    add(f"icc ignored: {what}, png RGB", png(rgb, 8, 2, iccp(icc)), rgb)
add("icc ignored: of RGB, png grey", png(dark, 8, 0, iccp(P3)), grey(dark, 255))
add("icc ignored: of RGB, png grey and alpha", png(samples[..., ::3], 8, 4, iccp(P3)),
    on_white(grey(dark, 255), alpha), 1)
add("icc ignored: of RGB, tiff CMYK", tiff("<", [samples.tobytes()], 8, 5, 4, tags={34675: P3}),
    ink(samples / 255), 1)

WHOLE = {"png": png(samples, 8, 6), "tiff": tiff("<", [strip], 8, 2, 3),
         "deflated tiff": tiff(">", [strip], 8, 2, 3, True)} | {
    name.split()[0]: TABLE[name][0] for name in (
        "jpeg RGB", "bmp RGB 24 bits", "gif", "pnm RGB up to 255, raw", "webp RGBA")}
DAMAGED = {"nothing": b"", "text": b"no picture"}
for name, data in WHOLE.items():
    DAMAGED[f"half of a {name}"] = data[:len(data) // 2]
    DAMAGED[f"{name}, other first byte"] = bytes([data[0] ^ 255]) + data[1:]
data = WHOLE["png"]
at = data.index(b"IDAT") - 4
DAMAGED |= {
    "png, wrong checksum of IHDR": data[:29] + bytes([data[29] ^ 1]) + data[30:],
    "png, wrong checksum of IDAT": data[:-13] + bytes([data[-13] ^ 1]) + data[-12:],
    "png, IDAT of text": data[:at] + chunk(b"IDAT", b"odd" * 9) + data[-12:],
    "png without pixels": data[:at] + data[-12:],
    "png without its palette": png(dark, 8, 3),
    "png of width 0": png(samples[:, :0], 8, 6),
    "tiff, strip outside": tiff("<", [strip], 8, 2, 3, tags={273: [10**6]}),
    "tiff, directory in a circle": WHOLE["tiff"][:-4] + WHOLE["tiff"][4:8],
    "huge png": data[:8] + chunk(b"IHDR", struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 6, 0, 0,
                                                      0)) + data[33:],
    "huge tiff": tiff("<", [strip], 8, 2, 3, tags={256: [2**31], 257: [2**31]}),
    "huge bmp": WHOLE["bmp"][:18] + struct.pack("<ii", 2**30, 2**30) + WHOLE["bmp"][26:],
    "huge pnm": b"P6 20000 20000 255 " + strip,
    "huge jpeg": WHOLE["jpeg"].replace(struct.pack(">HH", *photo.shape[:2]), b"\x4e\x20" * 2),
    "huge gif": WHOLE["gif"].replace(struct.pack("<HH", WIDTH, HEIGHT), b"\x40\x9c" * 2)}


@pytest.mark.parametrize("name", TABLE)
def test_an_odd_picture_has_the_pixels_that_its_format_says(name):
    data, expected, tolerance = TABLE[name]
    try:
        picture = plain_picture(Image.open(io.BytesIO(data)))
    except Exception:  # a codec may raise anything
        assert name in REFUSED
        return
    assert picture.mode == "RGB" and picture.size == expected.shape[1::-1]
    off = np.abs(np.asarray(picture) - expected).max(-1)
    assert off.max() <= tolerance, f"{(off > tolerance).mean():.0%} of the pixels"


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("name", DAMAGED)
def test_damage_ends_in_an_exception_or_a_picture_soon_and_in_little_memory(name):
    start, before, picture = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF), None
    try:
        picture = plain_picture(Image.open(io.BytesIO(DAMAGED[name])))
    except Exception:  # a codec may raise anything
        pass
    assert picture is None or picture.mode == "RGB" and picture.size == (WIDTH, HEIGHT)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before.ru_maxrss
    assert grown * (1 if sys.platform == "darwin" else 1024) < 2**30
    assert time.monotonic() - start < 20


def test_the_table_has_at_least_a_hundred_pictures_and_the_docstring_counts_them():
    counts = Counter(name.split()[0].rstrip(",") for name in TABLE)
    said = ", ".join(f"{n} {kind}" for kind, n in counts.items())
    assert f"{said}; {len(DAMAGED)} damaged" in " ".join(__doc__.split()) and len(TABLE) >= 100
