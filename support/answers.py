"""What a model answers, image by image: for an evaluation (predictions.csv) and for pictures of one's own."""

import csv
from pathlib import Path

from support.checkpoints import model_folder
from support.errors import BadInput, find, first_of, log, make_folder, write
from support.images import ImageFiles, images_below
from support.readers.tables import say_left_out

SAID = ("prediction", "probability", "default_head", "p_default", "concept_head", "p_concept")


def said_of(p, both, names):
    """Mixture and heads, (N, C) each, and the names of the C labels -> the columns SAID of each image."""
    columns = []
    for probabilities in (p, *both):
        best, number = probabilities.max(1)
        columns += [[names[i] for i in number.tolist()], [f"{value:.6g}" for value in best.tolist()]]
    return list(zip(*columns))


def labels_of(split, classes):
    """What the label numbers of a split stand for: keys of classes; of several, the first."""
    if split.label_of_class is None:
        return list(classes)
    keys = {}
    for key, label in zip(classes, split.label_of_class.tolist()):
        keys.setdefault(label, key)
    return [keys[label] for label in sorted(keys) if label >= 0]


def write_predictions(setup, p, mixture, about):
    """predictions.csv of an evaluated model, beside its weights: a row for each image. Raises BadInput.

    p: as of drm_min.predict_all; mixture: both heads of a domain -> one; about: the row of results.
    """
    if setup.out is None:
        return
    folder = model_folder(setup.out, **about)
    make_folder(folder)
    wise = "" if about["alpha"] in (0, 1) else f"-alpha-{about['alpha']:g}"
    rows = [("image", "domain", "group", "label", *SAID)]
    for domain, split in {"val": setup.data.val, **setup.data.tests}.items():
        names = labels_of(split, setup.data.classes)
        images = split.images.paths if isinstance(split.images, ImageFiles) else range(len(split))
        groups = [""] * len(split)
        for group, members in split.groups.items():
            for i in members.nonzero().flatten().tolist():
                groups[i] = group
        labels = [names[label] for label in split.labels.tolist()]
        said = said_of(mixture(p[domain]), p[domain], names)
        rows += [(*row[:-1], *row[-1]) for row in zip(images, [domain] * len(split), groups, labels, said)]
    write_csv(folder / f"predictions{wise}.csv", rows)


def write_csv(path, rows):
    def save(temporary):
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)

    write(path, save)


def pictures_of(paths):
    """Files and folders, with what is in them -> the pictures, sorted within a folder. Raises BadInput."""
    found, left_out = [], []
    for path in map(find, paths):
        images, others = images_below(path) if path.is_dir() else ([path], [])
        found += sorted(images)
        left_out += others
    say_left_out(left_out)
    missing = [str(path) for path in found if not path.is_file()]
    if missing or not found:
        what = f"{first_of(missing)}: not there" if missing else f"{first_of(paths)}: no pictures"
        raise BadInput(f"--predict {what}; allowed: files and folders of pictures")
    return list(map(str, found))


def table_of(files, bad, p, both, names):
    """What a model sees in pictures -> rows with a heading; those that cannot be read, `bad`, are told."""
    for number, why in bad.items():
        log(f"left out: {files[number]}: {why.split(': ', 1)[-1]}")
    kept = [file for i, file in enumerate(files) if i not in bad]
    return [("file", *SAID), *((file, *said) for file, said in zip(kept, said_of(p, both, names)))]


def show(rows, out):
    """The CSV of --predict -> the lines of its table."""
    make_folder(out)
    write_csv(Path(out) / "predictions.csv", rows)
    return [rows[0], *((a, b, p[:6], c, q[:6], d, r[:6]) for a, b, p, c, q, d, r in rows[1:])]
