"""Odd picture files, made byte by byte: each must come out of `plain_picture` as its format says.

COUNTS
The expected pixels are computed here, from the numbers that were written and the specification of
the format. Only colours of ICC profiles come from the library that Pillow has for them.
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
REFUSED = set()                                 # Pillow can't read them: an exception is right, too


def add(name, data, expected, tolerance=0, refused=False):
    assert name not in TABLE
    TABLE[name] = data, np.asarray(expected, np.float64), tolerance
    if refused:
        REFUSED.add(name)


def numbers(bits, channels=1):
    """Random numbers of so many bits. The first pixel is all 0, the second all ones."""
    made = rng.integers(0, 2**bits, (HEIGHT, WIDTH, channels))
    made[0, 0], made[0, 1] = 0, 2**bits - 1
    return made


def grey(values, white):
    return (values / white).clip(0, 1).repeat(3, axis=-1) * 255


def on_white(colours, alpha):
    """Colours from 0 to 255 and alpha from 0 to 1 -> the colours on a white ground."""
    return colours * alpha + 255 * (1 - alpha)


def rows(samples, bits, order=">"):
    """The bytes of each row. Numbers of less than 8 bits, or of 12, are packed from the top bit."""
    if samples.dtype.kind == "f" or bits in (16, 32):
        kind = samples.dtype.kind
        return [row.astype(f"{order}{kind}{bits // 8}").tobytes() for row in samples]
    ones = samples[..., None] >> np.arange(bits)[::-1] & 1
    return [np.packbits(row.astype(np.uint8)).tobytes() for row in ones]


# PNG --------------------------------------------------------------------------------------------

PASSES = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2),
          (1, 0, 2, 1)]                         # of Adam7: top, left, step down, step right
PALETTE = rng.integers(0, 256, (256, 3))
ALPHAS = rng.integers(0, 256, 256)
ALPHAS[:2] = 0, 128


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(samples, bits, colour, *chunks, laced=False):
    passes = PASSES if laced else [(0, 0, 1, 1)]
    raw = b"".join(b"\0" + row for top, left, down, right in passes
                   for row in rows(samples[top::down, left::right], bits))
    header = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], bits, colour, 0, 0, laced)
    return b"\x89PNG\r\n\x1a\n" + b"".join([
        chunk(b"IHDR", header), *chunks, chunk(b"IDAT", zlib.compress(raw)), chunk(b"IEND", b"")])


def plte(bits):
    return chunk(b"PLTE", PALETTE[:2**bits].astype(np.uint8).tobytes())


def add_pngs(laced):
    end = ", interlaced" if laced else ""
    for bits in (1, 2, 4, 8, 16):
        top, near = 2**bits - 1, int(bits == 16)
        samples = numbers(bits)
        key = samples[1, 1] = samples[0, 2] = (2**bits - 2) * 5 // 8
        samples[2, 2] = key ^ 1                 # at 16 bits, the same high byte
        add(f"png grey {bits} bits{end}", png(samples, bits, 0, laced=laced), grey(samples, top),
            near)
        add(f"png grey {bits} bits, transparent value{end}",
            png(samples, bits, 0, chunk(b"tRNS", struct.pack(">H", key)), laced=laced),
            on_white(grey(samples, top), samples != key), near)
    for bits in (8, 16):
        top, near = 2**bits - 1, int(bits == 16)
        samples = numbers(bits, 3)
        key = samples[1, 1] = samples[3, 4]
        add(f"png RGB {bits} bits{end}", png(samples, bits, 2, laced=laced), samples * 255 / top,
            near)
        add(f"png RGB {bits} bits, transparent colour{end}",
            png(samples, bits, 2, chunk(b"tRNS", struct.pack(">3H", *key)), laced=laced),
            on_white(samples * 255 / top, (samples != key).any(-1, keepdims=True)), near)
        samples = numbers(bits, 2)
        add(f"png grey and alpha {bits} bits{end}", png(samples, bits, 4, laced=laced),
            on_white(grey(samples[..., :1], top), samples[..., 1:] / top), 1)
        samples = numbers(bits, 4)
        add(f"png RGBA {bits} bits{end}", png(samples, bits, 6, laced=laced),
            on_white(samples[..., :3] * 255 / top, samples[..., 3:] / top), 1)
    for bits in (1, 2, 4, 8):
        samples = numbers(bits)
        colours = PALETTE[samples[..., 0]]
        add(f"png palette {bits} bits{end}", png(samples, bits, 3, plte(bits), laced=laced),
            colours)
        add(f"png palette {bits} bits, graded alpha{end}",
            png(samples, bits, 3, plte(bits),
                chunk(b"tRNS", bytes(ALPHAS[:2**bits].tolist())), laced=laced),
            on_white(colours, ALPHAS[samples] / 255), 1)
        add(f"png palette {bits} bits, one transparent index{end}",
            png(samples, bits, 3, plte(bits), chunk(b"tRNS", b"\xff\0"), laced=laced),
            on_white(colours, samples != 1))


add_pngs(False)
add_pngs(True)

# TIFF -------------------------------------------------------------------------------------------


def tiff(order, strips, bits, photometric, channels=1, packed=False, shape=(HEIGHT, WIDTH), **tags):
    """A TIFF file of one strip, or of one per channel. `tags` are named t and their number."""
    strips = [zlib.compress(s) if packed else s for s in strips]
    tags = {int(name[1:]): value for name, value in tags.items()} | {
        256: [shape[1]], 257: [shape[0]], 258: [bits] * channels, 259: [8 if packed else 1],
        262: [photometric], 277: [channels], 278: [shape[0]], 279: [len(s) for s in strips],
        284: [1 if len(strips) == 1 else 2],
        273: [8 + sum(map(len, strips[:i])) for i in range(len(strips))]}
    body = b"".join(strips)
    body += b"\0" * (len(body) % 2)
    entries = []
    for tag, values in sorted(tags.items()):
        kind = 7 if isinstance(values, bytes) else 4 if max(values) > 65535 else 3
        raw = values if kind == 7 else struct.pack(f"{order}{len(values)}{' HI'[kind - 2]}",
                                                   *values)
        if len(raw) > 4:
            raw, body = struct.pack(order + "I", 8 + len(body)), body + raw + b"\0" * (len(raw) % 2)
        entries.append(struct.pack(order + "HHI", tag, kind, len(values)) + raw.ljust(4, b"\0"))
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8 + len(body))
    return head + body + struct.pack(order + "H", len(entries)) + b"".join(entries) + b"\0" * 4


def from_lab(lab):
    """CIE L*a*b* of illuminant D50 -> sRGB from 0 to 255."""
    y = (lab[..., 0] + 16) / 116
    f = np.stack([y + lab[..., 1] / 500, y, y - lab[..., 2] / 200], -1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * [0.9642, 1, 0.8249]
    linear = xyz @ np.array([[3.1338561, -1.6168667, -0.4906146], [-0.9787684, 1.9161415, 0.0334540],
                             [0.0719453, -0.2289914, 1.4052427]]).T
    return np.where(linear > 0.0031308, 1.055 * linear.clip(0) ** (1 / 2.4) - 0.055, linear * 12.92) * 255


def from_ycc(ycc):
    y, blue, red = ycc[..., 0], ycc[..., 1] - 128, ycc[..., 2] - 128
    return np.stack([y + 1.402 * red, y - 0.344136 * blue - 0.714136 * red, y + 1.772 * blue], -1)


def ink(cmyk):
    """Cyan, magenta, yellow and black from 0 to 1 -> RGB."""
    return 255 * (1 - cmyk[..., :3]) * (1 - cmyk[..., 3:])


def add_tiffs(order, packed):
    end = f", {'II' if order == '<' else 'MM'}{', deflated' if packed else ''}"

    def file(name, samples, bits, photometric, expected, tolerance=0, refused=False, **tags):
        data = tiff(order, [b"".join(rows(samples, bits, order))], bits, photometric,
                    samples.shape[-1], packed, **tags)
        add(f"tiff {name}{end}", data, expected, tolerance, refused)

    big = order == ">"
    for bits in (1, 2, 4, 8, 12, 16, 32):
        samples, top, near = numbers(bits), 2**bits - 1, int(bits > 8)
        samples = samples.astype(np.uint32)
        file(f"grey {bits} bits, black is 0", samples, bits, 1, grey(samples, top), near,
             big and bits in (12, 32))
        file(f"grey {bits} bits, white is 0", samples, bits, 0, grey(top - samples, top), near,
             bits in (12, 32) or big and bits == 16)
    for bits, white, least, most in ((16, 32767, -32768, 32767), (32, 2**31 - 1, -2**31, 2**31 - 1),
                                     (32, 65535, -70000, 65535), (32, 65535, 0, 20000)):
        samples = rng.integers(least, most, (HEIGHT, WIDTH, 1), np.int32, endpoint=True)
        samples[0, :2, 0] = least, most
        file(f"grey {bits} bits, signed, from {least} to {most}", samples, bits, 1,
             grey(samples, white), 1, t339=[2])
    for most, white in ((1, 1), (0.3, 1), (200, 255), (3000, 65535), (1e6, 1e6)):
        samples = rng.uniform(-most / 4, most, (HEIGHT, WIDTH, 1)).astype(np.float32)
        samples[0, 1] = most
        file(f"float up to {most}", samples, 32, 1, grey(samples, white), 1, t339=[3])
    holes = np.where(rng.uniform(size=samples.shape) < 0.3, np.nan, samples / np.float32(1e6))
    file("float with NaN", holes, 32, 1, grey(np.nan_to_num(holes, nan=0), 1), 1, t339=[3])
    samples = rng.uniform(0, 1, (HEIGHT, WIDTH, 1)).astype(np.float32)
    file("float, white is 0", samples, 32, 0, grey(1 - samples, 1), 1, t339=[3])

    for bits in (8, 16):
        top, near = 2**bits - 1, int(bits == 16)
        samples = numbers(bits, 3).astype(np.uint32)
        file(f"RGB {bits} bits", samples, bits, 2, samples * 255 / top, near)
        if bits == 8:
            add(f"tiff RGB, channel by channel{end}",
                tiff(order, [b"".join(rows(samples[..., i:i + 1], 8)) for i in range(3)], 8, 2, 3,
                     packed), samples)
        samples = numbers(bits, 4).astype(np.uint32)
        colours, alpha = samples[..., :3], samples[..., 3:] / top
        file(f"RGB {bits} bits and a sample of no meaning", samples, bits, 2, colours * 255 / top,
             near, t338=[0])
        file(f"RGBA {bits} bits", samples, bits, 2, on_white(colours * 255 / top, alpha), 1,
             t338=[2])
        held = np.concatenate([(colours * alpha).astype(np.uint32), samples[..., 3:]], -1)
        file(f"RGBA {bits} bits, associated alpha", held, bits, 2,
             held[..., :3] * 255 / top + 255 * (1 - alpha), 1 + near, t338=[1])
        file(f"CMYK {bits} bits", samples, bits, 5, ink(samples / top), 1 + near, t332=[1])
    samples = numbers(8, 2)
    dark, alpha = samples[..., :1], samples[..., 1:] / 255
    file("grey and a sample of no meaning", samples, 8, 1, grey(dark, 255), t338=[0])
    file("grey and alpha", samples, 8, 1, on_white(grey(dark, 255), alpha), 1, t338=[2])
    held = np.concatenate([(dark * alpha).astype(int), samples[..., 1:]], -1)
    file("grey and associated alpha", held, 8, 1, grey(held[..., :1], 255) + 255 * (1 - alpha), 1,
         t338=[1])
    for bits in (1, 2, 4, 8):
        samples, deep = numbers(bits), (PALETTE[:2**bits].T * 257).ravel().tolist()
        file(f"palette {bits} bits", samples, bits, 3, PALETTE[samples[..., 0]], t320=deep)
    samples = numbers(8, 2)
    file("palette and alpha", samples, 8, 3,
         on_white(PALETTE[samples[..., 0]], samples[..., 1:] / 255), 1, t338=[2], t320=deep)
    samples = rng.integers(60, 190, (HEIGHT, WIDTH, 3))
    file("YCbCr", samples, 8, 6, from_ycc(samples).clip(0, 255), 2, t530=[1, 1])
    samples = np.concatenate([samples[..., :1], rng.integers(-20, 20, (HEIGHT, WIDTH, 2))], -1)
    file("LAB", samples, 8, 8, from_lab(samples * [100 / 255, 1, 1]), 2)


for order in "<>":
    add_tiffs(order, False)
    add_tiffs(order, True)

# PNM, BMP, GIF ----------------------------------------------------------------------------------


def pnm(magic, samples, maxval):
    head = f"P{magic}\n# odd\n{samples.shape[1]} {samples.shape[0]}\n{maxval}\n".encode()
    if magic < 4:
        return head + b"\n".join(b" ".join(b"%d" % v for v in row.ravel()) for row in samples)
    return head + b"".join(rows(samples, 8 if maxval < 256 else 16))


for maxval in (1, 100, 255, 4095, 65535):
    samples, colours = (rng.integers(0, maxval + 1, (HEIGHT, WIDTH, n)) for n in (1, 3))
    samples[0, 0] = colours[0, 0] = maxval
    for magic, how in ((2, "plain"), (5, "raw")):
        add(f"pnm grey up to {maxval}, {how}", pnm(magic, samples, maxval), grey(samples, maxval),
            int(maxval != 255))
        add(f"pnm RGB up to {maxval}, {how}", pnm(magic + 1, colours, maxval),
            colours * 255 / maxval, int(maxval != 255))
samples = numbers(1)
size = f"{WIDTH} {HEIGHT}\n".encode()
add("pnm bits, plain", b"P1 " + size + b" ".join(b"%d" % v for v in samples.ravel()),
    grey(1 - samples, 1))
add("pnm bits, raw", b"P4 " + size + b"".join(rows(samples, 1)), grey(1 - samples, 1))
samples = rng.uniform(0, 1, (HEIGHT, WIDTH, 1)).astype(np.float32)
for order, scale in (("<", b"-1.0\n"), (">", b"1.0\n")):
    add(f"pnm float, {order}", b"Pf\n" + size + scale + b"".join(rows(samples, 32, order)[::-1]),
        grey(samples, 1), 1)


def bmp(lines, bits, after=b"", compression=0, header=40, up=True):
    """`after` is what follows the header of 40 bytes: masks or a palette."""
    data = b"".join(line + b"\0" * (-len(line) % 4) for line in (lines[::-1] if up else lines))
    head = struct.pack("<IiiHHIIiiII", header, WIDTH, HEIGHT if up else -HEIGHT, 1, bits,
                       compression, len(data), 0, 0, 0, 0)
    start = 14 + len(head) + len(after)
    return b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start) + head + after + data


for bits in (1, 4, 8):
    samples = numbers(bits)
    table = np.pad(PALETTE[:2**bits, ::-1], ((0, 0), (0, 1))).astype(np.uint8).tobytes()
    add(f"bmp palette {bits} bits", bmp(rows(samples, bits), bits, table), PALETTE[samples[..., 0]])
runs = [bytes(v for p in row for v in (1, p)) + b"\0\0" for row in samples[::-1, :, 0].tolist()]
add("bmp palette 8 bits, runs", bmp([b"".join(runs) + b"\0\1"], 8, table, 1),
    PALETTE[samples[..., 0]])
samples = numbers(8, 4)
lines, full = rows(samples[..., [2, 1, 0]], 8), rows(samples[..., [2, 1, 0, 3]], 8)
add("bmp RGB 24 bits", bmp(lines, 24), samples[..., :3])
add("bmp RGB 24 bits, from the top", bmp(lines, 24, up=False), samples[..., :3])
add("bmp RGB 32 bits, a byte of no meaning", bmp(full, 32), samples[..., :3])
masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
add("bmp RGBA 32 bits", bmp(full, 32, masks, 3, header=56),
    on_white(samples[..., :3], samples[..., 3:] / 255), 1)
for green in (5, 6):
    parts = np.concatenate([numbers(5), numbers(green), numbers(5)], -1)
    whole = parts @ [2 ** (5 + green), 32, 1]
    masks = struct.pack("<3I", (2**5 - 1) << 5 + green, (2**green - 1) << 5, 31)
    add(f"bmp RGB 16 bits, {green} of green", bmp(rows(whole[..., None], 16, "<"), 16, masks, 3),
        parts * 255 / [31, 2**green - 1, 31], 1)


def gif(samples, clear=None, laced=False, local=False):
    """Four colours. The code is reset after every two pixels, so all codes have three bits."""
    order = [y for start, step in ((0, 8), (4, 8), (2, 4), (1, 2)) for y in range(
        start, HEIGHT, step)] if laced else range(HEIGHT)
    pixels = samples[list(order), :, 0].reshape(-1, 2)
    codes = np.append(np.insert(pixels, 0, 4, axis=1).ravel(), 5)
    data = np.packbits((codes[:, None] >> np.arange(3) & 1).astype(np.uint8),
                       bitorder="little").tobytes()
    table = PALETTE[:4].astype(np.uint8).tobytes()
    other = PALETTE[4:8].astype(np.uint8).tobytes() if local else b""
    control = b"" if clear is None else b"\x21\xf9\4\1\0\0" + bytes([clear, 0])
    return (b"GIF89a" + struct.pack("<HHBBB", WIDTH, HEIGHT, 0x91, 0, 0) + table + control + b","
            + struct.pack("<HHHHB", 0, 0, WIDTH, HEIGHT, 0x40 * laced | 0x81 * local) + other
            + b"\2" + bytes([len(data)]) + data + b"\0;")


samples = numbers(2)
colours = PALETTE[samples[..., 0]]
add("gif", gif(samples), colours)
add("gif with a local palette", gif(samples, local=True), PALETTE[4 + samples[..., 0]])
for laced in (False, True):
    add(f"gif with a transparent index{', interlaced' if laced else ''}",
        gif(samples, 2, laced), on_white(colours, samples != 2))

# What Pillow writes: JPEG, WebP, and its own modes in PNG and TIFF --------------------------------


def saved(image, kind, **how):
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


def tiles(channels):
    """Six flat tiles of 16 x 16 pixels, which JPEG keeps."""
    return rng.integers(0, 256, (2, 3, channels)).repeat(16, 0).repeat(16, 1).astype(np.uint8)


def turned(picture, orientation):
    """A stored picture as it is to be shown, for the eight orientations of EXIF."""
    picture = picture.transpose(1, 0, 2) if orientation > 4 else picture
    down, right = {1: (1, 1), 2: (1, -1), 3: (-1, -1), 4: (-1, 1),
                   5: (1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)}[orientation]
    return picture[::down, ::right]


def exif(orientation):
    return b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 274, 3, 1, orientation, 0, 0)


colours, dark = tiles(3), tiles(1)
photo, cmyk = Image.fromarray(colours), tiles(4)
best = {"quality": 100, "subsampling": 0}
add("jpeg RGB", saved(photo, "JPEG", **best), colours, 2)
add("jpeg RGB, progressive", saved(photo, "JPEG", progressive=True, **best), colours, 2)
add("jpeg RGB, colours at half size", saved(photo, "JPEG", quality=100, subsampling=2), colours, 2)
add("jpeg RGB, not as YCbCr", saved(photo, "JPEG", keep_rgb=True, **best), colours, 2)
add("jpeg grey", saved(Image.fromarray(dark[..., 0]), "JPEG", quality=100), grey(dark, 255), 2)
add("jpeg CMYK", saved(Image.fromarray(cmyk, "CMYK"), "JPEG", **best), ink(cmyk / 255), 3)
samples = numbers(8, 3)
for n in range(1, 9):
    add(f"jpeg orientation {n}", saved(photo, "JPEG", exif=b"Exif\0\0" + exif(n), **best),
        turned(colours, n), 2)
    add(f"png orientation {n}", png(samples, 8, 2, chunk(b"eXIf", exif(n))), turned(samples, n))
    add(f"tiff orientation {n}",
        tiff("<", [b"".join(rows(samples, 8))], 8, 2, 3, t274=[n]), turned(samples, n))

layers = numbers(8, 4).astype(np.uint8)
seen = on_white(layers[..., :3], layers[..., 3:] / 255)
whole, clear = Image.fromarray(layers[..., :3]), Image.fromarray(layers)
lossless = {"lossless": True, "exact": True}
add("webp RGB", saved(whole, "WEBP", **lossless), layers[..., :3])
add("webp RGBA", saved(clear, "WEBP", **lossless), seen, 1)
add("webp orientation 6", saved(whole, "WEBP", exif=b"Exif\0\0" + exif(6), **lossless),
    turned(layers[..., :3], 6))
still = {"save_all": True, "append_images": [Image.new("RGB", (WIDTH, HEIGHT), "red")]}
add("webp of two pictures", saved(whole, "WEBP", **still, **lossless), layers[..., :3])
add("tiff of two pictures", saved(whole, "TIFF", **still), layers[..., :3])

flat, index = layers[..., 0], Image.fromarray(layers[..., 0])
index.putpalette(PALETTE.astype(np.uint8).tobytes())
pair = Image.fromarray(layers[..., ::3])                        # grey and alpha
deep = rng.integers(0, 65536, (HEIGHT, WIDTH, 1)).astype(np.uint16)
deep[0, :2, 0] = 0, 65535
part = rng.uniform(0, 1, (HEIGHT, WIDTH, 1)).astype(np.float32)
palette_pair = Image.merge("PA", [Image.fromarray(flat), Image.fromarray(layers[..., 3])])
palette_pair.putpalette(PALETTE.astype(np.uint8).tobytes())
for kinds, mode, image, expected, near in (
        ("PNG TIFF", "1", Image.fromarray(flat > 99), grey(layers[..., :1] > 99, 1), 0),
        ("PNG TIFF", "L", Image.fromarray(flat), grey(layers[..., :1], 255), 0),
        ("PNG TIFF", "LA", pair, on_white(grey(layers[..., :1], 255), layers[..., 3:] / 255), 1),
        ("PNG TIFF", "P", index, PALETTE[flat], 0),
        ("TIFF", "PA", palette_pair, on_white(PALETTE[flat], layers[..., 3:] / 255), 1),
        ("PNG TIFF", "RGB", whole, layers[..., :3], 0),
        ("PNG TIFF", "RGBA", clear, seen, 1),
        ("TIFF", "CMYK", Image.fromarray(layers, "CMYK"), ink(layers / 255), 1),
        ("PNG TIFF", "I;16", Image.fromarray(deep[..., 0]), grey(deep, 65535), 1),
        ("TIFF", "I", Image.fromarray(deep[..., 0].astype(np.int32)), grey(deep, 65535), 1),
        ("TIFF", "F", Image.fromarray(part[..., 0]), grey(part, 1), 1)):
    assert image.mode == mode
    for kind in kinds.split():
        how = {"compression": "tiff_lzw"} if kind == "TIFF" else {}
        add(f"{kind.lower()} of Pillow's mode {mode}", saved(image, kind, **how), expected, near)

# ICC profiles -----------------------------------------------------------------------------------


def fixed(*values):
    return struct.pack(f">{len(values)}i", *(round(v * 65536) for v in values))


def profile(space, **tags):
    """A profile for a screen. Its colours are relative to D50, as ICC profiles' always are."""
    tags["wtpt"] = b"XYZ \0\0\0\0" + fixed(0.9642, 1, 0.8249)
    at, index, body = 132 + 12 * len(tags), b"", b""
    for name, value in tags.items():
        index += name.encode() + struct.pack(">II", at + len(body), len(value))
        body += value + b"\0" * (-len(value) % 4)
    return struct.pack(">I4xI4s4s4s12x4s28x12s48xI", at + len(body), 0x04200000, b"mntr", space,
                       b"XYZ ", b"acsp", fixed(0.9642, 1, 0.8249), len(tags)) + index + body


curve = b"para\0\0\0\0\0\3\0\0" + fixed(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
P3 = profile(b"RGB ", rTRC=curve, gTRC=curve, bTRC=curve,       # Display P3
             rXYZ=b"XYZ \0\0\0\0" + fixed(0.51512, 0.24120, -0.00105),
             gXYZ=b"XYZ \0\0\0\0" + fixed(0.29198, 0.69225, 0.04189),
             bXYZ=b"XYZ \0\0\0\0" + fixed(0.15710, 0.06657, 0.78407))
DARK = profile(b"GRAY", kTRC=b"curv\0\0\0\0" + struct.pack(">IH", 1, round(1.4 * 256)))
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def in_srgb(picture, icc):
    source = ImageCms.ImageCmsProfile(io.BytesIO(icc))
    picture = Image.fromarray(np.asarray(picture).astype(np.uint8))
    return np.asarray(ImageCms.profileToProfile(picture, source, SRGB, outputMode="RGB"))


def iccp(icc):
    return chunk(b"iCCP", b"odd\0\0" + zlib.compress(icc))


samples = numbers(8, 4)
dark, colours, alpha = samples[..., :1], samples[..., :3], samples[..., 3:] / 255
key = colours[1, 1] = colours[3, 4]
hidden = (colours != key).any(-1, keepdims=True)
wide, gamma = in_srgb(colours, P3), in_srgb(dark[..., 0], DARK)
strip = b"".join(rows(colours, 8))
add("icc Display P3, png RGB", png(colours, 8, 2, iccp(P3)), wide, 2)
add("icc Display P3, png RGB, transparent colour",
    png(colours, 8, 2, iccp(P3), chunk(b"tRNS", struct.pack(">3H", *key))), on_white(wide, hidden),
    2)
add("icc Display P3, png RGB 16 bits", png(colours * 257, 16, 2, iccp(P3)), wide, 2)
add("icc Display P3, png RGBA", png(samples, 8, 6, iccp(P3)), on_white(wide, alpha), 2)
add("icc Display P3, png palette", png(dark, 8, 3, iccp(P3), plte(8)),
    in_srgb(PALETTE[dark[..., 0]], P3), 2)
add("icc Display P3, tiff RGB", tiff(">", [strip], 8, 2, 3, t34675=P3), wide, 2)
add("icc Display P3, webp RGBA", saved(Image.fromarray(samples.astype(np.uint8)), "WEBP",
                                       icc_profile=P3, **lossless), on_white(wide, alpha), 2)
jpeg = saved(photo, "JPEG", icc_profile=P3, **best)
add("icc Display P3, jpeg", jpeg, in_srgb(Image.open(io.BytesIO(jpeg)), P3), 2)
add("icc Display P3, jpeg orientation 6",
    saved(photo, "JPEG", icc_profile=P3, exif=b"Exif\0\0" + exif(6), **best),
    turned(in_srgb(Image.open(io.BytesIO(jpeg)), P3), 6), 2)
add("icc grey gamma, png grey", png(dark, 8, 0, iccp(DARK)), gamma, 2)
add("icc grey gamma, png grey 16 bits", png(dark * 257, 16, 0, iccp(DARK)), gamma, 2)
add("icc grey gamma, png grey and alpha", png(samples[..., ::3], 8, 4, iccp(DARK)),
    on_white(gamma, alpha), 2)
add("icc sRGB, png RGB", png(colours, 8, 2, iccp(SRGB.tobytes())), colours, 2)
for what, icc in (("text", b"no profile"), ("half of one", P3[:len(P3) // 2]),
                  ("an empty one", b""), ("of grey", DARK)):
    add(f"icc ignored on RGB: {what}", png(colours, 8, 2, iccp(icc)), colours)
add("icc ignored on grey: of RGB", png(dark, 8, 0, iccp(P3)), grey(dark, 255))
add("icc ignored on grey and alpha: of RGB", png(samples[..., ::3], 8, 4, iccp(P3)),
    on_white(grey(dark, 255), alpha), 1)
add("icc ignored on CMYK: of RGB",
    tiff("<", [b"".join(rows(samples, 8))], 8, 5, 4, t34675=P3), ink(samples / 255), 1)

# Damage -----------------------------------------------------------------------------------------

WHOLE = {"png": png(samples, 8, 6), "tiff": tiff("<", [strip], 8, 2, 3), "jpeg": jpeg,
         "tiff, deflated": tiff(">", [strip], 8, 2, 3, True), "bmp": TABLE["bmp RGB 24 bits"][0],
         "gif": TABLE["gif"][0], "pnm": pnm(6, colours, 255), "webp": TABLE["webp RGBA"][0]}
DAMAGED = {"nothing": b"", "text": b"no picture"}
for name, data in WHOLE.items():
    DAMAGED[f"half of a {name}"] = data[:len(data) // 2]
    DAMAGED[f"{name} of another first byte"] = bytes([data[0] ^ 255]) + data[1:]
whole_png, at = WHOLE["png"], WHOLE["png"].index(b"IDAT")
length = struct.unpack(">I", whole_png[at - 4:at])[0]
DAMAGED |= {
    "png, checksum of IHDR": whole_png[:29] + bytes([whole_png[29] ^ 1]) + whole_png[30:],
    "png, checksum of IDAT": (whole_png[:at + 4 + length] + bytes([whole_png[at + 4 + length] ^ 1])
                              + whole_png[at + 5 + length:]),
    "png, IDAT that is no zlib": whole_png[:at - 4] + chunk(b"IDAT", b"odd" * 9),
    "png without pixels": whole_png[:at - 4] + chunk(b"IEND", b""),
    "png without its palette": png(dark, 8, 3),
    "png of width 0": png(samples[:, :0], 8, 6),
    "tiff, strip outside the file": tiff("<", [strip], 8, 2, 3)[:8] + tiff("<", [b""], 8, 2, 3)[8:],
    "tiff whose directory follows itself": WHOLE["tiff"][:-4] + WHOLE["tiff"][4:8]}
sizes = struct.pack(">HH", *photo.size[::-1])
huge = struct.pack("<HH", 60000, 60000)
DAMAGED |= {
    "huge png": whole_png[:8] + chunk(b"IHDR", struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 6,
                                                           0, 0, 0)) + whole_png[33:],
    "huge tiff": tiff("<", [strip], 8, 2, 3, shape=(2**31, 2**31)),
    "huge bmp": WHOLE["bmp"][:18] + struct.pack("<ii", 2**30, 2**30) + WHOLE["bmp"][26:],
    "huge pnm": b"P6 999999 999999 255 " + strip,
    "huge jpeg": jpeg.replace(sizes, b"\xff\xdc" * 2),
    "huge gif": WHOLE["gif"].replace(struct.pack("<HH", WIDTH, HEIGHT), huge)}
assert DAMAGED["huge jpeg"] != jpeg


@pytest.mark.parametrize("name", TABLE)
def test_an_odd_file_has_the_pixels_that_its_format_says(name):
    data, expected, tolerance = TABLE[name]
    try:
        picture = plain_picture(Image.open(io.BytesIO(data)))
    except Exception:
        if name not in REFUSED:
            raise
        return
    assert picture.mode == "RGB" and picture.size == expected.shape[1::-1]
    off = np.abs(np.asarray(picture) - expected.round())
    assert off.max() <= tolerance, f"{(off > tolerance).any(-1).mean():.0%} of the pixels"


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_ends_in_an_exception_or_a_picture_soon_and_in_little_memory(name):
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        assert plain_picture(Image.open(io.BytesIO(DAMAGED[name]))).mode == "RGB"
    except AssertionError:
        raise
    except Exception:  # a codec may raise anything
        pass
    unit = 1 if sys.platform == "darwin" else 1024
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit < 2**30
    assert time.monotonic() - start < 20


def test_there_are_at_least_a_hundred_odd_files_and_the_docstring_counts_them():
    assert len(TABLE) >= 100
    counts = Counter(name.split()[0] for name in TABLE) | Counter(damaged=len(DAMAGED))
    assert ", ".join(f"{n} {kind}" for kind, n in counts.items()) in __doc__.replace("\n", " ")
