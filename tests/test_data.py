"""Pictures from every source, unusual files included, and the fingerprints that decide whether ids
may be reused."""

import gzip
import hashlib
import http.server
import os
import threading

import numpy as np
import pytest
from PIL import Image

from arpg_mini import UserError
from arpg_mini.data import builtin as data
from arpg_mini.data import folders


def test_a_shape_is_a_function_of_seed_and_index():
    images, labels = data.shapes(30, seed=5)
    again, _ = data.shapes(7, seed=5)
    assert (images.shape == (30, data.SIDE, data.SIDE, 3) and images.dtype == np.uint8
            and labels.dtype == np.int64)
    assert (images[:7] == again).all() and not (data.shapes(7, seed=6)[0] == again).all()
    assert (data.draw_shape(5, 29)[0] == images[29]).all() and data.shapes(0)[0].shape[0] == 0


def test_classes_colours_and_grounds_are_balanced_and_independent():
    """In 4,000 pictures, each class-colour pair is within five standard deviations of one in sixty.
    """
    from arpg_mini.measure.judge import dominant_colour, palette_counts
    images, labels = data.shapes(4000, seed=2)
    counts = np.histogram2d(labels, dominant_colour(images), bins=[range(11), range(7)])[0]
    assert abs(counts - 4000 / 60).max() < 5 * (4000 / 60) ** 0.5
    light = palette_counts(images)[:, 7] > palette_counts(images)[:, 6]
    assert abs(light.mean() - 0.5) < 0.04


def test_the_pattern_repeats_beyond_the_window():
    """Broken if the pattern stops at an edge. Pixels one period apart are equal, up to one of the
    eight lines of which a pixel is drawn (Pillow rounds corners left of the edge differently)."""
    images = data.shapes(50, seed=3)[0].astype(int)
    p = data.PERIOD
    for difference in (images[:, :, p:] - images[:, :, :-p], images[:, p:] - images[:, :-p]):
        assert abs(difference).max() <= 255 / 8 and abs(difference).mean() < 0.2


def write_idx(folder, name, array):
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    (folder / f"{name}.gz").write_bytes(gzip.compress(header + array.tobytes()))
    return hashlib.sha256(header + array.tobytes()).hexdigest()


@pytest.fixture
def fashion(tmp_path, monkeypatch):
    """A small data set in the real format, whose checksums the code expects. Returns its folder."""
    rng, source = np.random.default_rng(0), tmp_path / "source"
    source.mkdir()
    sums = {}
    for split, n in (("train", 20), ("t10k", 6)):
        for kind, array in (("images-idx3", rng.integers(0, 256, (n, 28, 28)).astype(np.uint8)),
                            ("labels-idx1", np.arange(n, dtype=np.uint8) % 10)):
            sums[f"{split}-{kind}-ubyte"] = write_idx(source, f"{split}-{kind}-ubyte", array)
    monkeypatch.setattr(data, "FASHION_FILES", sums)
    return source


@pytest.fixture
def server(fashion):
    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(fashion))

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/"
        running.shutdown()


def test_fashion_mnist_is_downloaded_once_and_checked(fashion, server, tmp_path):
    cache = tmp_path / "cache"
    assert data.find_fashion(url=server, folders=[tmp_path / "none", cache]) == cache
    pictures = data.fashion_pictures("train", cache)
    assert pictures.images.shape == (20, 28, 28, 3) and pictures.labels[:3].tolist() == [0, 1, 2]
    # No second download.
    assert data.find_fashion(url="http://127.0.0.1:1/", folders=[cache]) == cache


def test_a_download_that_fails_or_is_tampered_with_leaves_no_file(fashion, server, tmp_path):
    cache = tmp_path / "cache"
    with pytest.raises(UserError, match="127.0.0.1:1/.*download failed"):
        data.find_fashion(url="http://127.0.0.1:1/", folders=[cache])
    name = next(iter(data.FASHION_FILES))
    (fashion / f"{name}.gz").write_bytes(gzip.compress(b"something else"))
    with pytest.raises(UserError, match=f"{name}.*checksum"):
        data.find_fashion(url=server, folders=[cache])
    assert not list(cache.glob("*.gz"))


def test_a_truncated_idx_file_is_named(fashion):
    name = "t10k-labels-idx1-ubyte"
    (fashion / f"{name}.gz").write_bytes((fashion / f"{name}.gz").read_bytes()[:-9])
    with pytest.raises(UserError, match=f"{name}.gz"):
        data.fashion_pictures("t10k", fashion)


def odd_folder(root):
    """Two classes of ordinary and unusual files. Three of them can't be read as pictures."""
    for name in ("a", "b"):
        (root / name / "deep").mkdir(parents=True)
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (40, 50, 3)).astype(np.uint8))
    for i in range(30):
        noise.rotate(i).save(root / "ab"[i % 2] / f"{i}.png")
    noise.save(root / "a" / "photo.jpg")
    noise.save(root / "a" / "photo.webp")
    noise.convert("CMYK").save(root / "a" / "cmyk.jpg")
    noise.convert("P").save(root / "a" / "palette.gif")
    noise.convert("1").save(root / "a" / "bits.png")
    noise.resize((1, 300)).save(root / "b" / "thin.png")
    noise.resize((3000, 2)).save(root / "b" / "wide.png")
    Image.fromarray(rng.integers(0, 65536, (20, 20)).astype(np.uint16)).save(
        root / "b" / "deep" / "sixteen.png")
    Image.new("RGBA", (30, 30), (255, 0, 0, 0)).save(root / "b" / "clear.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    half = Image.new("RGB", (40, 40), "black")
    half.paste("white", (0, 0, 40, 20))
    half.save(root / "b" / "turned.jpg", exif=exif, quality=95)
    (root / "a" / "truncated.jpg").write_bytes((root / "a" / "photo.jpg").read_bytes()[:300])
    (root / "a" / "empty.png").write_bytes(b"")
    (root / "b" / "text.png").write_text("not a picture")
    (root / "b" / "notes.txt").write_text("no suffix of a picture")
    return root


def test_odd_files_are_handled_or_reported_by_name(tmp_path):
    train, held_out = folders.folder_pictures(odd_folder(tmp_path), 16)
    assert train.classes == ["a", "b"] and len(held_out) >= 1
    seen = {}
    for pictures in (train, held_out):
        kept, images = pictures.load(range(len(pictures)))
        assert images.shape == (len(kept), 16, 16, 3) and images.dtype == np.uint8
        seen |= {pictures.files[i]: image for i, image in zip(kept, images)}
        seen |= {os.path.relpath(f, tmp_path): why for f, why in pictures.bad.items()}
    bad = sorted(name for name, value in seen.items() if isinstance(value, str))
    assert bad == ["a/empty.png", "a/truncated.jpg", "b/text.png"] and len(seen) == 43
    assert (seen["b/clear.png"] == 255).all()                    # transparent pixels are white
    turned = seen["b/turned.jpg"].astype(int)
    # EXIF 6: the top is on the right.
    assert turned[:, :4].mean() < 60 and turned[:, -4:].mean() > 190
    deep = seen["b/deep/sixteen.png"]
    assert deep.std() > 10 and 90 < deep.mean() < 165            # 16 bits are scaled, not cut


def test_held_out_files_stay_held_out_when_files_are_added(tmp_path):
    odd_folder(tmp_path)
    out = set(folders.folder_pictures(tmp_path, 8)[1].files)
    Image.new("RGB", (9, 9)).save(tmp_path / "a" / "new.png")
    assert out - set(folders.folder_pictures(tmp_path, 8)[1].files) == set()


@pytest.mark.parametrize("make, says", [
    (lambda p: None, "at least 2"), (lambda p: p.rmdir(), "no such folder"),
    (lambda p: Image.new("RGB", (9, 9)).save(p / "x.png"), "has 0 pictures")])
def test_unusable_folders_are_reported(tmp_path, make, says):
    folder = tmp_path / "pictures"
    folder.mkdir()
    make(folder)
    with pytest.raises(UserError, match=f"--data {folder}.*{says}"):
        folders.folder_pictures(folder, 16)


def test_a_changed_file_changes_a_folders_fingerprint(tmp_path):
    odd_folder(tmp_path)
    before = folders.folder_pictures(tmp_path, 8)[0]
    assert folders.folder_pictures(tmp_path, 8)[0].fingerprint == before.fingerprint
    assert folders.folder_pictures(tmp_path, 9)[0].fingerprint != before.fingerprint
    os.utime(tmp_path / before.files[0], (1, 1))
    assert folders.folder_pictures(tmp_path, 8)[0].fingerprint != before.fingerprint
