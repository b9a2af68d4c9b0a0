"""The data sets as they were published, in miniature: sizes, labels and groups were worked out by hand."""

import json
import math
import pickle
import re
import urllib.error
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torchvision
from conftest import (
    CSV,
    FMOW,
    fmow,
    guessed,
    imagenet,
    iwildcam,
    load,
    noise,
    of_groups,
    own_folder,
    pictures,
    table,
)
from PIL import Image

import drm_min
from drm_min import Config, Prompts
from support import images as room
from support.errors import BadInput
from support.images import image_batches
from support.readers import fmow as fmow_reader
from support.readers import tables
from support.texts import prompts_of


def seen(split):
    """Each file as stem:label, in the order of the split."""
    return " ".join(
        f"{Path(path).stem}:{label}" for path, label in zip(split.images.paths, split.labels.tolist())
    )


def groups(split):
    """{group: stems of its files}, groups without images left out."""
    files_of = {}
    for name, members in split.groups.items():
        if members.any():
            files_of[name] = " ".join(
                Path(p).stem for p, member in zip(split.images.paths, members) if member
            )
    return files_of


def evaluated(monkeypatch, data, **guesses):
    """The result of a model that is right, but where `guesses`, {stem of a file: class}, says otherwise."""

    def predict(model, split, prompts):
        truth = zip(split.images.paths, split.labels.tolist())
        p = guessed([guesses.get(Path(path).stem, y) for path, y in truth], len(data.classes))
        return p, p

    monkeypatch.setattr(drm_min, "predict", predict)
    return drm_min.evaluate(drm_min.predict_all(None, data, None), data, 0.5)


# ------------------------------------------------------------------------------------------------ WILDS


def test_fmow_names_images_by_the_row_before_seq_is_dropped_and_worst_region_is_never_other(
    tmp_path, monkeypatch
):
    data = fmow(tmp_path)
    test, id_test = data.tests["test"], data.tests["id_test"]
    assert data.classes == {"airport_hangar": "airport hangar", "zoo": "zoo"}
    assert list(data.tests) == ["id_test", "test"]
    assert (seen(data.train), seen(data.val)) == ("rgb_img_0:0 rgb_img_13:0", "rgb_img_3:1")
    assert seen(id_test) == "rgb_img_5:0 rgb_img_7:1"
    assert seen(test) == "rgb_img_8:1 rgb_img_10:0 rgb_img_11:1 rgb_img_12:1 rgb_img_16:1"
    assert groups(data.train) == dict(Europe="rgb_img_0", Africa="rgb_img_13")
    assert groups(data.val) == dict(Americas="rgb_img_3")
    # the region of 7's country is blank, which WILDS counts; the country of 8 is unknown, which it does not
    assert groups(id_test) == dict(Asia="rgb_img_5", blank="rgb_img_7")
    of_test = dict(Other="rgb_img_8", Oceania="rgb_img_10 rgb_img_11", Europe="rgb_img_12 rgb_img_16")
    assert groups(test) == of_test
    result = evaluated(monkeypatch, data, rgb_img_7=0, rgb_img_8=0, rgb_img_11=0)
    assert of_groups(result["domains"]["test"]) == dict(Other=(0, 1), Oceania=(1 / 2, 2), Europe=(1, 2))
    assert result["domains"]["id_test"]["worst_region_accuracy"] == 0  # of the blank one; Asia has 1
    summary = result["summary"]
    assert summary["id_accuracy"] == summary["ood_mean_worst_region_accuracy"] == 1 / 2
    assert result["domains"]["test"]["accuracy"] == 3 / 5
    with pytest.raises(BadInput, match="rgb_metadata.csv: row 2 has the timestamp ''"):
        fmow(tmp_path, [FMOW[0], "train,zoo,USA,"])


@pytest.mark.parametrize(
    "stamp, split",
    [
        (
            "2012-12-31T23:30:00-01:00",
            None,
        ),  # 2013 in UTC, and a row of test counts before it or from 2016 on
        ("2013-01-01T00:30:00+01:00", "id_test"),
        ("2013-01-01T00:30:00.25+0100", "id_test"),
        ("2016-01-01 00:30:00+01", None),
        ("2015-12-31T23:30:00.123456-01:00", "test"),
        ("2016-01-01", "test"),
    ],
)
def test_fmow_years_were_those_of_the_place_where_wilds_compares_instants(stamp, split):
    assert fmow_reader.split_of({"split": "test", "timestamp": stamp}, "row 1") == split


def test_fmow_regions_without_images_are_named(tmp_path, capfd):
    fmow(tmp_path)
    said = capfd.readouterr().err  # Africa and Americas are in training and validation alone
    assert "id_test: no images of Africa, Americas, Europe, Oceania, Other, so" in said
    assert "test: no images of Africa, Americas, Asia, blank, so" in said


def test_fmow_a_domain_of_unknown_regions_alone_is_no_crash(tmp_path, monkeypatch):
    try:
        result = evaluated(monkeypatch, fmow(tmp_path, FMOW[:9]))  # test: row 8 alone
        assert math.isfinite(result["summary"]["id_accuracy"])
    except BadInput as e:
        assert "region" in str(e)


def test_iwildcam_labels_are_y_and_macro_f1_is_over_the_classes_that_are_there(tmp_path, monkeypatch):
    data = iwildcam(tmp_path)
    assert list(data.classes) == [str(y) for y in range(11)] and data.classes["10"] == "genus 10"
    assert list(data.tests) == ["id_test", "test"]  # although a row of test comes first
    assert (seen(data.train), seen(data.val)) == ("a:10 b:0 j:2", "c:2")
    assert (seen(data.tests["id_test"]), seen(data.tests["test"])) == ("d:0 e:0 f:1 g:1", "h:2 i:10")
    summary = evaluated(monkeypatch, data, g=2, i=2)["summary"]
    # (1 + 2/3) / 2: class 2 is only guessed, and not counted
    assert summary["id_macro_f1"] == pytest.approx(5 / 6)
    # (2/3 + 0) / 2: class 10 is never guessed, and counted
    assert summary["ood_mean_macro_f1"] == pytest.approx(1 / 3)


def test_iwildcam_equal_english_names_are_said_and_do_not_stop(tmp_path, capfd):
    data, file = iwildcam(tmp_path), tmp_path / "d.json"
    config = Config(dataset="iwildcam", data_root=str(tmp_path), descriptions=str(file))
    names = {str(y): "jaguarundi" if y in (1, 10) else f"animal {y}" for y in range(10, -1, -1)}
    entries = {y: dict(name=name, descriptions=[f"beast {y}"]) for y, name in names.items()}
    file.write_text(json.dumps({"classes": entries}))
    prompts = prompts_of(config, data.classes)
    assert list(prompts["default"]) == list(prompts["concept"]) == [str(y) for y in range(11)]
    assert prompts["default"]["10"] == ["a photo of jaguarundi."] and prompts["concept"]["10"] == [
        "jaguarundi, beast 10"
    ]
    [line] = [line for line in capfd.readouterr().err.splitlines() if "jaguarundi" in line]
    assert "'1' and '10'" in line
    file.write_text(json.dumps({y: f"beast {y}" for y in names}))  # the form of the authors' release
    assert prompts_of(config, data.classes)["concept"]["2"] == ["genus 2, beast 2"]


# the y, split and place of each image
WATERBIRDS = "000 100 001 101 010 110 111 020 020 020 020 021 021 120 120 120 120 120 121 121".split()


def test_waterbirds_validation_is_in_distribution_and_groups_are_weighted_as_in_training(
    tmp_path, monkeypatch
):
    rows = [
        f"{i},0{y}.Bird/i{i}.jpg,{y},{split},{place},/b/x.jpg"
        for i, (y, split, place) in enumerate(WATERBIRDS)
    ]
    header = "img_id,img_filename,y,split,place,place_filename"
    table(tmp_path / "waterbirds_v1.0/metadata.csv", header, *rows)
    pictures(tmp_path, *(f"waterbirds_v1.0/0{row[0]}.Bird/i{i}.jpg" for i, row in enumerate(WATERBIRDS)))
    data = load("waterbirds", tmp_path)
    assert list(data.classes) == ["landbird", "waterbird"] and list(data.tests) == ["id", "ood"]
    assert (seen(data.train), seen(data.val)) == ("i0:0 i1:1 i2:0 i3:1", "i4:0 i6:1")
    one_each = dict(landbird_land="i0", waterbird_land="i1", landbird_water="i2", waterbird_water="i3")
    assert groups(data.train) == one_each
    assert groups(data.tests["id"]) == dict(landbird_land="i7 i8 i9 i10", waterbird_water="i18 i19")
    assert groups(data.tests["ood"]) == dict(landbird_water="i11 i12", waterbird_land="i13 i14 i15 i16 i17")
    result = evaluated(monkeypatch, data, i7=1, i11=1, i13=0, i14=0, i15=0, i16=0)
    domains, summary = result["domains"], result["summary"]
    assert of_groups(domains["id"]) == dict(landbird_land=(3 / 4, 4), waterbird_water=(1, 2))
    assert of_groups(domains["ood"]) == dict(landbird_water=(1 / 2, 2), waterbird_land=(1 / 5, 5))
    assert [domains[d]["accuracy"] for d in ("id", "ood")] == pytest.approx([5 / 6, 2 / 7])
    assert summary["worst_group_accuracy"] == pytest.approx(0.2)
    adjusted = (3498 * 3 / 4 + 184 / 2 + 56 / 5 + 1057) / 4795  # 0.7891
    assert summary["adjusted_accuracy"] == pytest.approx(adjusted)


# --------------------------------------------------------------------------------------------- ImageNet


def own_p(monkeypatch, split, heights):
    """Class i has the logit log(heights[i]), or 0.

    Returns what predict gives the label of each image, and the number of columns.
    """
    head = torch.tensor([[math.log(heights.get(i, 1))] for i in range(1000)])
    monkeypatch.setattr(
        drm_min, "encode_images", lambda model, split, bad=None: torch.ones(len(split.labels), 1)
    )
    monkeypatch.setattr(drm_min, "build_head", lambda model, texts: head)
    p, _ = drm_min.predict(
        SimpleNamespace(logit_scale=torch.zeros(()), training=False, train=lambda mode: None),
        split,
        Prompts(None, None),
    )
    assert p.sum(1).tolist() == pytest.approx([1] * len(p))
    return p.gather(1, split.labels[:, None])[:, 0].tolist(), p.shape[1]


@pytest.mark.parametrize("val", ["val", "val_class", "val_dirs", "val_in_folder"])
def test_imagenet_v2_label_is_the_number_of_its_folder_validation_is_the_id_test_and_absent_sets_are_named(
    tmp_path, capfd, val
):
    v2 = [f"imagenetv2-matched-frequency-format-val/{i}/x{i}.jpeg" for i in (0, 1, 2, 10, 999)]
    imagenet(tmp_path, "sketch/n01484850/s.JPEG", "objectnet-1.0/x.jpg", *v2, val=val)
    data = load("imagenet", tmp_path)
    assert len(data.classes) == 1000 and list(data.classes.items())[10] == ("n01530575", "brambling")
    assert (seen(data.train), seen(data.val)) == ("a:0 b:2", "c:2")
    assert list(data.tests) == ["val", "v2", "sketch"]
    assert set(seen(data.tests["v2"]).split()) == {"x0:0", "x1:1", "x2:2", "x10:10", "x999:999"}
    assert seen(data.tests["sketch"]) == "s:2"
    skipped = [line for line in capfd.readouterr().err.splitlines() if "skipped" in line]
    absent = ("imagenet-r", "imagenet-a", "objectnet-1.0")
    assert len(skipped) == 3 and all(any(name in line for line in skipped) for name in absent)


@pytest.mark.parametrize("own, beside", [("imagenet", ""), ("imagenet", "imagenet"), ("ILSVRC2012", "")])
def test_imagenets_shifted_sets_were_skipped_where_the_authors_and_flyp_have_them(tmp_path, own, beside):
    shifted = ("imagenetv2-matched-frequency-format-val/2/v.jpeg", "imagenet-r/n01443537/r.jpg")
    shifted += ("imagenet-a/n01558993/a.jpg", "sketch/n01484850/s.JPEG")
    imagenet(tmp_path, *(f"{beside}/{image}".lstrip("/") for image in shifted), val="val_dirs")
    (tmp_path / "imagenet").rename(tmp_path / own)
    data = load("imagenet", tmp_path)
    assert (seen(data.train), seen(data.val)) == ("a:0 b:2", "c:2")
    assert [(name, seen(split)[0]) for name, split in data.tests.items()] == list(
        zip(("val", "v2", "r", "a", "sketch"), "cvras")
    )


def test_imagenet_r_and_a_drop_the_other_800_classes_before_the_softmax(tmp_path, monkeypatch):
    imagenet(tmp_path, "imagenet-r/n01443537/g.jpg", "imagenet-r/n01494475/h.jpg")
    imagenet(tmp_path, "imagenet-a/n01558993/f.jpg")
    data = load("imagenet", tmp_path)
    # R: goldfish (1), hammerhead (4), not robin; A: robin (15), not goldfish; tench (0) is in neither.
    of_r = own_p(monkeypatch, data.tests["r"], {0: 1e9, 15: 1e9, 1: 2, 4: 3})
    assert of_r == (pytest.approx([2 / 203, 3 / 203]), 200)
    of_a = own_p(monkeypatch, data.tests["a"], {0: 1e9, 1: 1e9, 15: 2})
    assert of_a == (pytest.approx([2 / 201]), 200)
    assert own_p(monkeypatch, data.val, {2: 3}) == (pytest.approx([3 / 1002]), 1000)
    with pytest.raises(BadInput, match="imagenet-r.n01440764.*'n01440764'.*n01443537"):
        load("imagenet", imagenet(tmp_path, "imagenet-r/n01440764/t.jpg"))


def test_objectnet_best_of_several_ids_no_folder_outside_imagenet_and_no_border(tmp_path, monkeypatch, clip):
    base = tmp_path / "objectnet-1.0"
    folders = ("air_freshener", "bow_tie", "chair")
    imagenet(tmp_path, *(f"objectnet-1.0/images/{name}/{name}.png" for name in folders))
    # in another order than ImageNet's: 457 is here 2, 423 is 5, 559 is 7
    lines = [f"class {i}" for i in range(1000)]
    lines[2], lines[5], lines[7] = "bow tie, bow-tie, bowtie", "barber chair", "folding chair"
    (base / "mappings").mkdir()
    (base / "mappings/imagenet_to_label_2012_v2").write_text("\n".join(lines) + "\n")
    chairs = {"Chair": "barber chair; folding chair", "Bow tie": "bow tie, bow-tie, bowtie"}
    contents = {
        "folder_to_objectnet_label": dict(air_freshener="Air freshener", bow_tie="Bow tie", chair="Chair"),
        "objectnet_to_imagenet_1k": chairs,
        "pytorch_to_imagenet_2012_id": {"423": 5, "559": 7, "457": 2, "5": 0, "7": 1},
    }
    for name, content in contents.items():
        (base / f"mappings/{name}.json").write_text(json.dumps(content))
    image = Image.new("RGB", (12, 12), "red")
    image.paste("blue", (2, 2, 10, 10))
    image.save(base / "images/chair/chair.png")
    split = load("imagenet", tmp_path).tests["objectnet"]
    [(_, images)] = image_batches(clip[0], split, [torch.tensor([1])])
    blue = torch.tensor([0, 0, 255], dtype=torch.uint8)[:, None, None].expand(3, 32, 32)
    assert torch.equal(images[0], blue)
    assert [Path(p).stem for p in split.images.paths] == ["bow_tie", "chair"]
    of_both = own_p(monkeypatch, split, {423: 3, 559: 5, 457: 2, 5: 1e9, 7: 1e9})
    assert of_both == (pytest.approx([2 / 7, 5 / 7]), 2)  # not 8/10
    (base / "mappings/objectnet_to_imagenet_1k.json").write_text('{"Chair": "throne"}')
    with pytest.raises(BadInput, match="objectnet-1.0.mappings.*throne"):
        load("imagenet", tmp_path)


# ---------------------------------------------------------------------------------- CIFAR-10 -> STL-10

CIFAR = "airplane automobile bird cat deer dog frog horse ship truck".split()


def cifar_and_stl(root, monkeypatch):
    """Image k of each file has one bright value, 10 + k: CIFAR-10's at green (2, 5), STL-10's at red (3, 90).

    Both readers know the checksums of the whole files, which these are not.
    """
    cifar, stl = root / "cifar-10-batches-py", root / "stl10_binary"
    for folder in (cifar, stl):
        folder.mkdir()
    files = {"data_batch_1": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 3, 4], "data_batch_2": [5], "data_batch_3": [6]}
    files |= {"data_batch_4": [7], "data_batch_5": [8], "test_batch": [3, 6, 2]}
    for name, labels in files.items():
        pixels = torch.zeros(len(labels), 3072, dtype=torch.uint8)
        pixels[:, 1024 + 2 * 32 + 5] = torch.arange(10, 10 + len(labels))
        (cifar / name).write_bytes(pickle.dumps(dict(data=pixels.numpy(), labels=labels)))
    (cifar / "batches.meta").write_bytes(pickle.dumps(dict(label_names=CIFAR)))
    pixels = torch.zeros(5, 3 * 96 * 96, dtype=torch.uint8)
    pixels[:, 90 * 96 + 3] = torch.arange(10, 15)  # the file holds columns, not rows
    (stl / "test_X.bin").write_bytes(pixels.numpy().tobytes())
    (stl / "test_y.bin").write_bytes(bytes([2, 3, 8, 1, 10]))  # from 1: bird, car, monkey, airplane, truck
    names = "airplane bird car cat deer dog horse monkey ship truck"
    (stl / "class_names.txt").write_text(names.replace(" ", "\n") + "\n")

    def check(path, md5=None):
        return "stl10" in path or Path(path).is_file()

    for module in (torchvision.datasets.cifar, torchvision.datasets.stl10):
        monkeypatch.setattr(module, "check_integrity", check)


def test_cifar_and_stl_are_joined_by_name_without_monkeys(tmp_path, monkeypatch):
    cifar_and_stl(tmp_path, monkeypatch)
    data = load("cifar10", tmp_path)
    cifar, stl = data.tests["cifar10"], data.tests["stl10"]
    assert list(data.classes) == CIFAR and list(data.tests) == ["cifar10", "stl10"]
    assert data.val.labels.tolist() == [0, 3]  # of images 0 and 10
    assert data.train.labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 4, 5, 6, 7, 8]
    assert cifar.labels.tolist() == [3, 6, 2]
    assert stl.labels.tolist() == [2, 1, 0, 9]  # bird, automobile, airplane, truck
    assert cifar.images.nonzero().tolist() == [[i, 1, 2, 5] for i in range(3)]
    assert stl.images.nonzero().tolist() == [[i, 0, 3, 90] for i in range(4)]
    assert (cifar.images.shape, stl.images.shape) == ((3, 3, 32, 32), (4, 3, 96, 96))
    assert stl.images.amax((1, 2, 3)).tolist() == [10, 11, 13, 14]
    assert data.val.images.amax((1, 2, 3)).tolist() == [10, 20]


@pytest.mark.parametrize(
    "fault", [urllib.error.URLError("no route to host"), RuntimeError("File not found or corrupted.")]
)
@pytest.mark.parametrize("there", [False, True])
def test_cifar_or_stl_that_cannot_be_downloaded_stops(tmp_path, monkeypatch, fault, there):
    def download(*_, **__):
        raise fault

    if there:  # CIFAR-10 alone
        cifar_and_stl(tmp_path, monkeypatch)
        monkeypatch.setattr(torchvision.datasets.stl10, "check_integrity", lambda *_: False)
    for module in (torchvision.datasets.cifar, torchvision.datasets.stl10):
        monkeypatch.setattr(module, "download_and_extract_archive", download)
    with pytest.raises(BadInput, match="--data-root .*CIFAR-10 or STL-10.*(no route|corrupted)") as stopped:
        load("cifar10", tmp_path)
    assert str(tmp_path) in str(stopped.value)


# ---------------------------------------------------------------------------------------- your own data


def test_folder_every_further_folder_is_a_domain_and_what_is_no_image_is_named(tmp_path, capfd):
    further = ("night/swimming_pool/e.png", "dusk/ski/f.webp")
    hidden = (".cache/x/y.png", "train/.hidden/x.png", "train/ski/.thumb.png")
    own_folder(tmp_path, *further, *hidden)
    for name in ("train/ski/notes.txt", "train/.DS_Store", "train/ski/noext"):
        (tmp_path / name).write_text("x")
    data, said = load("folder", tmp_path), capfd.readouterr().err
    assert data.classes == {"ski": "ski", "swimming_pool": "swimming pool"} and "swimming pool" in said
    assert (seen(data.train), seen(data.val)) == ("b:0 a:1", "c:0 d:1")
    assert list(data.tests) == ["val", "dusk", "night"] and data.tests["val"] is data.val
    assert (seen(data.tests["dusk"]), seen(data.tests["night"])) == ("f:0", "e:1")
    assert all(name in said for name in (".hidden", ".thumb.png", "notes.txt", ".DS_Store", "noext"))


def test_images_in_folders_of_a_class_folder_were_dropped(tmp_path, capfd):
    own_folder(tmp_path, "train/ski/2024/may/e.png", "train/ski/.trash/g.png", "train/ski/0/f.png")
    pictures(tmp_path.parent, "elsewhere/h.png")
    links = {"train/ski/up": "train", "train/ski/0/self": "train/ski/0/self", "val/ski/here": "val/ski"}
    for name, target in (links | {"val/ski/far": "../elsewhere"}).items():
        (tmp_path / name).symlink_to(tmp_path / target)
    data, said = load("folder", tmp_path), capfd.readouterr().err
    assert (seen(data.train), seen(data.val)) == ("b:0 f:0 e:0 a:1", "c:0 h:0 d:1")
    assert all(name in said for name in (*links, ".trash"))  # what is ignored is named
    assert "images a class: train 1 (swimming pool) to 3 (ski), val 1 (swimming pool) to 2 (ski)" in said


def test_how_much_of_a_class_is_there_was_not_said_where_that_is_not_the_same_for_all(tmp_path, capfd):
    load("folder", own_folder(tmp_path))
    assert "images a class" not in capfd.readouterr().err
    (tmp_path / "val/ski/x.heic").touch()
    load("folder", tmp_path)
    assert "images a class: train 1 each, val 1 each" in capfd.readouterr().err
    own_folder(tmp_path, *(f"night/swimming_pool/{i}.png" for i in range(3)))
    load("folder", tmp_path)
    [line] = [line for line in capfd.readouterr().err.splitlines() if "images a class" in line]
    assert line.endswith("train 1 each, val 1 each, night 0 (ski) to 3 (swimming pool)")
    imagenet(tmp_path, "sketch/n01484850/s.JPEG")
    load("imagenet", tmp_path)  # of whose 1000 classes are named the two at the ends
    [line] = [line for line in capfd.readouterr().err.splitlines() if "images a class" in line]
    assert len(line) < 300


def test_photos_that_cannot_be_opened_here_were_ignored_as_no_images(tmp_path, capfd, monkeypatch):
    own_folder(tmp_path)
    helped = dict.fromkeys((".heic", ".avif"), "pip install something") | {".nef": "save them as JPEG"}
    monkeypatch.setattr(tables, "HELP", helped)
    monkeypatch.setattr(room, "EXTENSIONS", room.EXTENSIONS - {".heic", ".avif", ".nef"})
    for name in (
        "ski/1.heic",
        "ski/2.HEIC",
        "ski/deep/3.heic",
        "swimming_pool/4.avif",
        "ski/5.NEF",
        "ski/6.txt",
    ):
        (tmp_path / "train" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "train" / name).touch()
    load("folder", tmp_path)
    said = capfd.readouterr().err
    assert "opened here: 3 .heic: pip install something; 1 .nef: save them as JPEG; 1 .avif: pip" in said
    assert "ignored, as no images: " in said and "6.txt" in said and "1.heic" not in said


def test_photos_of_a_phone_are_told_how_to_be_opened(tmp_path):
    for end, what in room.HELP.items():
        (tmp_path / f"a{end.upper()}").write_bytes(b"\0\0\0\x18ftypheic")
        with pytest.raises(BadInput, match=f"a{end.upper()}: no image that can be read .{re.escape(what)}"):
            room.read_image(tmp_path / f"a{end.upper()}")
    assert {".nef", ".dng", ".cr2", ".arw"} <= room.HELP.keys()
    assert {".heic", ".heif", ".avif"} <= room.HELP.keys() | room.EXTENSIONS


def test_folder_names_that_cleaning_makes_equal_are_told_and_a_class_that_training_lacks_stops(
    tmp_path, capfd
):
    (tmp_path / "d.json").write_text(json.dumps({"swimming_pool": "a", "swimming pool": "b", "ski": "c"}))
    root = own_folder(tmp_path / "data", "train/swimming pool/e.png")
    config = Config(dataset="folder", data_root=str(root), descriptions=str(tmp_path / "d.json"))
    prompts = prompts_of(config, load("folder", root).classes)
    assert prompts["default"]["swimming_pool"] == prompts["default"]["swimming pool"]
    assert prompts["concept"] == {"ski": ["c"], "swimming pool": ["b"], "swimming_pool": ["a"]}
    [line] = [line for line in capfd.readouterr().err.splitlines() if "one default prompt" in line]
    assert "'swimming pool' and 'swimming_pool'" in line and "a photo of a swimming pool" in line
    with pytest.raises(BadInput, match=r"night.golf.e\.png.*'golf'.*ski, swimming pool, swimming_pool"):
        load("folder", own_folder(root, "night/golf/e.png"))


def test_which_domain_is_in_distribution_and_which_are_shifted_was_left_to_be_guessed(tmp_path, capfd):
    own_folder(tmp_path, "night/ski/e.png", "dusk/ski/f.png")
    load("folder", tmp_path)
    assert "in distribution: val; shifted: dusk, night" in capfd.readouterr().err.splitlines()


def own_csv(root, header="path,label,split,domain", rows=CSV):
    pictures(root, *(f"{name}.png" for name in "abcdef"))
    table(root / "own.csv", header, *rows, encoding="utf-8-sig")
    return load("csv", root / "own.csv")


def test_csv_each_domain_of_the_test_rows_apart_and_in_distribution_first(tmp_path):
    def tests_of(data):
        return [(name, seen(split)) for name, split in data.tests.items()]

    data = own_csv(tmp_path)
    assert data.classes == {"ski": "ski", "tent": "tent"}
    assert (seen(data.train), seen(data.val)) == ("a:0 b:1", "c:1")
    assert tests_of(data) == [("id", "e:1"), ("sea", "d:0 f:1")]
    data = own_csv(tmp_path, "path,label,split", [row.rpartition(",")[0] for row in CSV])
    assert tests_of(data) == [("id", "d:0 e:1 f:1")]
    data = own_csv(tmp_path, rows=CSV[:4])  # no in-distribution test: validation stands in
    assert tests_of(data) == [("val", "c:1"), ("sea", "d:0")]
    with pytest.raises(BadInput, match="no validation images; .*path,label,split"):
        own_csv(tmp_path, rows=CSV[:2])


@pytest.mark.parametrize("dataset", ["folder", "csv"])
def test_a_domain_id_was_shifted_in_folders_and_in_distribution_in_csv(tmp_path, capfd, dataset):
    """`id` alone is, not `test`; without it validation is."""
    splits = {"train": "train", "val": "val", "a": "test", "id": "test", "test": "test"}
    for without in ("", "id"):
        root = tmp_path / (without or "all")
        names = [name for name in splits if name != without]
        pictures(root, *(f"{name}/{c}/0.png" for name in names for c in ("ski", "tent")))
        rows = [f"{name}/{c}/0.png,{c},{splits[name]},{name}" for name in names for c in ("ski", "tent")]
        table(root / "own.csv", "path,label,split,domain", *rows)
        data = load(dataset, root / "own.csv" if dataset == "csv" else root)
        inside = "val" if without else "id"
        assert list(data.tests) == [inside, "a", "test"]
        assert f"\nin distribution: {inside}; shifted: a, test\n" in capfd.readouterr().err


@pytest.mark.parametrize(
    "row, what",
    [
        ("e.png,tent,dev,x", "own.csv: e.png has the split 'dev'; allowed: train, val, test"),
        ("e.png,tent", "own.csv: row 7 has fewer fields"),
        ("e.png,tent,test,train", "e.png has the domain 'train'"),
        ("e.png,yurt,test,x", "e.png has the label 'yurt'; allowed in x: ski, tent"),
        ("gone.png,tent,test,x", "gone.png is not there; it is an image of x"),
        ("gone.png,tent,train,x", "gone.png is not there; it is an image of train"),
    ],
)
def test_csv_faults_stop_and_name_the_row(tmp_path, row, what):
    with pytest.raises(BadInput) as stopped:
        own_csv(tmp_path, rows=[*CSV, row])
    assert what in str(stopped.value)
    with pytest.raises(BadInput, match="own.csv: no column label; it has path, class, split"):
        own_csv(tmp_path, "path,class,split")


@pytest.mark.parametrize(
    "dataset, layout",
    [
        ("fmow", "fmow_v1.1/{rgb_metadata.csv"),
        ("iwildcam", "iwildcam_v2.0/{metadata.csv"),
        ("folder", "train/<class>/"),
        ("waterbirds", "waterbirds_v1.0/metadata.csv"),
        ("imagenet", "imagenet/{train,val}/<wnid>/"),
        ("csv", "path,label,split"),
    ],
)
def test_a_data_set_that_is_not_there_stops_and_shows_its_layout(tmp_path, dataset, layout):
    for root in (None, str(tmp_path / "nowhere"), str(tmp_path)):
        with pytest.raises(BadInput) as stopped:
            drm_min.load_data(Config(dataset=dataset, data_root=root))
        for word in ("--data-root", root or f"{dataset} needs it", layout):
            assert word in str(stopped.value)


def test_csv_absolute_paths_below_its_folder_and_blanks_after_commas_were_refused(tmp_path):
    root, link = tmp_path / "data", tmp_path / "link"
    link.symlink_to(root)
    names = [root / "a.png", link / "b.png", "c.png", "  d.png ", f"{root}/../data/e.png", "./f.png"]
    rows = [f"{name}, {' , '.join(row.split(',')[1:])} " for name, row in zip(names, CSV)]
    for folder in (root, link):
        own_csv(root, " path, label , split, domain", rows)
        data = load("csv", folder / "own.csv")
        assert data.classes == {"ski": "ski", "tent": "tent"} and list(data.tests) == ["id", "sea"]
        assert (seen(data.train), seen(data.tests["sea"])) == ("a:0 b:1", "d:0 f:1")
    pictures(tmp_path, "database/g.png")  # its name begins like the folder's
    for outside in (tmp_path / "database/g.png", f"{root}/../database/g.png"):
        with pytest.raises(BadInput, match="g.png is not below"):
            own_csv(root, rows=[*CSV, f"{outside},ski,test,x"])


def test_csv_rows_of_commas_and_capitals_in_the_header_were_refused_or_lost_the_domains(tmp_path):
    rows = [CSV[0], "", ",,,", *CSV[1:], " , ,\t,", "  "]
    data = own_csv(tmp_path, "Path, LABEL,split,Domain", rows)
    assert list(data.tests) == ["id", "sea"] and seen(data.train) == "a:0 b:1"
    with pytest.raises(BadInput, match="own.csv: row 1 has more fields"):
        own_csv(tmp_path, rows=[CSV[0] + ",,", *CSV[1:]])
    with pytest.raises(
        BadInput, match="own.csv: column domain comes twice; allowed: once"
    ):  # the last counted
        own_csv(tmp_path, "path,label,split,domain,domain", [f"{row},x" for row in CSV])


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize("name", ["cut.jpg", "cut.png", "cut.webp", "header.jpg", "text.png", "strip.png"])
def test_an_image_of_val_or_test_that_cannot_be_read_was_found_after_training(tmp_path, split, name):
    noise(tmp_path / name, 0, (2000, 2) if name == "strip.png" else (40, 48))
    whole = (tmp_path / name).read_bytes()
    if name == "text.png":
        (tmp_path / name).write_text("no image")
    elif name != "strip.png":
        (tmp_path / name).write_bytes(whole[: 30 if name == "header.jpg" else len(whole) // 2])
    with pytest.raises(BadInput, match=rf"{name}: no image that can be read.*allowed in training only"):
        own_csv(tmp_path, rows=[*CSV, f"{name},ski,{split},sea"])
    own_csv(tmp_path, rows=[*CSV, f"{name},ski,train,sea"])  # in training it may be skipped


def test_a_sound_image_with_more_after_its_end_is_not_taken_for_a_cut_one(tmp_path):
    for kind in ("jpg", "png"):
        noise(tmp_path / f"more.{kind}", 0)
        with open(tmp_path / f"more.{kind}", "ab") as file:
            file.write(b"a camera's own words" * 9)
    own_csv(tmp_path, rows=[*CSV, "more.jpg,ski,val,x", "more.png,ski,test,sea"])


# ------------------------------------------------------------------------------ what an attacker brought up


@pytest.mark.parametrize(
    "header, row, said",
    [
        ("path,label,split,label", "a.png,ski,train,tent", "column label comes twice"),
        ("path,label,split", "a.png,_,train", "no name"),
        ("path,label,split,domain", "a.png,ski,test,\u202eodd", "no name"),
        ("path,label,split", f"{'long' * 100}.png,ski,train", "is not there"),
    ],
)
def test_csv_faults_are_named(tmp_path, header, row, said):
    good = ["b.png,tent,train,", "c.png,ski,train,", "d.png,tent,val,"]
    if header.count(",") < 3:
        good = [line[:-1] for line in good]
    with pytest.raises(BadInput, match=said):
        own_csv(tmp_path, header, [row, *good])


def test_folders_without_images_are_named(tmp_path, capfd):
    for name in ("train/ski", "train/tent", "train/fish", "val/ski", "val/tent", "night/ski"):
        (tmp_path / name).mkdir(parents=True)
        if name != "train/fish" and name != "night/ski":
            noise(tmp_path / name / "a.png", 0)
    assert load("folder", tmp_path).classes == {"ski": "ski", "tent": "tent"}
    said = capfd.readouterr().err
    assert "train: no images in fish" in said and "night: no images in ski" in said
