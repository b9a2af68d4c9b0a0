"""ImageNet and its shifted test sets: V2, R, A, Sketch and ObjectNet, those of them that are there."""

import importlib.resources
import json

import open_clip

from support.errors import BadInput, log
from support.readers.tables import PUBLISHED, Row, Table, class_folders

RECIPE = PUBLISHED | {"descriptions": "descriptions/imagenet.json", "template": ("a good photo of the {}.",)}
RECIPE |= {"epochs": 10, "batch_size": 512, "weight_decay": 0.1}
RECIPE |= {"flyp_template": tuple(say("{}") for say in open_clip.OPENAI_IMAGENET_TEMPLATES)}  # FLYP's 80
RECIPE |= {"domain": "photos of animals, plants, foods and things made by people"}
LAYOUT = (
    "allowed: a folder with imagenet/{train,val}/<wnid>/ (or ILSVRC2012/) from https://image-net.org and, if "
    "you have them, imagenetv2-matched-frequency-format-val, imagenet-r, imagenet-a, sketch, objectnet-1.0"
)
PLACES = ("imagenet", "ILSVRC2012", "")  # in the data root, where the authors, FLYP and WiSE-FT have them
FOLDERS = {  # split -> its names that are in use
    "train": ("train",),
    "val": ("val", "val_class", "val_dirs", "val_in_folder"),
    "v2": ("imagenetv2-matched-frequency-format-val",),
    "r": ("imagenet-r",),
    "a": ("imagenet-a",),
    "sketch": ("sketch",),
    "objectnet": ("objectnet-1.0/images",),
}


def read(root):
    """Validation stands in for an in-distribution test."""
    wnids = synsets("imagenet")  # in the order of the indices
    # in R and A, scores of the other 800 classes are left out
    merged = {domain: {wnid: [wnid] for wnid in synsets(f"imagenet_{domain}")} for domain in ("r", "a")}
    rows, left_out = [], []
    for split, names in FOLDERS.items():
        there = [path for place in PLACES for name in names if (path := root / place / name).is_dir()]
        if not there and split != "val":
            log(f"skipped: {split}, as {names[0]} is not in {root}")
            continue
        folder = there[0] if there else root / "imagenet/val"
        images = class_folders(folder, left_out)
        if split == "v2":
            images = [(wnid_of_number(name, wnids), path) for name, path in images]
        if split == "objectnet":
            merged[split] = objectnet_classes(folder.parent / "mappings", wnids)
            images = [(name, path) for name, path in images if name in merged[split]]
        rows += [Row(split, path, name) for name, path in images]
    classes = dict(zip(wnids, open_clip.IMAGENET_CLASSNAMES))
    return Table(classes, rows, "val", merged=merged, border={"objectnet": 2}, left_out=left_out)


def synsets(name):
    """The wnids of a data set, as timm ships them."""
    info = importlib.resources.files("timm") / "data" / "_info"
    return (info / f"{name}_synsets.txt").read_text().split()


def wnid_of_number(name, wnids):
    """V2's folders are named after the index, not the wnid; what is no index is refused as a label."""
    return wnids[int(name)] if name.isdecimal() and int(name) < 1000 else name


def objectnet_classes(mappings, wnids):
    """ObjectNet's own mapping files -> {folder: wnids of the ImageNet classes that it covers}, 113 of 313."""

    def load(name):
        return json.loads((mappings / f"{name}.json").read_text(encoding="utf-8"))

    try:
        folder_of = {label: folder for folder, label in load("folder_to_objectnet_label").items()}
        lines = (mappings / "imagenet_to_label_2012_v2").read_text(encoding="utf-8").splitlines()
        numbers = load("pytorch_to_imagenet_2012_id")
        wnid_of = {lines[number].strip(): wnids[int(index)] for index, number in numbers.items()}
        covered = {}
        for label, names in load("objectnet_to_imagenet_1k").items():
            covered[folder_of[label]] = [wnid_of[name] for name in names.split("; ")]
        return covered
    except (KeyError, IndexError, ValueError, AttributeError, TypeError, RecursionError) as e:
        raise BadInput(f"{mappings}: not ObjectNet's mapping files ({e!r})") from None
