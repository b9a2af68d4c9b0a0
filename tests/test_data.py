"""The data sets as they were published, in miniature: sizes, labels, groups and metrics were worked out by hand."""
import json
import math
import pickle
import random
import urllib.error
from pathlib import Path
from types import SimpleNamespace

import open_clip
import pytest
import torch
import torchvision
from PIL import Image

import drm_min
from files import read_image
from drm_min import BadInput, Config, Split, metrics, prompts_of


def pictures(root, *names, size=(8, 8)):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, "red").save(root / name)
    return root


def noise(path, seed, size=(40, 48)):
    Image.frombytes("RGB", size, random.Random(seed).randbytes(3 * size[0] * size[1])).save(path)


def table(path, header, *rows, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *rows]) + "\n", encoding=encoding)


def load(dataset, root, **options):
    return drm_min.load_data(Config(dataset=dataset, data_root=str(root), **options))


def seen(split):
    """Each file as stem:label, in the order of the split."""
    return " ".join(f"{Path(path).stem}:{label}" for path, label in zip(split.images, split.labels.tolist()))


def groups(split):
    """{group: stems of its files}, groups without images left out."""
    of = {name: [Path(p).stem for p, member in zip(split.images, members) if member] for name, members in split.groups.items()}
    return {name: " ".join(stems) for name, stems in of.items() if stems}


def of_groups(m):
    """Metrics -> {group: (accuracy, n)}."""
    return {k[9:]: (v, m["n_" + k[9:]]) for k, v in m.items() if k.startswith("accuracy_")}


def guessed(guesses, size):
    p = torch.full((len(guesses), size), 0.01, dtype=torch.double)
    p[range(len(guesses)), guesses] = 0.9
    return p


def evaluated(monkeypatch, data, **guesses):
    """The result of a model that is right, but where `guesses`, {stem of a file: class}, says otherwise."""
    def predict(model, split, *_):
        p = guessed([guesses.get(Path(path).stem, y) for path, y in zip(split.images, split.labels.tolist())], len(data.classes))
        return p, p

    monkeypatch.setattr(drm_min, "predict", predict)
    return drm_min.evaluate(None, data, None, None, (0.5,))[0]


# ------------------------------------------------------------------------------------------------------------ WILDS

FMOW = """train,airport_hangar,DEU,2012-12-31T23:59:59Z seq,zoo,USA,2010-01-01T00:00:00Z train,zoo,USA,2013-01-01T00:00:00Z
val,zoo,USA,2012-12-31T23:59:59.999Z val,zoo,KEN,2013-01-01T00:00:00.000Z test,airport_hangar,IND,2012-12-31T23:59:59Z
seq,zoo,USA,2017-01-01T00:00:00Z test,zoo,ATA,2011-06-01T10:00:00.123Z test,zoo,XXX,2016-01-01T00:00:00.000Z
test,zoo,KEN,2015-12-31T23:59:59.999Z test,airport_hangar,AUS,2016-01-01T00:00:00Z test,zoo,AUS,2017-08-08T01:02:03.456Z
test,zoo,DEU,2016-05-05T05:05:05Z train,airport_hangar,KEN,2009-01-01T00:00:00Z test,zoo,USA,2013-01-01T00:00:00Z
val,zoo,DEU,2016-01-01T00:00:00Z test,zoo,DEU,2018-01-01T00:00:00Z""".split()  # of rows 0 to 16: train 0 13, val 3, id_test 5 7


def fmow(root, rows=FMOW):
    table(root / "fmow_v1.1/rgb_metadata.csv", "split,category,country_code,timestamp", *rows)
    table(root / "fmow_v1.1/country_code_mapping.csv", "alpha-3,region", "DEU,Europe", "IND,Asia", "KEN,Africa", "USA,Americas",
          "AUS,Oceania", "ATA,")
    pictures(root / "fmow_v1.1/images", *(f"rgb_img_{i}.png" for i in (0, 3, 5, 7, 8, 10, 11, 12, 13, 16)))
    return load("fmow", root)


def test_fmow_names_images_by_the_row_before_seq_is_dropped_and_worst_region_is_never_other(tmp_path, monkeypatch):
    data = fmow(tmp_path)
    test, id_test = data.tests["test"], data.tests["id_test"]
    assert data.classes == {"airport_hangar": "airport hangar", "zoo": "zoo"} and list(data.tests) == ["id_test", "test"]
    assert (seen(data.train), seen(data.val)) == ("rgb_img_0:0 rgb_img_13:0", "rgb_img_3:1")
    assert seen(id_test) == "rgb_img_5:0 rgb_img_7:1"
    assert seen(test) == "rgb_img_8:1 rgb_img_10:0 rgb_img_11:1 rgb_img_12:1 rgb_img_16:1"
    assert groups(data.train) == dict(Europe="rgb_img_0", Africa="rgb_img_13") and groups(data.val) == dict(Americas="rgb_img_3")
    assert groups(id_test) == dict(Asia="rgb_img_5", Other="rgb_img_7")  # 7: its country has no region; 8: its country is unknown
    assert groups(test) == dict(Other="rgb_img_8", Oceania="rgb_img_10 rgb_img_11", Europe="rgb_img_12 rgb_img_16")
    result = evaluated(monkeypatch, data, rgb_img_7=0, rgb_img_8=0, rgb_img_11=0)
    assert of_groups(result["domains"]["test"]) == dict(Other=(0, 1), Oceania=(1 / 2, 2), Europe=(1, 2))
    assert result["domains"]["id_test"]["worst_region_accuracy"] == 1  # Asia; Other has 0
    assert result["summary"]["id_accuracy"] == result["summary"]["ood_mean_worst_region_accuracy"] == 1 / 2
    assert result["domains"]["test"]["accuracy"] == 3 / 5
    with pytest.raises(BadInput, match="rgb_metadata.csv: row 2 has the timestamp ''"):
        fmow(tmp_path, [FMOW[0], "train,zoo,USA,"])


def test_fmow_regions_without_images_are_named(tmp_path, monkeypatch, capfd):
    row = evaluated(monkeypatch, fmow(tmp_path)) | dict(method="erm", lam=0.0, alpha=1.0)
    said = capfd.readouterr().err + "\n".join(drm_min.details(dict(results=[row], about=dict(metrics=("accuracy", "worst_region_accuracy")))))
    assert "Africa" in said and "Americas" in said  # in training and validation alone


def test_fmow_a_domain_of_unknown_regions_alone_is_no_crash(tmp_path, monkeypatch):
    try:
        assert math.isfinite(evaluated(monkeypatch, fmow(tmp_path, FMOW[:9]))["summary"]["id_accuracy"])  # test: row 8 alone
    except BadInput as e:
        assert "region" in str(e)


def iwildcam(root):
    base = root / "iwildcam_v2.0"
    table(base / "metadata.csv", ",split,location,y,filename", *(f"{i},{row}.jpg" for i, row in enumerate((
        "test,3,2,h", "val,3,0,ood", "train,3,10,a", "id_test,3,0,d", "train,3,0,b", "id_test,3,0,e", "id_val,3,2,c",
        "test,3,10,i", "id_test,3,1,f", "id_test,3,1,g", "train,3,2,j"))), encoding="utf-8-sig")
    table(base / "categories.csv", "y,category_id,name", "99999,10,motorcycle", "99999,2,unknown raptor",  # as y 10 and y 2
          *(f"{y},{y},genus {y}" for y in range(10, -1, -1)), encoding="utf-8-sig")
    return load("iwildcam", pictures(base / "train", *(f"{name}.jpg" for name in "abcdefghij")).parents[1])


def test_iwildcam_labels_are_y_and_macro_f1_is_over_the_classes_that_are_there(tmp_path, monkeypatch):
    data = iwildcam(tmp_path)
    assert list(data.classes) == [str(y) for y in range(11)] and data.classes["10"] == "genus 10"
    assert list(data.tests) == ["id_test", "test"]  # although a row of test comes first
    assert (seen(data.train), seen(data.val)) == ("a:10 b:0 j:2", "c:2")
    assert (seen(data.tests["id_test"]), seen(data.tests["test"])) == ("d:0 e:0 f:1 g:1", "h:2 i:10")
    result = evaluated(monkeypatch, data, g=2, i=2)
    assert result["summary"]["id_macro_f1"] == pytest.approx(5 / 6)  # (1 + 2/3) / 2: class 2 is only guessed, and not counted
    assert result["summary"]["ood_mean_macro_f1"] == pytest.approx(1 / 3)  # (2/3 + 0) / 2: class 10 is never guessed, and counted


def test_iwildcam_equal_english_names_are_said_and_do_not_stop(tmp_path, capfd):
    data, file = iwildcam(tmp_path), tmp_path / "d.json"
    config = Config(dataset="iwildcam", data_root=str(tmp_path), descriptions=str(file))
    names = {str(y): "jaguarundi" if y in (1, 10) else f"animal {y}" for y in range(10, -1, -1)}
    file.write_text(json.dumps({"classes": {y: dict(name=name, descriptions=[f"beast {y}"]) for y, name in names.items()}}))
    prompts = prompts_of(config, data)
    assert list(prompts["default"]) == list(prompts["concept"]) == [str(y) for y in range(11)]
    assert prompts["default"]["10"] == ["a photo of jaguarundi."] and prompts["concept"]["10"] == ["beast 10"]
    [line] = [line for line in capfd.readouterr().err.splitlines() if "jaguarundi" in line]
    assert "'1' and '10'" in line
    file.write_text(json.dumps({y: f"beast {y}" for y in names}))  # the form of the authors' release
    assert prompts_of(config, data)["concept"]["2"] == ["beast 2"]


def test_waterbirds_validation_is_in_distribution_and_groups_are_weighted_as_in_training(tmp_path, monkeypatch):
    rows = "000 100 001 101 010 110 111 020 020 020 020 021 021 120 120 120 120 120 121 121".split()  # y, split, place
    table(tmp_path / "waterbirds_v1.0/metadata.csv", "img_id,img_filename,y,split,place,place_filename",
          *(f"{i},0{y}.Bird/i{i}.jpg,{y},{split},{place},/b/x.jpg" for i, (y, split, place) in enumerate(rows)))
    data = load("waterbirds", pictures(tmp_path, *(f"waterbirds_v1.0/0{row[0]}.Bird/i{i}.jpg" for i, row in enumerate(rows))))
    assert list(data.classes) == ["landbird", "waterbird"] and list(data.tests) == ["id", "ood"]
    assert (seen(data.train), seen(data.val)) == ("i0:0 i1:1 i2:0 i3:1", "i4:0 i6:1")
    assert groups(data.train) == dict(landbird_land="i0", waterbird_land="i1", landbird_water="i2", waterbird_water="i3")
    assert groups(data.tests["id"]) == dict(landbird_land="i7 i8 i9 i10", waterbird_water="i18 i19")
    assert groups(data.tests["ood"]) == dict(landbird_water="i11 i12", waterbird_land="i13 i14 i15 i16 i17")
    result = evaluated(monkeypatch, data, i7=1, i11=1, i13=0, i14=0, i15=0, i16=0)
    assert of_groups(result["domains"]["id"]) == dict(landbird_land=(3 / 4, 4), waterbird_water=(1, 2))
    assert of_groups(result["domains"]["ood"]) == dict(landbird_water=(1 / 2, 2), waterbird_land=(1 / 5, 5))
    assert [result["domains"][d]["accuracy"] for d in ("id", "ood")] == pytest.approx([5 / 6, 2 / 7])
    assert result["summary"]["worst_group_accuracy"] == pytest.approx(0.2)
    assert result["summary"]["adjusted_accuracy"] == pytest.approx((3498 * 3 / 4 + 184 / 2 + 56 / 5 + 1057) / 4795)  # 0.7891


# --------------------------------------------------------------------------------------------------------- ImageNet

def imagenet(root, *images, val="val"):
    """Tench (index 0) and great white shark (index 2) in training, the shark in validation, and further images."""
    return pictures(root / "imagenet", "train/n01440764/a.JPEG", "train/n01484850/b.JPEG", f"{val}/n01484850/c.JPEG",
                    *(f"../{image}" for image in images)).parent


def own_p(monkeypatch, split, heights):
    """Where class i has the logit log(heights[i]), or 0: (what predict gives the label of each image, number of columns)."""
    head = torch.tensor([[math.log(heights.get(i, 1))] for i in range(1000)])
    monkeypatch.setattr(drm_min, "encode_images", lambda model, split, *_: torch.ones(len(split.labels), 1))
    monkeypatch.setattr(drm_min, "build_head", lambda *_: head)
    p, _ = drm_min.predict(SimpleNamespace(logit_scale=torch.zeros(())), split, None, None)
    assert p.sum(1).tolist() == pytest.approx([1] * len(p))
    return p.gather(1, split.labels[:, None])[:, 0].tolist(), p.shape[1]


@pytest.mark.parametrize("val", ["val", "val_class", "val_dirs", "val_in_folder"])
def test_imagenet_v2_label_is_the_number_of_its_folder_validation_is_the_id_test_and_absent_sets_are_named(tmp_path, capfd, val):
    data = load("imagenet", imagenet(tmp_path, "sketch/n01484850/s.JPEG", "objectnet-1.0/x.jpg", *(
        f"imagenetv2-matched-frequency-format-val/{i}/x{i}.jpeg" for i in (0, 1, 2, 10, 999)), val=val))
    assert len(data.classes) == 1000 and list(data.classes.items())[10] == ("n01530575", "brambling")
    assert (seen(data.train), seen(data.val)) == ("a:0 b:2", "c:2") and list(data.tests) == ["val", "v2", "sketch"]
    assert set(seen(data.tests["v2"]).split()) == {"x0:0", "x1:1", "x2:2", "x10:10", "x999:999"}
    assert seen(data.tests["sketch"]) == "s:2"
    skipped = [line for line in capfd.readouterr().err.splitlines() if "skipped" in line]
    assert len(skipped) == 3 and all(any(n in line for line in skipped) for n in ("imagenet-r", "imagenet-a", "objectnet-1.0"))


def test_imagenet_r_and_a_drop_the_other_800_classes_before_the_softmax(tmp_path, monkeypatch):
    imagenet(tmp_path, "imagenet-r/n01443537/g.jpg", "imagenet-r/n01494475/h.jpg", "imagenet-a/n01558993/f.jpg")
    data = load("imagenet", tmp_path)
    # R: goldfish (1) and hammerhead (4), not robin; A: robin (15), not goldfish; tench (0) is in neither.
    assert own_p(monkeypatch, data.tests["r"], {0: 1e9, 15: 1e9, 1: 2, 4: 3}) == (pytest.approx([2 / 203, 3 / 203]), 200)
    assert own_p(monkeypatch, data.tests["a"], {0: 1e9, 1: 1e9, 15: 2}) == (pytest.approx([2 / 201]), 200)
    assert own_p(monkeypatch, data.val, {2: 3}) == (pytest.approx([3 / 1002]), 1000)
    with pytest.raises(BadInput, match="imagenet-r.n01440764.*'n01440764'.*n01443537"):
        load("imagenet", imagenet(tmp_path, "imagenet-r/n01440764/t.jpg"))


def test_objectnet_best_of_several_ids_no_folder_outside_imagenet_and_no_border(tmp_path, monkeypatch, model):
    base = tmp_path / "objectnet-1.0"
    imagenet(tmp_path, *(f"objectnet-1.0/images/{n}/{n}.png" for n in ("air_freshener", "bow_tie", "chair")))
    lines = [f"class {i}" for i in range(1000)]  # in another order: ImageNet's 457 is here 2, 423 is 5, 559 is 7
    lines[2], lines[5], lines[7] = "bow tie, bow-tie, bowtie", "barber chair", "folding chair"
    (base / "mappings").mkdir()
    (base / "mappings/imagenet_to_label_2012_v2").write_text("\n".join(lines) + "\n")
    for name, content in dict(
            folder_to_objectnet_label=dict(air_freshener="Air freshener", bow_tie="Bow tie", chair="Chair"),
            objectnet_to_imagenet_1k={"Chair": "barber chair; folding chair", "Bow tie": "bow tie, bow-tie, bowtie"},
            pytorch_to_imagenet_2012_id={"423": 5, "559": 7, "457": 2, "5": 0, "7": 1}).items():
        (base / f"mappings/{name}.json").write_text(json.dumps(content))
    image = Image.new("RGB", (12, 12), "red")
    image.paste("blue", (2, 2, 10, 10))
    image.save(base / "images/chair/chair.png")
    split = load("imagenet", tmp_path).tests["objectnet"]
    [(images, _)] = drm_min.prepared_batches(model, split, [torch.tensor([1])])
    assert torch.equal(images[0, 2], torch.ones(32, 32)) and torch.equal(images[0, 0], -torch.ones(32, 32))  # all blue
    assert [Path(p).stem for p in split.images] == ["bow_tie", "chair"]
    assert own_p(monkeypatch, split, {423: 3, 559: 5, 457: 2, 5: 1e9, 7: 1e9}) == (pytest.approx([2 / 7, 5 / 7]), 2)  # not 8/10
    (base / "mappings/objectnet_to_imagenet_1k.json").write_text('{"Chair": "throne"}')
    with pytest.raises(BadInput, match="objectnet-1.0.mappings.*throne"):
        load("imagenet", tmp_path)


# ------------------------------------------------------------------------------------------------- CIFAR-10 -> STL-10

def cifar_and_stl(root, monkeypatch):
    """Image k of each file holds one bright value, 10 + k: at green (2, 5) in CIFAR-10, at red (3, 90) in STL-10."""
    cifar, stl = root / "cifar-10-batches-py", root / "stl10_binary"
    for folder in (cifar, stl):
        folder.mkdir()
    for name, labels in dict(data_batch_1=[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 3, 4], data_batch_2=[5], data_batch_3=[6],
                             data_batch_4=[7], data_batch_5=[8], test_batch=[3, 6, 2]).items():
        pixels = torch.zeros(len(labels), 3072, dtype=torch.uint8)
        pixels[:, 1024 + 2 * 32 + 5] = torch.arange(10, 10 + len(labels))
        (cifar / name).write_bytes(pickle.dumps(dict(data=pixels.numpy(), labels=labels)))
    (cifar / "batches.meta").write_bytes(pickle.dumps(dict(label_names=CIFAR)))
    pixels = torch.zeros(5, 3 * 96 * 96, dtype=torch.uint8)
    pixels[:, 90 * 96 + 3] = torch.arange(10, 15)  # the file holds columns, not rows
    (stl / "test_X.bin").write_bytes(pixels.numpy().tobytes())
    (stl / "test_y.bin").write_bytes(bytes([2, 3, 8, 1, 10]))  # counted from 1: bird, car, monkey, airplane, truck
    (stl / "class_names.txt").write_text("airplane\nbird\ncar\ncat\ndeer\ndog\nhorse\nmonkey\nship\ntruck\n")
    for module in (torchvision.datasets.cifar, torchvision.datasets.stl10):  # which know the checksums of the whole files
        monkeypatch.setattr(module, "check_integrity", lambda path, md5=None: "stl10" in path or Path(path).is_file())


CIFAR = "airplane automobile bird cat deer dog frog horse ship truck".split()


def test_cifar_and_stl_are_joined_by_name_without_monkeys(tmp_path, monkeypatch):
    cifar_and_stl(tmp_path, monkeypatch)
    data = load("cifar10", tmp_path)
    cifar, stl = data.tests["cifar10"], data.tests["stl10"]
    assert list(data.classes) == CIFAR and list(data.tests) == ["cifar10", "stl10"]
    assert data.val.labels.tolist() == [0, 3]  # of images 0 and 10
    assert data.train.labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 4, 5, 6, 7, 8]
    assert cifar.labels.tolist() == [3, 6, 2] and stl.labels.tolist() == [2, 1, 0, 9]  # bird, automobile, airplane, truck
    assert cifar.images.nonzero().tolist() == [[i, 1, 2, 5] for i in range(3)] and cifar.images.shape == (3, 3, 32, 32)
    assert stl.images.nonzero().tolist() == [[i, 0, 3, 90] for i in range(4)] and stl.images.shape == (4, 3, 96, 96)
    assert stl.images.amax((1, 2, 3)).tolist() == [10, 11, 13, 14] and data.val.images.amax((1, 2, 3)).tolist() == [10, 20]


@pytest.mark.parametrize("fault", [urllib.error.URLError("no route to host"), RuntimeError("File not found or corrupted.")])
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


# ------------------------------------------------------------------------------------------------------ your own data

def own_folder(root, *images):
    return pictures(root, "train/swimming_pool/a.png", "train/ski/b.PNG", "val/ski/c.jpeg", "val/swimming_pool/d.png", *images)


def test_folder_every_further_folder_is_a_domain_and_what_is_no_image_is_named(tmp_path, capfd):
    own_folder(tmp_path, "night/swimming_pool/e.png", "dusk/ski/f.webp", ".cache/x/y.png", "train/.hidden/x.png",
               "train/ski/.thumb.png")
    for name in ("train/ski/notes.txt", "train/.DS_Store", "train/ski/noext"):
        (tmp_path / name).write_text("x")
    data, said = load("folder", tmp_path), capfd.readouterr().err
    assert data.classes == {"ski": "ski", "swimming_pool": "swimming pool"} and "swimming pool" in said
    assert (seen(data.train), seen(data.val)) == ("b:0 a:1", "c:0 d:1") and list(data.tests) == ["val", "dusk", "night"]
    assert data.tests["val"] is data.val and (seen(data.tests["dusk"]), seen(data.tests["night"])) == ("f:0", "e:1")
    assert all(name in said for name in (".hidden", ".thumb.png", "notes.txt", ".DS_Store", "noext"))


def test_folder_names_that_cleaning_makes_equal_stop_and_so_does_a_class_that_training_lacks(tmp_path):
    (tmp_path / "d.json").write_text(json.dumps({"swimming_pool": "a", "swimming pool": "b", "ski": "c"}))
    root = own_folder(tmp_path / "data", "train/swimming pool/e.png")
    with pytest.raises(BadInput, match="'swimming pool' and 'swimming_pool'.*a photo of a swimming pool"):
        prompts_of(Config(dataset="folder", data_root=str(root), descriptions=str(tmp_path / "d.json")), load("folder", root))
    with pytest.raises(BadInput, match=r"night.golf.e\.png.*'golf'.*ski, swimming pool, swimming_pool"):
        load("folder", own_folder(root, "night/golf/e.png"))


CSV = "a.png,ski,train,x b.png,tent,train,y c.png,tent,val,x d.png,ski,test,sea e.png,tent,test,id f.png,tent,test,sea".split()


def own_csv(root, header="path,label,split,domain", rows=CSV):
    table(pictures(root, *(f"{name}.png" for name in "abcdef")) / "own.csv", header, *rows, encoding="utf-8-sig")
    return load("csv", root / "own.csv")


def test_csv_each_domain_of_the_test_rows_apart_and_in_distribution_first(tmp_path):
    data = own_csv(tmp_path)
    assert data.classes == {"ski": "ski", "tent": "tent"} and (seen(data.train), seen(data.val)) == ("a:0 b:1", "c:1")
    assert [(name, seen(s)) for name, s in data.tests.items()] == [("id", "e:1"), ("sea", "d:0 f:1")]
    data = own_csv(tmp_path, "path,label,split", [row.rpartition(",")[0] for row in CSV])
    assert [(name, seen(s)) for name, s in data.tests.items()] == [("id", "d:0 e:1 f:1")]
    data = own_csv(tmp_path, rows=CSV[:4])  # no in-distribution test: validation stands in
    assert [(name, seen(s)) for name, s in data.tests.items()] == [("val", "c:1"), ("sea", "d:0")]
    with pytest.raises(BadInput, match="no validation images; .*path,label,split"):
        own_csv(tmp_path, rows=CSV[:2])


@pytest.mark.parametrize("row, what", [
    ("e.png,tent,dev,x", "own.csv: e.png has the split 'dev'; allowed: train, val, test"),
    ("e.png,tent", "own.csv: row 7 has fewer fields"), ("e.png,tent,test,train", "e.png has the domain 'train'"),
    ("e.png,yurt,test,x", "e.png has the label 'yurt'; allowed in x: ski, tent"),
    ("gone.png,tent,test,x", "gone.png is not there; it is an image of x"),
    ("gone.png,tent,train,x", "gone.png is not there; it is an image of train")])
def test_csv_faults_stop_and_name_the_row(tmp_path, row, what):
    with pytest.raises(BadInput) as stopped:
        own_csv(tmp_path, rows=[*CSV, row])
    assert what in str(stopped.value)
    with pytest.raises(BadInput, match="own.csv: no column label; it has path, class, split"):
        own_csv(tmp_path, "path,class,split")


@pytest.mark.parametrize("dataset, layout", [
    ("fmow", "fmow_v1.1/{rgb_metadata.csv"), ("iwildcam", "iwildcam_v2.0/{metadata.csv"), ("folder", "train/<class>/"),
    ("waterbirds", "waterbirds_v1.0/metadata.csv"), ("imagenet", "imagenet/{train,val}/<wnid>/"), ("csv", "path,label,split")])
def test_a_data_set_that_is_not_there_stops_and_shows_its_layout(tmp_path, dataset, layout):
    for root in (None, str(tmp_path / "nowhere"), str(tmp_path)):
        with pytest.raises(BadInput) as stopped:
            drm_min.load_data(Config(dataset=dataset, data_root=root))
        assert all(word in str(stopped.value) for word in ("--data-root", root or f"{dataset} needs it", layout)), stopped.value


# ------------------------------------------------------------------------------------------------------------ metrics

def test_metrics_equal_plain_counting_on_a_thousand_random_answers():
    chance = random.Random(0)
    for _ in range(1000):
        n, size = chance.randint(1, 30), chance.randint(2, 9)
        truth = chance.choices(chance.sample(range(size), chance.randint(1, size)), k=n)  # some classes are absent
        guesses, place = chance.choices(range(size), k=n), chance.choices(["Asia", "Europe", "Other"], [3, 1, 1], k=n)
        f1, recall = {}, {}
        for c in set(truth):
            hits = sum(t == g == c for t, g in zip(truth, guesses))
            f1[c], recall[c] = 2 * hits / (truth.count(c) + guesses.count(c)), hits / truth.count(c)
        right = {name: [t == g for t, g, p in zip(truth, guesses, place) if p == name] for name in set(place)}
        accuracy = {name: sum(r) / len(r) for name, r in right.items()}
        got = metrics(guessed(guesses, size), Split([None] * n, torch.tensor(truth), group_kind="region", groups={
            name: torch.tensor([p == name for p in place]) for name in ("Africa", "Asia", "Europe", "Other")}))
        assert got["macro_f1"] == pytest.approx(sum(f1.values()) / len(f1))
        assert got["macro_recall"] == pytest.approx(sum(recall.values()) / len(recall))
        assert of_groups(got) == {name: (pytest.approx(accuracy[name]), len(r)) for name, r in right.items()}
        worst = min((a for name, a in accuracy.items() if name != "Other"), default=None)
        assert got["worst_region_accuracy"] == (worst if worst is None else pytest.approx(worst))


def test_macro_f1_is_over_the_classes_of_the_truth_and_an_empty_group_is_neither_the_worst_nor_nan():
    got = metrics(guessed([0, 0, 1, 2], 5), Split([None] * 4, torch.tensor([0, 0, 1, 1])))
    assert got["macro_f1"] == pytest.approx(0.8333, abs=1e-4)  # not 0.556 (over guessed ones too) or 0.333 (over all)
    groups = {name: torch.tensor([0] * 50 + [1] * 4) == i for i, name in enumerate("abc")}
    split = Split([None] * 54, torch.zeros(54, dtype=torch.long), group_kind="group", groups=groups)
    got = metrics(guessed([0] * 40 + [1] * 10 + [0] * 3 + [1], 2), split)
    assert of_groups(got) == dict(a=(0.8, 50), b=(0.75, 4)) and got["worst_group_accuracy"] == 0.75


# -------------------------------------------------------------------------------------------------------- image files

WHITE, GREY = (255,) * 3, (128,) * 3


@pytest.mark.parametrize("name, mode, colour, save, expected", [
    ("1.png", "1", 1, {}, WHITE), ("L.png", "L", 100, {}, (100,) * 3), ("LA.png", "LA", (0, 128), {}, (127,) * 3),
    ("P.png", "P", 1, {}, (200, 100, 50)), ("P.gif", "P", 1, {}, (200, 100, 50)), ("Pt.png", "P", 1, dict(transparency=1), WHITE),
    ("Lt.png", "L", 7, dict(transparency=7), WHITE), ("t.png", "RGB", (1, 2, 3), dict(transparency=(1, 2, 3)), WHITE),
    ("RGBA.png", "RGBA", (255, 0, 0, 128), {}, (255, 127, 127)), ("clear.png", "RGBA", (0, 0, 0, 0), {}, WHITE),
    ("white16.png", "I;16", 65535, {}, WHITE), ("grey16.png", "I;16", 32768, {}, GREY), ("grey16.tif", "I;16B", 32768, {}, GREY),
    ("I.tif", "I", 32768, {}, GREY), ("F.tif", "F", 0.25, {}, (64,) * 3), ("CMYK.tif", "CMYK", (0, 0, 0, 255), {}, (0, 0, 0)),
    ("CMYK.jpg", "CMYK", (0, 255, 255, 0), {}, (255, 0, 0)), ("YCbCr.jpg", "YCbCr", (76, 85, 255), {}, (255, 0, 0)),
    ("YCbCr.tif", "YCbCr", (76, 85, 255), dict(compression="tiff_lzw"), (255, 0, 0)),
    ("LAB.tif", "LAB", (128, 128, 128), {}, (119,) * 3),  # L* is 50.2
    ("red.tif", "LAB", (138, 209, 198), {}, (252, 3, 3))])  # sRGB's red: L* 54.3, a* 80.8, b* 69.9 (D50), rounded
def test_pictures_of_every_mode_are_what_a_person_sees(tmp_path, name, mode, colour, save, expected):
    image = Image.new(mode, (8, 8), colour)
    if mode == "P":
        image.putpalette([10, 20, 30, 200, 100, 50])
    image.save(tmp_path / name, **save)
    got = read_image(tmp_path / name)
    assert got.mode == "RGB" and got.size == (8, 8)
    assert got.getpixel((0, 0)) == got.getpixel((7, 7)) == pytest.approx(expected, abs=3 if mode == "LAB" else 1)


def test_floats_and_integers_outside_their_range_are_spread_over_it(tmp_path):
    for name, mode, values in (("f.tif", "F", (-1.0, 3.0, 1.0)), ("i.tif", "I", (-100_000, 300_000, 100_000))):
        image = Image.new(mode, (3, 1))
        for x, value in enumerate(values):
            image.putpixel((x, 0), value)
        image.save(tmp_path / name)
        got = read_image(tmp_path / name)
        assert [got.getpixel((x, 0))[0] for x in range(3)] == pytest.approx([0, 255, 127.5], abs=0.5), name


def test_pictures_stand_upright_borders_are_cut_and_the_first_of_several_counts(tmp_path):
    image, exif = Image.new("RGB", (16, 8), "blue"), Image.Exif()
    image.paste("red", (0, 0, 8, 8))
    exif[0x0112] = 6  # to be turned clockwise: its left side becomes the top
    image.save(tmp_path / "x.png", exif=exif)
    got = read_image(tmp_path / "x.png", border=2)
    assert got.size == (4, 12) and got.getcolors() == [(24, (255, 0, 0)), (24, (0, 0, 255))]
    assert got.getpixel((0, 0)) == got.getpixel((3, 5)) == (255, 0, 0) and got.getpixel((0, 6)) == (0, 0, 255)
    Image.new("RGB", (8, 8), "red").save(tmp_path / "x.gif", save_all=True, append_images=[Image.new("RGB", (8, 8), "blue")])
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


# --------------------------------------------------------------------------------------------------- batches of files

@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = open_clip.CLIP(16, open_clip.CLIPVisionCfg(layers=1, width=32, head_width=16, patch_size=16, image_size=32),
                           open_clip.CLIPTextCfg(context_length=5, vocab_size=50, width=32, heads=2, layers=1)).eval()
    open_clip.model.set_model_preprocess_cfg(model, dict(size=32, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic",
                                                         resize_mode="shortest", fill_color=0))
    return model


TEXTS = drm_min.Texts(torch.tensor([[1, 5, 49, 0, 0], [1, 6, 7, 49, 0]]), torch.arange(2))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("skip", [False, True])
def test_a_bad_image_stops_the_run_and_is_named_or_is_left_out_of_training_and_counted(model, tmp_path, capfd, workers, skip):
    rows = [f"{name}.png,{label},train," for name, label in zip("abcdef", ("ski", "tent", "ski", "tent", "tent", "ski"))]
    own_csv(tmp_path, rows=[*rows, "a.png,ski,val,", "e.png,ski,test,night"])
    (tmp_path / "d.png").write_text("no image")
    config = Config(dataset="csv", data_root=str(tmp_path / "own.csv"), workers=workers, batch_size=2, skip_bad_images=skip)
    data = drm_min.load_data(config)
    if skip:
        (tmp_path / "f.png").unlink()  # one that is not there is left out too
        data, features, *_ = drm_min.survey(model, drm_min.load_data(config), (TEXTS, TEXTS), config)
        assert seen(data.train) == "a:0 b:1 c:0 e:1" and features.shape == (4, 16)
        assert "left out: 2 of 6 training images" in capfd.readouterr().err
    else:
        with pytest.raises(BadInput, match=r"d\.png: no image that can be read.*--skip-bad-images"):
            drm_min.survey(model, data, (TEXTS, TEXTS), config)
        with pytest.raises(BadInput, match=r"d\.png: no image"):
            drm_min.train(model, data.train, TEXTS, TEXTS, None, config, 0.0, "ce", seed=0)
    (tmp_path / "e.png").write_text("no image")
    with pytest.raises(BadInput, match=r"e\.png: no image"):  # in a test, in any case
        drm_min.evaluate(model, data, TEXTS, TEXTS, (0.5,), workers)


def test_random_crops_depend_on_seed_and_step_alone(model, tmp_path):
    files = [tmp_path / f"{i}.png" for i in range(4)]
    for i, file in enumerate(files):
        noise(file, i)
    batches = [torch.tensor([0, 1]), torch.tensor([2, 3]), torch.tensor([0, 1]), torch.tensor([3, 0])]

    def crops(batches, workers, seed, first=0):
        split = Split(files, torch.zeros(4))
        return [images for images, _ in drm_min.prepared_batches(model, split, batches, workers, seed, first)]

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


# ---------------------------------------------------------------------------------------------- what an attacker brought up

@pytest.mark.parametrize("header, row, said", [
    ("path,label,split,label", "a.png,ski,train,tent", "column label comes twice"), ("path,label,split", "a.png,_,train", "no name"),
    ("path,label,split,domain", "a.png,ski,test,\u202eodd", "no name"), ("path,label,split", f"{'long' * 100}.png,ski,train", "is not there")])
def test_csv_faults_are_named(tmp_path, header, row, said):
    good = ["b.png,tent,train,", "c.png,ski,train,", "d.png,tent,val,"]
    with pytest.raises(BadInput, match=said):
        own_csv(tmp_path, header, [row, *(r[:len(r) - (header.count(",") < 3)] for r in good)])


def test_folders_without_images_are_named(tmp_path, capfd):
    for name in ("train/ski", "train/tent", "train/fish", "val/ski", "val/tent", "night/ski"):
        (tmp_path / name).mkdir(parents=True)
        if name != "train/fish" and name != "night/ski":
            noise(tmp_path / name / "a.png", 0)
    assert load("folder", tmp_path).classes == {"ski": "ski", "tent": "tent"}
    said = capfd.readouterr().err
    assert "train: no images in fish" in said and "night: no images in ski" in said


@pytest.mark.parametrize("size, border", [((1, 3000), 0), ((4, 4), 2), ((3000, 2), 0)])
def test_a_strip_or_a_picture_that_is_all_border_is_no_picture(tmp_path, size, border):
    noise(tmp_path / "a.png", 0, size)
    with pytest.raises(BadInput, match=r"a\.png.*no picture"):
        read_image(tmp_path / "a.png", border)


def test_a_domain_with_dollars_is_no_mathematics(tmp_path):
    row = dict(method="erm", lam=0.0, alpha=1.0, seed=0, beta=1.0, summary=dict(worst_log_loss=1.0, ood_mean_accuracy=0.5),
               domains={d: dict(accuracy=0.5, log_loss=1.0, n=2) for d in ("i$d_$", "a$\\foo$")})
    drm_min.plot(dict(results=[row], config=dict(seeds=1, dataset="x"), about=dict(ceilings={}, metrics=("accuracy", "accuracy"))), tmp_path / "p")
    assert (tmp_path / "p").read_bytes().startswith(b"\x89PNG")


def test_values_that_tables_and_folders_could_not_tell_apart_are_refused():
    for option in (dict(sweep=(0.12345671, 0.12345672)), dict(alpha=(0.50000001, 0.5))):
        with pytest.raises(BadInput, match="six digits"):
            Config(**option)
