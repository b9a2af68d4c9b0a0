"""The one contract of all readers, Table: rows in memory, one an image. And what several readers need."""

import csv
import os
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import torch

from support.errors import BadInput, find, first_of, log, read_json
from support.images import HELP, ImageFiles, check_files, images_below

# What FLYP's released recipes share, on CLIP ViT-B/16; a data set's own values stand in its RECIPE.
PUBLISHED = {"model": "ViT-B-16", "pretrained": "openai", "template": ("a photo of a {}.",)}
PUBLISHED |= {"concept_template": "{text}"}
PUBLISHED |= {"method": ("zero-shot", "drm"), "core_targets": ("posterior",)}
PUBLISHED |= {"select": "best", "save_every": 1000}
PUBLISHED |= {"epochs": 20, "batch_size": 256, "lr": 1e-5, "warmup": 500, "weight_decay": 0.2}


class Row(NamedTuple):
    """One image."""

    split: str  # train, val, or the name of a test domain
    image: object  # a path, or (3, H, W) uint8
    label: str  # key of a class, or of a group of classes
    group: str = ""  # a subset whose accuracy is reported apart


class Table(NamedTuple):
    """What a reader gives."""

    classes: dict  # key -> name, in the order of the labels
    rows: list
    id_test: str  # the in-distribution domain; "val" where validation has to stand in for it
    metrics: tuple = ("accuracy", "accuracy")  # what counts in distribution, and out of it
    group_kind: str = None  # what the groups are, if the worst of them counts: "group", "region"
    group_weights: dict = None  # group -> its images in training, for an average over groups
    merged: dict = {}  # domain -> {label: keys of the classes whose best score counts}
    border: dict = {}  # domain -> pixels on each side that are no part of the picture
    left_out: list = []  # paths that are no images, or none that can be opened here

    def keys_of(self, split):
        """{label: the keys of the classes that count for it}, in the order of the label numbers."""
        return self.merged.get(split) or {key: [key] for key in self.classes}


def read_table(reader, config):
    """The checked Table of a data set, with its classes named as a prompt says them. Raises BadInput."""
    root, layout = config.data_root, reader.LAYOUT
    if root is None:
        raise BadInput(f"--data-root: {config.dataset} needs it; {layout}")
    try:
        table = reader.read(Path(root))
    except OSError as e:
        raise BadInput(f"--data-root {root}: {e.filename or e}: {e.strerror}; {layout}") from None
    say_left_out(table.left_out)
    names = {key: " ".join(name.replace("_", " ").split()) for key, name in table.classes.items()}
    sayable = all(name and name.isprintable() for name in names.values())
    if not sayable or not all(row.split.isprintable() for row in table.rows):
        allowed = "letters, figures, blanks"
        raise BadInput(f"--data-root {root}: a class or domain has no name to be said; allowed: {allowed}")
    table = table._replace(classes=names)
    if config.eval_only:
        table = with_classes_of_model(table, config.model)
    labels = {split: table.keys_of(split) for split in dict.fromkeys(row.split for row in table.rows)}
    if not (labels.keys() - {"train"} if config.eval_only else "val" in labels):
        raise BadInput(f"--data-root {root}: no validation {'or test ' * config.eval_only}images; {layout}")
    if not table.classes:
        raise BadInput(f"--data-root {root}: no training images; {layout}")
    for row in table.rows:
        check_row(row, labels[row.split], root, config.skip_bad_images)
    say_counts(table, labels, names)
    tested = [row for row in table.rows if row.split != "train" and isinstance(row.image, Path)]
    check_files(list({row.image: table.border.get(row.split, 0) for row in tested}.items()))
    return table


def with_classes_of_model(table, model):
    """The table with the classes of a saved model, where its own are none, or some of them."""
    keys = read_json(find(model.removeprefix("local-dir:")) / "drm.json")["prompts"]["default"]
    known = set(table.classes) <= set(keys)
    return table._replace(classes={key: table.classes.get(key, key) for key in keys}) if known else table


def say_left_out(paths):
    """Count photos that cannot be opened here and say what helps; name the first of the others."""
    ends = ["" if path.name.startswith(".") else path.suffix.lower() for path in paths]
    closed = [f"{n} {end}: {HELP[end]}" for end, n in Counter(ends).items() if end in HELP]
    others = [path for path, end in zip(paths, ends) if end not in HELP]
    if closed:
        log(f"photos that cannot be opened here: {'; '.join(closed)}")
    if others:
        log(f"ignored, as no images: {first_of(others)}")


def say_counts(table, labels, names):
    """Where files were left out or classes are uneven: the fewest and the most images of a class."""
    counts, said, uneven = Counter((row.split, row.label) for row in table.rows), [], False
    for split, own in labels.items():
        of_class = sorted((counts[split, label], names.get(label, label)) for label in own)
        (few, rare), (many, common) = of_class[0], of_class[-1]
        said.append(f"{split} {few} ({rare}) to {many} ({common})" if few < many else f"{split} {few} each")
        uneven = uneven or few < many
    if uneven or table.left_out:
        log(f"images a class: {first_of(said, 8)}")


def check_row(row, labels, root, skip_bad_images):
    """Raises BadInput for a label that is none, and for an image that is not there."""
    if row.label not in labels:
        what = f"{row.image} has the label {row.label!r}; allowed in {row.split}: {first_of(labels, 20)}"
        raise BadInput(f"--data-root {root}: {what}")
    may_be_missing = row.split == "train" and skip_bad_images
    if isinstance(row.image, Path) and not may_be_missing and not os.path.isfile(row.image):
        raise BadInput(f"--data-root {root}: {row.image} is not there; it is an image of {row.split}")


def columns_of(table, workers):
    """{split: its images, labels and groups as drm_min.Split holds them}, train and val always among them."""
    splits = {"train": [], "val": []}
    for row in table.rows:
        splits.setdefault(row.split, []).append(row)
    columns, names_of_groups = {}, sorted({row.group for row in table.rows} - {""})
    for name, rows in splits.items():
        keys_of, groups = table.keys_of(name), {}
        number = {label: i for i, label in enumerate(keys_of)}
        images = [row.image for row in rows]
        if images and torch.is_tensor(images[0]):
            images = torch.stack(images)
        else:
            images = ImageFiles(map(str, images), table.border.get(name, 0), workers)
        for group in names_of_groups:
            groups[group] = torch.tensor([row.group == group for row in rows], dtype=torch.bool)
        labels = torch.tensor([number[row.label] for row in rows], dtype=torch.int64)
        columns[name] = {"images": images, "labels": labels, "groups": groups, "group_kind": table.group_kind}
        if name in table.merged:
            label_of = {key: number[label] for label, keys in keys_of.items() for key in keys}
            columns[name]["label_of_class"] = torch.tensor([label_of.get(key, -1) for key in table.classes])
    return columns


def csv_rows(path, columns):
    """The rows of a CSV file as dicts that hold at least these columns. Raises BadInput, and OSError."""
    columns = columns.split()
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader((line for line in file if line.strip(", \t\r\n")), skipinitialspace=True)
            header = reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or []]
            missing = [c for c in columns if c not in header]
            if missing:
                raise BadInput(f"{path}: no column {', '.join(missing)}; it has {', '.join(header)}")
            repeated = [c for c in (*columns, "domain") if header.count(c) > 1]
            if repeated:
                raise BadInput(f"{path}: column {', '.join(repeated)} comes twice; allowed: once")
            rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as e:
        raise BadInput(f"{path}: no CSV in UTF-8 ({e})") from None
    for i, row in enumerate(rows):
        more = None in row  # DictReader's key of what is over
        if more or any(row[c] is None for c in columns):
            raise BadInput(f"{path}: row {i + 1} has {'more' if more else 'fewer'} fields than the header")
    return [{column: (value or "").strip() for column, value in row.items()} for row in rows]


def below(folder, name, table):
    """folder / name, an image that a table names. Raises BadInput where that is not below the folder."""

    def inside(spelled):  # by its name, or where links lead: a root may be known by two names
        return os.path.join(spelled(folder / name), "").startswith(os.path.join(spelled(folder), ""))

    if "\0" in name or not (inside(os.path.abspath) or inside(os.path.realpath)):
        raise BadInput(f"{table}: the image {name} is not below {folder}; allowed: paths that are")
    return folder / name


def class_folders(path, left_out):
    """A folder of class folders -> sorted [(class, path of an image)]. Classes without any are named.

    Folders in a class folder belong to its class, as in torchvision. What is no image goes to `left_out`.
    """
    found, empty = [], []
    for folder in sorted(path.iterdir()):
        if folder.name.startswith(".") or not folder.is_dir():
            left_out.append(folder)
            continue
        images, others = images_below(folder)
        found += [(folder.name, image) for image in images]
        left_out += others
        if not images:
            empty.append(folder.name)
    if empty:
        log(f"{path}: no images in {first_of(empty)}")
    return found
