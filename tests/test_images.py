"""Pictures of every mode, batches of files, and random crops."""

import copy
import io
import multiprocessing
import os
import random
import struct
import subprocess
import sys
import zlib

import numpy as np
import open_clip
import pytest
import torch
from conftest import ROOT, load, noise, pictures, table
from open_clip.transform import AugmentationCfg, PreprocessCfg, image_transform_v2
from PIL import Image

import drm_min
from drm_min import Config, Job, Prompts, Split, Texts
from support import images as room
from support.errors import BadInput
from support.images import ImageFiles, image_batches, read_image, to_8_bits

WHITE, GREY = (255,) * 3, (128,) * 3
LZW = dict(compression="tiff_lzw")


@pytest.mark.parametrize(
    "name, mode, colour, save, expected",
    [
        ("1.png", "1", 1, {}, WHITE),
        ("L.png", "L", 100, {}, (100,) * 3),
        ("LA.png", "LA", (0, 128), {}, (127,) * 3),
        ("P.png", "P", 1, {}, (200, 100, 50)),
        ("P.gif", "P", 1, {}, (200, 100, 50)),
        ("Pt.png", "P", 1, dict(transparency=1), WHITE),
        ("Lt.png", "L", 7, dict(transparency=7), WHITE),
        ("t.png", "RGB", (1, 2, 3), dict(transparency=(1, 2, 3)), WHITE),
        ("RGBA.png", "RGBA", (255, 0, 0, 128), {}, (255, 127, 127)),
        ("clear.png", "RGBA", (0, 0, 0, 0), {}, WHITE),
        ("white16.png", "I;16", 65535, {}, WHITE),
        ("grey16.png", "I;16", 32768, {}, GREY),
        ("grey16.tif", "I;16B", 32768, {}, GREY),
        ("I.tif", "I", 32768, {}, GREY),
        ("F.tif", "F", 0.25, {}, (64,) * 3),
        ("CMYK.tif", "CMYK", (0, 0, 0, 255), {}, (0, 0, 0)),
        ("CMYK.jpg", "CMYK", (0, 255, 255, 0), {}, (255, 0, 0)),
        ("YCbCr.jpg", "YCbCr", (76, 85, 255), {}, (255, 0, 0)),
        ("YCbCr.tif", "YCbCr", (76, 85, 255), LZW, (255, 0, 0)),
        ("LAB.tif", "LAB", (128, 128, 128), {}, (119,) * 3),  # L* is 50.2
        # sRGB's red: L* 54.3, a* 80.8, b* 69.9 (D50), rounded
        ("red.tif", "LAB", (138, 209, 198), {}, (252, 3, 3)),
    ],
)
def test_pictures_of_every_mode_are_what_a_person_sees(tmp_path, name, mode, colour, save, expected):
    image = Image.new(mode, (8, 8), colour)
    if mode == "P":
        image.putpalette([10, 20, 30, 200, 100, 50])
    image.save(tmp_path / name, **save)
    got = read_image(tmp_path / name)
    assert got.mode == "RGB" and got.size == (8, 8)
    expected = pytest.approx(expected, abs=3 if mode == "LAB" else 1)
    assert got.getpixel((0, 0)) == got.getpixel((7, 7)) == expected


def test_floats_and_integers_outside_their_range_are_spread_over_it(tmp_path):
    files = (("f.tif", "F", (-1.0, 3.0, 1.0)), ("i.tif", "I", (-100_000, 300_000, 100_000)))
    for name, mode, values in files:
        image = Image.new(mode, (3, 1))
        for x, value in enumerate(values):
            image.putpixel((x, 0), value)
        image.save(tmp_path / name)
        got = read_image(tmp_path / name)
        values = [got.getpixel((x, 0))[0] for x in range(3)]
        assert values == pytest.approx([0, 255, 127.5], abs=0.5), name


def test_16_bits_are_rounded_as_ever():
    values = np.arange(65536, dtype=np.uint16)
    assert (to_8_bits(values.reshape(256, 256)).ravel() == np.round(values / 257)).all()
    assert (to_8_bits(values.astype(">u2")) == to_8_bits(values)).all()


def test_pictures_stand_upright_borders_are_cut_and_the_first_of_several_counts(tmp_path):
    image, exif = Image.new("RGB", (16, 8), "blue"), Image.Exif()
    image.paste("red", (0, 0, 8, 8))
    exif[0x0112] = 6  # to be turned clockwise: its left side becomes the top
    image.save(tmp_path / "x.png", exif=exif)
    got = read_image(tmp_path / "x.png", border=2)
    assert got.size == (4, 12) and got.getcolors() == [(24, (255, 0, 0)), (24, (0, 0, 255))]
    assert got.getpixel((0, 0)) == got.getpixel((3, 5)) == (255, 0, 0)
    assert got.getpixel((0, 6)) == (0, 0, 255)
    further = Image.new("RGB", (8, 8), "blue")
    Image.new("RGB", (8, 8), "red").save(tmp_path / "x.gif", save_all=True, append_images=[further])
    assert read_image(tmp_path / "x.gif").getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("name", ["cut.jpg", "cut.png", "text.png", "empty.png", "gone.png", "small.png"])
def test_files_that_are_no_images_are_named(tmp_path, name):
    pictures(tmp_path, "small.png", size=(3, 3))  # smaller than its border
    for kind in ("jpg", "png"):
        noise(tmp_path / f"cut.{kind}", 1)
        (tmp_path / f"cut.{kind}").write_bytes((tmp_path / f"cut.{kind}").read_bytes()[:900])
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.png").touch()
    with pytest.raises(BadInput, match=f"{name}: no image that can be read"):
        read_image(tmp_path / name, border=2 if name == "small.png" else 0)


@pytest.mark.parametrize("size, border", [((1, 3000), 0), ((4, 4), 2), ((3000, 2), 0)])
def test_a_strip_or_a_picture_that_is_all_border_is_no_picture(tmp_path, size, border):
    noise(tmp_path / "a.png", 0, size)
    with pytest.raises(BadInput, match=r"a\.png.*no picture"):
        read_image(tmp_path / "a.png", border)


# ------------------------------------------------------------------------------------ faults of metadata

WIDE = Image.new("RGB", (48, 32), "blue")
WIDE.paste("red", (0, 0, 24, 32))


def exif(*tags):
    """Tags (number, type, value of four bytes) as bytes of EXIF."""
    entries = b"".join(struct.pack("<HHL", number, kind, 1) + value for number, kind, value in tags)
    return b"II*\0" + struct.pack("<LH", 8, len(tags)) + entries + bytes(4)


def saved(kind, **save):
    buffer = io.BytesIO()
    WIDE.save(buffer, kind, **save)
    return buffer.getvalue()


def jpeg(*segments):
    """A JPEG with these segments (marker, bytes) before its own."""
    parts = (struct.pack(">BBH", 255, marker, len(data) + 2) + data for marker, data in segments)
    return b"\xff\xd8" + b"".join(parts) + saved("JPEG", quality=95)[2:]


def png(*chunks, late=False):
    """A PNG with these chunks (kind, bytes), before or after the pixels; a third part: a wrong checksum."""
    parts = b""
    for kind, data, *wrong in chunks:
        parts += struct.pack(">L", len(data)) + kind + data
        parts += struct.pack(">L", zlib.crc32(kind + data) ^ bool(wrong))
    whole = saved("PNG")
    at = len(whole) - 12 if late else 33
    return whole[:at] + parts + whole[at:]


SIX = (0x0112, 3, b"\6\0\0\0")  # to be turned clockwise: the left side, red, becomes the top
TURNED, BOMB = (b"eXIf", exif(SIX)), zlib.compress(bytes(70_000_000), 9)
ODD = {  # EXIF that tells the orientation all the same
    "a unit as a byte": exif(SIX, (0x0128, 1, b"\2\0\0\0")),
    "a unit as letters": exif(SIX, (0x0128, 2, b"\2\0\0\0")),
    "a type that is none": exif(SIX, (0x0128, 99, b"\2\0\0\0")),
    "tags that are elsewhere": exif(SIX, (0x8769, 4, b"\xff\xff\xff\x7f")),
    "tags that are cut": exif(SIX, (0x0128, 3, b"\2\0\0\0"))[:28],
    "an orientation as a byte": exif((0x0112, 1, b"\6\0\0\0")),
    "an orientation of 32 bits": exif((0x0112, 4, b"\6\0\0\0")),
}
SOUND = {
    "garbage.jpg": (jpeg((0xE1, b"Exif\0\0no EXIF")), False),
    "garbage.png": (png((b"eXIf", b"x")), False),
}
for name, data in ODD.items():
    SOUND[f"{name}.jpg"] = jpeg((0xE1, b"Exif\0\0" + data)), True
    SOUND[f"{name}.png"] = png((b"eXIf", data)), True
    SOUND[f"{name}.webp"] = saved("WEBP", lossless=True, exif=data), True
for name, segment in {
    "a profile without a number": (0xE2, b"ICC_PROFILE\0"),
    "XMP that is no text": (0xE1, b"http://ns.adobe.com/xap/1.0/\0\xff\xfe<"),
    "a list of pictures that is none": (0xE2, b"MPF\0garbage"),
    "a resolution that is cut": (0xE0, b"JFIF\0"),
}.items():
    SOUND[f"{name}.jpg"] = jpeg(segment, (0xE1, b"Exif\0\0" + exif(SIX))), True
for name, chunk in {
    "a profile with a wrong checksum": (b"iCCP", b"x\0\0" + zlib.compress(b"x"), "wrong"),
    "a profile that is none": (b"iCCP", b"x\0\7abc"),
    "a profile that is a bomb": (b"iCCP", b"x\0\0" + BOMB),
    "XMP that is a bomb": (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + BOMB),
    "a resolution that is cut": (b"pHYs", b"\0"),
}.items():
    SOUND[f"{name}.png"] = png(chunk, TURNED), True
    SOUND[f"{name}, late.png"] = png(TURNED, chunk, late=True), True


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_photo_was_refused_for_its_metadata(tmp_path, name):
    content, turned = SOUND[name]
    (tmp_path / name).write_bytes(content)
    got = read_image(tmp_path / name)
    assert got.size == ((32, 48) if turned else (48, 32))
    red, blue = got.getpixel((2, 2)), got.getpixel((got.width - 3, got.height - 3))
    assert red[0] > 200 > 60 > red[2] and blue[2] > 200 > 60 > blue[0]


@pytest.mark.parametrize("name", ["a unit as a byte.jpg", "a profile that is none.png"])
def test_a_photo_whose_metadata_and_pixels_are_broken_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(SOUND[name][0][:-60])
    with pytest.raises(BadInput, match="no image that can be read"):
        read_image(tmp_path / name)


# --------------------------------------------------------------------------------------------- batches


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    vision = open_clip.CLIPVisionCfg(layers=1, width=32, head_width=16, patch_size=16, image_size=32)
    text = open_clip.CLIPTextCfg(context_length=5, vocab_size=50, width=32, heads=2, layers=1)
    model = open_clip.CLIP(16, vision, text).eval()
    prepare = dict(size=32, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic", resize_mode="shortest")
    open_clip.model.set_model_preprocess_cfg(model, prepare | dict(fill_color=0))
    return model


TEXTS = Texts(torch.tensor([[1, 5, 49, 0, 0], [1, 6, 7, 49, 0]]), torch.arange(2))
PROMPTS = Prompts(TEXTS, TEXTS)
ERM = Job("erm", 0, ("default",), 0.0, 1.0)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("skip", [False, True])
def test_a_bad_image_stops_the_run_and_is_named_or_is_left_out_of_training_and_counted(
    model, tmp_path, capfd, workers, skip
):
    labels = dict(a="ski", b="tent", c="ski", d="tent", e="tent", f="ski")
    pictures(tmp_path, *(f"{name}.png" for name in labels))
    rows = [f"{name}.png,{label},train," for name, label in labels.items()]
    rows += ["a.png,ski,val,", "e.png,ski,test,night"]
    table(tmp_path / "own.csv", "path,label,split,domain", *rows)
    (tmp_path / "d.png").write_text("no image")
    root = str(tmp_path / "own.csv")
    config = Config(dataset="csv", data_root=root, workers=workers, batch_size=2, skip_bad_images=skip)

    def encoded():
        setup = drm_min.Setup(config, None, drm_min.load_data(config), model, None, {}, PROMPTS)
        return drm_min.ask_zero_shot(setup, drm_min.jobs_of("drm", config, seed=0))

    data = drm_min.load_data(config)
    if skip:
        (tmp_path / "f.png").unlink()  # one that is not there is left out too
        setup = encoded()
        kept = setup.data.train
        assert [path[-5:] for path in kept.images.paths] == ["a.png", "b.png", "c.png", "e.png"]
        assert kept.labels.tolist() == [0, 1, 0, 1] and setup.features.shape == (4, 16)
        assert "left out: 2 of 6 training images" in capfd.readouterr().err
    else:
        with pytest.raises(BadInput, match=r"d\.png: no image that can be read.*--skip-bad-images"):
            encoded()
        with pytest.raises(BadInput, match=r"d\.png: no image"):
            drm_min.train(copy.deepcopy(model), data.train, PROMPTS, None, ERM, config)
    (tmp_path / "e.png").write_text("no image")
    with pytest.raises(BadInput, match=r"e\.png: no image"):  # in a test, in any case
        drm_min.predict_all(model, data, PROMPTS)


def prepared_as_floats(path, seed=None, number=0):
    """What open_clip's own transform makes of one image, with the chance of its batch."""
    cfg = PreprocessCfg(size=32, mean=(0.5,) * 3, std=(0.5,) * 3)
    transform = image_transform_v2(cfg, is_train=seed is not None, aug_cfg=AugmentationCfg(scale=(0.9, 1.0)))
    with torch.random.fork_rng():
        torch.manual_seed((seed or 0) * 1_000_003 + number)
        return transform(read_image(path))


@pytest.mark.parametrize("seed", [None, 3])
def test_floats_left_the_workers_where_uint8_gives_the_same_features(model, tmp_path, monkeypatch, seed):
    noise(tmp_path / "a.png", 0, (300, 200))
    files, seen = ImageFiles([tmp_path / "a.png"], workers=0), []
    [(_, images)] = image_batches(model, Split(files, torch.zeros(1)), [torch.tensor([0])], seed, first=5)
    assert images.dtype == torch.uint8 and images.is_contiguous()
    monkeypatch.setattr(model, "encode_image", lambda images, normalize: seen.append(images))
    drm_min.image_features(model, images)
    assert torch.equal(seen[0][0], prepared_as_floats(tmp_path / "a.png", seed, 5))


def test_large_photos_were_decoded_whole(model, tmp_path):
    smooth = Image.frombytes("RGB", (8, 6), random.Random(0).randbytes(144)).resize(
        (1600, 1200), Image.BICUBIC
    )
    smooth.save(tmp_path / "a.jpg", quality=90)
    assert read_image(tmp_path / "a.jpg").size == (1600, 1200)
    assert read_image(tmp_path / "a.jpg", least=64).size == (200, 150)  # an eighth, and twice the model's 32
    assert read_image(tmp_path / "a.jpg", least=301).size == (800, 600)
    assert read_image(tmp_path / "a.jpg", border=1, least=64).size == (1598, 1198)  # borders are in pixels
    split = Split(ImageFiles([tmp_path / "a.jpg"], workers=0), torch.zeros(1))
    [(_, images)] = image_batches(model, split, [torch.tensor([0])])
    whole = prepared_as_floats(tmp_path / "a.jpg") * 127.5 + 127.5
    assert (images[0] - whole).abs().mean() < 1  # of 256 levels


def test_a_few_images_started_processes_and_many_start_them_where_none_are_asked_for(monkeypatch):
    monkeypatch.setattr(room.os, "sched_getaffinity", lambda _: range(24), raising=False)
    counts = [room.worker_count(ImageFiles([], workers=w), n) for w, n in ((None, 499), (None, 500), (3, 2))]
    assert counts == [0, 16, 3]


def test_where_processes_are_spawned_each_pass_started_them_anew(model, tmp_path, monkeypatch):
    monkeypatch.setattr(room.multiprocessing, "get_start_method", lambda: "spawn")
    noise(tmp_path / "a.png", 0)
    split = Split(ImageFiles([tmp_path / "a.png"] * 4, workers=2), torch.zeros(4))
    batches = [torch.tensor([0, 1]), torch.tensor([2, 3])]

    def workers(images):
        return {child.pid for child in multiprocessing.active_children()} if list(images) else None

    try:
        first = workers(image_batches(model, split, batches))
        assert len(first) == 2 and workers(image_batches(model, split, batches)) == first
        training = image_batches(model, split, batches, seed=0)  # while it goes on, validation has its own
        next(training)
        assert len(workers(image_batches(model, split, batches))) == 4 and len(list(training)) == 1
        broken = Split(ImageFiles([tmp_path / "gone.png"], workers=2), torch.zeros(1))
        with pytest.raises(BadInput):
            list(image_batches(model, broken, [torch.tensor([0])]))
        numbers = [number for number, _ in image_batches(model, split, batches, first=7)]
        assert numbers == [7, 8]
    finally:
        room.IDLE.clear()


SPAWNED = """
import multiprocessing
import torch
from conftest import load_clip
from drm_min import Split
from support.images import ImageFiles, image_batches

multiprocessing.get_start_method = lambda: "spawn"
split = Split(ImageFiles(["toy/tradeoff.png"], workers=1), torch.zeros(1))
print(len(list(image_batches(load_clip("local-dir:toy/clip")[0], split, [torch.tensor([0])]))))
"""


@pytest.mark.slow
def test_processes_that_are_kept_let_the_program_end():
    here = dict(cwd=ROOT, env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"})
    done = subprocess.run([sys.executable, "-c", SPAWNED], capture_output=True, text=True, timeout=60, **here)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


# ----------------------------------------------------------------------------------------------- crops


def test_random_crops_depend_on_seed_and_step_alone(model, tmp_path):
    files = [tmp_path / f"{i}.png" for i in range(4)]
    for i, file in enumerate(files):
        noise(file, i)
    batches = [torch.tensor([0, 1]), torch.tensor([2, 3]), torch.tensor([0, 1]), torch.tensor([3, 0])]

    def crops(batches, workers, seed, first=0):
        split = Split(ImageFiles(files, workers=workers), torch.zeros(4))
        numbers, images = zip(*image_batches(model, split, batches, seed, first))
        assert numbers == tuple(range(first, first + len(batches)))
        return images

    torch.manual_seed(5)
    whole, after = crops(batches, 0, 3), torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), after)  # the caller's chance is not touched
    assert [images.shape for images in whole] == [(2, 3, 32, 32)] * 4
    for workers, first in ((2, 0), (0, 2), (2, 2)):
        again = crops(batches[first:], workers, 3, first)
        assert len(again) == 4 - first and all(map(torch.equal, again, whole[first:]))
    assert not torch.equal(whole[0], whole[2]) and not torch.equal(whole[0], crops(batches, 0, 4)[0])
    plain = crops(batches, 0, None)
    assert torch.equal(plain[0], plain[2])  # without a seed, nothing is random


def areas(images):
    """Of pictures whose pixels say where they are, 256 steps each way: the shares that crops of them show."""
    values = images.float()  # (B, 3, 32, 32): red is x, green is y, both linear in a crop
    width = (values[:, 0, 16, 24] - values[:, 0, 16, 8]) * 2
    height = (values[:, 1, 24, 16] - values[:, 1, 8, 16]) * 2
    return width * height / 256**2


@pytest.mark.parametrize("on_disk, crop", [(True, 0.9), (False, 0.9), (False, 0.5)])
def test_training_saw_a_fifth_of_a_picture_where_the_recipe_crops_a_tenth(model, tmp_path, on_disk, crop):
    steps = torch.arange(256, dtype=torch.uint8)
    picture = torch.stack([steps.expand(256, 256), steps[:, None].expand(256, 256), torch.zeros(256, 256)])
    images = picture.to(torch.uint8)[None]  # (1, 3, 256, 256)
    if on_disk:
        Image.fromarray(images[0].permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
        images = ImageFiles([tmp_path / "a.png"])
    batches = [torch.zeros(20, dtype=torch.int64)] * 3
    split = Split(images, torch.zeros(1), crop=crop)
    seen = torch.cat([areas(crops) for _, crops in image_batches(model, split, batches, seed=0)])
    assert seen.min() > crop - 0.02 and seen.max() < 1 + 0.02
    assert seen.min() < crop + 0.04, "they are cropped all the same"
    [(_, whole)] = image_batches(model, split, batches[:1])
    assert areas(whole).min() > 1 - 0.02, "and in evaluation they are not"


@pytest.mark.parametrize("crop", [0.9, 1.0])
def test_pictures_in_memory_of_the_models_size_were_never_cropped(model, monkeypatch, crop):
    assert Split.crop == 0.9
    chance, seen = random.Random(0), []
    images = torch.frombuffer(bytearray(chance.randbytes(8 * 3 * 32 * 32)), dtype=torch.uint8)
    images = images.reshape(8, 3, 32, 32)
    split = Split(images, torch.arange(8) % 2, crop=crop)
    look = drm_min.image_features

    def looked_at(model, images):
        seen.append(images)
        return look(model, images)

    monkeypatch.setattr(drm_min, "image_features", looked_at)
    config = Config(dataset="csv", epochs=2, batch_size=8, lr=0.0, select="last", device="cpu")
    drm_min.train(copy.deepcopy(model), split, PROMPTS, None, ERM, config)
    batches = drm_min.shuffled_batches(8, config, 0)
    assert len(seen) == len(batches) == 2
    for got, batch in zip(seen, batches):
        as_they_are = images[batch]
        if crop == 1:
            assert torch.equal(got, as_they_are)
        else:
            assert got.shape == as_they_are.shape and got.dtype == torch.uint8
            assert not torch.allclose(got.float(), as_they_are.float(), atol=12)
    drm_min.encode_images(model, split)  # in evaluation none is
    assert torch.equal(seen[2], images)


def test_the_toy_world_is_not_cropped_and_files_are(toy, tmp_path):
    splits = (toy.train, toy.val, *toy.tests.values())
    assert {split.crop for split in splits} == {1.0}
    pictures(tmp_path, *(f"{split}/{name}/a.png" for split in ("train", "val") for name in ("ski", "tent")))
    assert load("folder", tmp_path).train.crop == 0.9
