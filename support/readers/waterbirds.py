"""WILDS Waterbirds: birds pasted on land or water; the background is the spurious feature."""

from support.errors import BadInput
from support.readers.tables import PUBLISHED, Row, Table, below, csv_rows

RECIPE = PUBLISHED | {"descriptions": "descriptions/waterbirds.json"}
RECIPE |= {"domain": "photos of birds, cut out and set before another place"}
LAYOUT = "allowed: a folder with waterbirds_v1.0/metadata.csv and its images, from https://wilds.stanford.edu"
BIRDS = ("landbird", "waterbird")
PLACES = ("land", "water")
IN_TRAINING = {"landbird_land": 3498, "landbird_water": 184, "waterbird_land": 56, "waterbird_water": 1057}


def read(root):
    """A bird on its own ground is in distribution, in validation too; on the other ground it is not."""
    base, rows = root / "waterbirds_v1.0", []
    table = base / "metadata.csv"
    for row in csv_rows(table, "img_filename y split place"):
        if row["y"] not in ("0", "1") or row["place"] not in ("0", "1"):
            bird = f"{row['img_filename']} has y {row['y']}, place {row['place']}"
            raise BadInput(f"{table}: {bird}; allowed: 0 or 1")
        at_home = row["y"] == row["place"]
        split_of = {"0": "train", "1": "val" if at_home else None, "2": "id" if at_home else "ood"}
        bird, place = BIRDS[int(row["y"])], PLACES[int(row["place"])]
        split = split_of.get(row["split"])
        if split:
            rows.append(Row(split, below(base, row["img_filename"], table), bird, f"{bird}_{place}"))
    classes = {bird: bird for bird in BIRDS}
    return Table(classes, rows, "id", ("accuracy", "worst_group_accuracy"), "group", IN_TRAINING)
