"""Data sets and images that are not as they should be: one line, exit code 2, and nothing is lost."""

import os
import shutil
import struct

import pytest
from conftest import noise, pictures
from place import (
    LONG_TEXT,
    NEST,
    POOLS,
    WORDS,
    ends_in_one_line,
    entries,
    is_told,
    place_for_faults,  # noqa: F401  the fixture `place`
    png,
)

pytestmark = pytest.mark.usefixtures("one_thread", "one_tokenizer")

MAPPINGS = (
    *("folder_to_objectnet_label.json", "objectnet_to_imagenet_1k.json", "pytorch_to_imagenet_2012_id.json"),
    "imagenet_to_label_2012_v2",
)
V2 = "imagenetv2-matched-frequency-format-val"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"
BMP = b"BM" + struct.pack("<IHHIIiiHHIIIIII", 54, 0, 0, 54, 40, -5, -5, 1, 24, 0, 0, 0, 0, 0, 0)


def emptied(*names):
    """Damage: these folders are there, with nothing in them."""

    def damage(base):
        for name in names:
            shutil.rmtree(base / name)
            (base / name).mkdir()

    return damage


def without(*names):
    """Damage: these files and folders are not there."""

    def damage(base):
        for name in names:
            shutil.rmtree(base / name) if (base / name).is_dir() else (base / name).unlink()

    return damage


def with_file(name, content):
    """Damage: a file of this content, in the place of what has its name."""

    def damage(base):
        if (base / name).exists():
            without(name)(base)
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return damage


def a_folder_for(name):
    """Damage: a folder in the place of a file."""

    def damage(base):
        (base / name).unlink()
        (base / name).mkdir()

    return damage


def in_order(*damages):
    def damage(base):
        for one in damages:
            one(base)

    return damage


def outside(base):
    """An image beside the data root."""
    pictures(base.parent, "outside.png")


def cut(path):
    """A JPEG without its second half, whatever its name says."""
    noise(path.with_suffix(".jpg"), 0)
    whole = path.with_suffix(".jpg").read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def one_class(place):
    alone = without("train/swimming_pool", "val/swimming_pool")
    return place.folder(words={"ski": "a"}, damage=alone) + ["--method", "erm"]


def texts_for_an_image(place):
    def damage(base):
        shutil.copy(place.world / "looks.json", base / "val/ski/x.png")

    return place.folder(damage=damage)


FAULTS = {
    "folder": {
        "train is a file": (lambda p: p.folder(damage=with_file("train", "x")), ["train", "<class>"]),
        "images without class folders": (
            lambda p: p.data("folder", POOLS, make=lambda b: pictures(b, "train/a.png", "val/b.png")),
            ["no validation images"],
        ),
        "no val": (lambda p: p.folder(damage=without("val")), ["no validation images"]),
        "val without classes": (lambda p: p.folder(damage=emptied("val")), ["no validation images"]),
        "a class that cannot be said": (lambda p: p.folder("train/_/x.png"), ["no name"]),
        "a class that training lacks": (lambda p: p.folder("val/golf/x.png"), ["val/golf/x.png", "'golf'"]),
        "a domain of two lines": (lambda p: p.folder("a\nb/ski/x.png"), ["no name"]),
        "a domain that is a link upwards": (
            lambda p: p.folder(damage=lambda b: (b / "night").symlink_to("..")),
            ["night/", "label"],
        ),
        "a description that is no image": (texts_for_an_image, ["x.png", "no image"]),
        "an archive instead of a folder": (
            lambda p: p.run(data_root=p.write("x.zip", "PK")),
            ["x.zip", "Not a directory"],
        ),
        "a root longer than a path may be": (
            lambda p: p.run(data_root=p.root / ("n" * 300)),
            ["--data-root", "nnn"],
        ),
        "one class alone to train on": (one_class, ["one class"]),
        "escapes in the name of a class": (
            lambda p: p.folder("train/\x1b[31m/a.png", words=POOLS | {"\x1b[31m": "x"}),
            ["name"],
        ),
    },
    "csv": {
        "a path upwards": (
            lambda p: p.csv("../outside.png,ski,test,x", damage=outside),
            ["../outside.png"],
        ),
        "an absolute path": (
            lambda p: p.csv(f"{p.root}/outside.png,ski,test,x", damage=outside),
            ["outside.png"],
        ),
        "a path upwards that is not there": (lambda p: p.csv("../../../gone.png,ski,test,x"), ["gone.png"]),
        "a byte of nothing in a path": (lambda p: p.csv("a\0.png,ski,test,x"), ["own.csv"]),
        "no path": (lambda p: p.csv(",ski,test,x"), ["is not there"]),
        "a folder for a path": (lambda p: p.csv(".,ski,test,x"), ["is not there"]),
        "a field of 140000 letters": (
            lambda p: p.csv("a.png,ski,test," + "x" * 140_000),
            ["own.csv", "field limit"],
        ),
        "a quote that is never closed": (
            lambda p: p.csv('"a.png,ski,test,x'),
            ["own.csv", "row 7", "fewer fields"],
        ),
        "more fields than the header": (
            lambda p: p.csv("a.png,ski,test,deep, blue sea"),
            ["own.csv", "row 7"],
        ),
        "semicolons": (
            lambda p: p.csv(header="path;label;split", only=True),
            ["no column path, label, split", "path;label;split"],
        ),
        "UTF-16": (
            lambda p: p.csv(damage=with_file("own.csv", "path,label,split\n".encode("utf-16"))),
            ["own.csv", "UTF-8"],
        ),
        "an image instead": (
            lambda p: p.csv(damage=lambda b: shutil.copy(b / "a.png", b / "own.csv")),
            ["own.csv", "UTF-8"],
        ),
        "a folder instead": (lambda p: p.csv(damage=a_folder_for("own.csv")), ["own.csv", "directory"]),
        "an empty file": (lambda p: p.csv(damage=with_file("own.csv", "")), ["own.csv", "no column"]),
        "a header alone": (lambda p: p.csv(only=True), ["no validation images"]),
        "no training rows": (
            lambda p: p.csv("c.png,tent,val,x", only=True),
            ["own.csv", "no training images"],
        ),
        "no label": (lambda p: p.csv("a.png,,train,x"), ["no name"]),
        "a label longer than the context": (
            lambda p: p.csv(f"a.png,{LONG_TEXT},train,x", words=WORDS | {LONG_TEXT: "c"}),
            ["97 tokens"],
        ),
        "a label of two lines in a test": (
            lambda p: p.csv('a.png,"sk\ni",test,x'),
            [r"'sk\ni'", "ski, tent"],
        ),
        "capitals in a split": (
            lambda p: p.csv("a.png,ski,Train,x"),
            ["a.png", "'Train'", "train, val, test"],
        ),
        "escapes in a split": (lambda p: p.csv("a.png,ski,\x1b[31m,x"), ["a.png", "allowed"]),
        "escapes in a domain": (lambda p: p.csv("a.png,ski,test,\x1b[31m"), ["no name"]),
        "escapes in a label": (
            lambda p: p.csv("a.png,\x1b[31m,train,x", words=WORDS | {"\x1b[31m": "x"}),
            ["name"],
        ),
    },
    "waterbirds": {
        "a third bird": (lambda p: p.birds("5,a.png,2,2,0"), ["a.png", "y 2"]),
        "no place": (lambda p: p.birds("5,a.png,1,2,"), ["a.png", "place"]),
        "other columns": (lambda p: p.birds(header="a,b,c,d,e"), ["no column img_filename"]),
        "splits that are none": (lambda p: p.birds("0,a.png,0,7,0", only=True), ["no validation images"]),
        "an image that is not there": (lambda p: p.birds("5,gone.png,1,2,0"), ["gone.png", "ood"]),
        "a folder for the table": (
            lambda p: p.birds(damage=a_folder_for("waterbirds_v1.0/metadata.csv")),
            ["metadata.csv", "directory"],
        ),
        "a path upwards": (lambda p: p.birds("5,../outside.png,1,2,0"), ["../outside.png"]),
    },
    "iwildcam": {
        "a y of 5000 digits": (
            lambda p: p.cameras("categories.csv", "9" * 5000 + ",1,x"),
            ["categories.csv"],
        ),
        "a y that is no number": (
            lambda p: p.cameras("categories.csv", "x,1,other"),
            ["categories.csv", "no whole number"],
        ),
        "a y that comes twice": (lambda p: p.cameras("categories.csv", "3,3,other"), ["categories.csv", "3"]),
        "a y without a category": (lambda p: p.cameras("metadata.csv", "11,test,3,77,a.jpg"), ["'77'"]),
        "a category without a name": (lambda p: p.cameras("categories.csv", "11,3,"), ["no name"]),
        "no categories": (
            lambda p: p.cameras(damage=without("categories.csv")),
            ["categories.csv", "No such file"],
        ),
        "no images": (lambda p: p.cameras(damage=without("train")), ["h.jpg is not there"]),
        "a path upwards": (
            lambda p: p.cameras("metadata.csv", "11,test,3,2,../../outside.jpg"),
            ["../../outside.jpg"],
        ),
    },
    "fmow": {
        "a year cut short": (lambda p: p.satellite("test,zoo,USA,201"), ["row 18", "'201'"]),
        "a year before Christ": (
            lambda p: p.satellite("test,zoo,USA,-201-01-01"),
            ["row 18", "'-201-01-01'"],
        ),
        "no timestamp": (lambda p: p.satellite("test,zoo,USA,"), ["row 18", "''"]),
        "fields too few": (lambda p: p.satellite("test,zoo"), ["row 18", "fewer fields"]),
        "a row without an image": (
            lambda p: p.satellite("test,zoo,USA,2017-01-01"),
            ["rgb_img_17.png is not there"],
        ),
        "an image that is gone": (
            lambda p: p.satellite(damage=without("images/rgb_img_8.png")),
            ["rgb_img_8.png is not there"],
        ),
        "no regions": (
            lambda p: p.satellite(damage=with_file("country_code_mapping.csv", "x,y\n")),
            ["no column alpha-3, region"],
        ),
    },
    "imagenet": {
        "a class 1000 in V2": (lambda p: p.imagenet(f"{V2}/1000/x.jpeg"), ["'1000'", "v2"]),
        "names for numbers in V2": (lambda p: p.imagenet(f"{V2}/tench/x.jpeg"), ["'tench'", "v2"]),
        "names for wnids": (
            lambda p: p.imagenet("sketch/tench/x.jpeg"),
            ["'tench'", "sketch", "n01440764"],
        ),
        "a wnid that is none": (
            lambda p: p.imagenet("imagenet/val/n99999999/x.jpeg"),
            ["'n99999999'", "val"],
        ),
        "no val": (
            lambda p: p.imagenet(damage=without("imagenet/val")),
            ["imagenet/val", "No such file"],
        ),
        "val as it comes out of the archive": (
            lambda p: p.imagenet(
                damage=in_order(
                    emptied("imagenet/val"),
                    lambda b: pictures(b, "imagenet/val/ILSVRC2012_val_00000001.JPEG"),
                )
            ),
            ["no validation images"],
        ),
        "ObjectNet without its mappings": (
            lambda p: p.imagenet("objectnet-1.0/images/chair/x.png"),
            ["mappings", "No such file"],
        ),
        "ObjectNet with mappings of 100000 brackets": (
            lambda p: p.imagenet(
                "objectnet-1.0/images/chair/x.png",
                damage=in_order(*(with_file(f"objectnet-1.0/mappings/{name}", NEST) for name in MAPPINGS)),
            ),
            ["mappings", "not ObjectNet's"],
        ),
    },
    "cifar10": {
        "nothing there and no network": (lambda p: p.cifar(lambda b: None), ["--data-root", "no route"]),
        "a file for the folder": (
            lambda p: p.cifar(lambda b: (b.rmdir(), b.write_text("x"))),
            ["--data-root", "CIFAR-10"],
        ),
        "an archive that is damaged": (
            lambda p: p.cifar(with_file("cifar-10-python.tar.gz", "x")),
            ["--data-root", "no route"],
        ),
    },
    "images": {
        "a bomb of 3.6 thousand million pixels": (lambda p: p.image(png(60_000, 60_000)), ["x.png", "bomb"]),
        "a size that overflows": (lambda p: p.image(png(2**31 - 1, 2**31 - 1)), ["x.png", "no image"]),
        "no size": (lambda p: p.image(png(0, 0)), ["x.png", "no image"]),
        "pixels that do not come": (lambda p: p.image(png(64, 64)), ["x.png", "no image"]),
        "pixels that are cut off": (lambda p: p.image(cut), ["x.png", "no image"]),
        "a photo of a phone": (
            lambda p: p.csv("x.cr2,ski,val,x", damage=with_file("x.cr2", "II*")),
            ["x.cr2", "save them as JPEG"],
        ),
        "a strip": (lambda p: p.image(png(4000, 1, b"\0" * 4001)), ["x.png", "no picture"]),
        "a drawing in XML": (
            lambda p: p.image(b'<svg xmlns="http://www.w3.org/2000/svg"/>'),
            ["x.png", "no image"],
        ),
        "the page of an error 404": (lambda p: p.image(b"<html>404</html>"), ["x.png", "no image"]),
        "a pointer of Git LFS": (lambda p: p.image(LFS), ["x.png", "no image"]),
        "a TIFF that ends after its header": (lambda p: p.image(b"II*\0\x08\0\0\0"), ["x.png", "no image"]),
        "a TIFF whose directory is itself": (
            lambda p: p.image(b"II*\0\x08\0\0\0\0\0\x08\0\0\0"),
            ["x.png", "no image"],
        ),
        "a GIF without a picture": (
            lambda p: p.image(b"GIF89a\xff\xff\xff\xff\0\0\0;"),
            ["x.png", "no image"],
        ),
        "a JPEG of its first marker": (lambda p: p.image(b"\xff\xd8\xff\xe0"), ["x.png", "no image"]),
        "a BMP of negative size": (lambda p: p.image(BMP), ["x.png", "no image"]),
        "a device": (
            lambda p: p.image(lambda path: path.symlink_to("/dev/zero")),
            ["x.png is not there"],
        ),
        "a link to itself": (lambda p: p.image(lambda path: path.symlink_to(path)), ["x.png is not there"]),
    },
}
if hasattr(os, "mkfifo"):
    FAULTS["images"]["a pipe"] = (lambda p: p.image(os.mkfifo), ["x.png is not there"])


@pytest.mark.parametrize("area, build, said", entries(FAULTS))
def test_bad_input_ends_in_one_line_and_costs_nothing(place, capfd, area, build, said):
    ends_in_one_line(place, capfd, area, build, said)


TOLD = {
    "folder": {
        "photos of a camera as it stores them": (
            lambda p: p.folder(damage=with_file("train/ski/x.NEF", "II*")),
            ["1 .nef: save them as JPEG"],
        ),
        "images in a folder of a class folder": (
            lambda p: p.folder("train/ski/2024/x.png"),
            ["train 1 (swimming pool) to 2 (ski)"],
        ),
        "classes that differ in capitals": (
            lambda p: p.folder("train/Ski/x.png", words=POOLS | {"ski": "a", "Ski": "b"}),
            ["'Ski' and 'ski' have one default prompt", "that head cannot tell them apart"],
        ),
    },
    "csv": {
        "labels that differ in capitals": (
            lambda p: p.csv("a.png,Ski,train,x", words=WORDS | {"Ski": "c"}),
            ["'Ski' and 'ski' have one default prompt", "that head cannot tell them apart"],
        ),
    },
}


@pytest.mark.parametrize("area, build, said", entries(TOLD))
def test_what_is_not_refused_is_told(place, capfd, area, build, said):
    is_told(place, capfd, area, build, said)
