"""Your own CSV file, --dataset csv: columns path, label, split and optionally domain."""

from support.errors import BadInput
from support.readers.tables import PUBLISHED, Row, Table, below, csv_rows

RECIPE = PUBLISHED
LAYOUT = "allowed: a CSV file of path,label,split (train, val, test), optionally domain; paths relative to it"


def read(path):
    """Each domain of the test rows apart; a domain "id", or none, is in distribution."""
    rows = []
    for row in csv_rows(path, "path label split"):
        split, domain = row["split"], row.get("domain") or "id"
        if split not in ("train", "val", "test"):
            raise BadInput(f"{path}: {row['path']} has the split {split!r}; allowed: train, val, test")
        if split == "test" and domain in ("train", "val"):
            raise BadInput(f"{path}: {row['path']} has the domain {domain!r}; allowed: any other name")
        image = below(path.parent, row["path"], path)
        rows.append(Row(domain if split == "test" else split, image, row["label"]))
    labels = sorted({row.label for row in rows if row.split == "train"})
    return Table({label: label for label in labels}, rows, "id")
