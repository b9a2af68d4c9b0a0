"""WILDS iWildCam: animals before camera traps; the shifted domain is cameras that training has not seen."""

from support.errors import BadInput, twice
from support.readers.tables import PUBLISHED, Row, Table, below, csv_rows
from support.texts import other_names

RECIPE = PUBLISHED | {
    "descriptions": "descriptions/iwildcam.json",
    "template": ("a photo of {}.",),
    "concept_template": "{name}, {text}",  # the release says "{name} is {text}"
    "domain": "camera traps' photos of animals, by day in color and by night in gray",
}
LAYOUT = "allowed: a folder with iwildcam_v2.0/{metadata.csv,categories.csv,train/}, from https://wilds.stanford.edu"
SPLITS = {"train": "train", "id_val": "val", "id_test": "id_test", "test": "test"}
NO_IMAGES = "99999"  # the y of categories without images; their other numbers repeat those of real ones


def read(root):
    """All images are in train/, whatever their split. The out-of-distribution validation is not used."""
    base = root / "iwildcam_v2.0"
    categories, table = base / "categories.csv", base / "metadata.csv"
    named = [(row["y"], row["name"]) for row in csv_rows(categories, "y name") if row["y"] != NO_IMAGES]
    if twice(named) or not all(y.isdecimal() and len(y) < 10 for y, _ in named):
        repeated = ", ".join(y[:20] for y in twice(named))
        raise BadInput(f"{categories}: a y is no whole number, or comes twice: {repeated}")
    english = {other.lower(): name for name, *others in other_names("iwildcam").values() for other in others}
    classes = {y: english.get(name.lower(), name) for y, name in sorted(named, key=lambda pair: int(pair[0]))}
    rows = []
    for row in csv_rows(table, "split filename y"):
        if row["split"] in SPLITS and row["y"] != NO_IMAGES:
            rows.append(Row(SPLITS[row["split"]], below(base / "train", row["filename"], table), row["y"]))
    return Table(classes, rows, "id_test", ("macro_f1", "macro_f1"))
