"""WILDS FMoW: land use from above; the shifted domain is later years, its metric the worst region."""

import re
from datetime import datetime

from support.errors import BadInput
from support.readers.tables import PUBLISHED, Row, Table, csv_rows

RECIPE = PUBLISHED | {"descriptions": "descriptions/fmow.json", "template": ("satellite photo of a {}.",)}
RECIPE["domain"] = "satellite photos from straight above, half a meter a pixel: roofs, lots, roads, shadows"
LAYOUT = "allowed: a folder with fmow_v1.1/{rgb_metadata.csv,country_code_mapping.csv,images/}, from https://wilds.stanford.edu"
BEFORE_2013 = {"train": "train", "val": "val", "test": "id_test"}
# 2015-04-12T08:02:17Z: day, time, fraction of a second, offset; all but the day may be left out
STAMP = re.compile(r"(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d(?::\d\d)?)(?:\.\d+)?)? ?(?:Z|([+-]\d\d):?(\d\d)?)?")


def read(root):
    """An image is named after its row in the whole table. The out-of-distribution validation is not used."""
    base, rows = root / "fmow_v1.1", []
    mapping = csv_rows(base / "country_code_mapping.csv", "alpha-3 region")
    # WILDS counts a blank region (its "nan") like the others; a country that is not in the table is "Other",
    # which is never the worst.
    region_of = {row["alpha-3"]: row["region"] or "blank" for row in mapping}
    table = csv_rows(base / "rgb_metadata.csv", "split category country_code timestamp")
    for i, row in enumerate(table):
        split = split_of(row, f"{base / 'rgb_metadata.csv'}: row {i + 1}")
        if split:
            region = region_of.get(row["country_code"], "Other")
            rows.append(Row(split, base / "images" / f"rgb_img_{i}.png", row["category"], region))
    classes = {name: name for name in sorted({row["category"] for row in table})}
    return Table(classes, rows, "id_test", ("accuracy", "worst_region_accuracy"), "region")


def split_of(row, where):
    """The split of a row, or None. The year in UTC decides both cut-offs."""
    try:
        day, time, hours, minutes = STAMP.fullmatch(row["timestamp"]).groups()
        stamp = datetime.fromisoformat(f"{day}T{time or '00:00'}{hours or '+00'}:{minutes or '00'}")
        year = stamp.utctimetuple().tm_year
    except (AttributeError, ValueError, OverflowError):
        allowed = "2015-04-12T08:02:17Z"
        raise BadInput(f"{where} has the timestamp {row['timestamp']!r}; allowed: {allowed}") from None
    if year < 2013:
        return BEFORE_2013.get(row["split"])
    return "test" if row["split"] == "test" and year >= 2016 else None
