"""WILDS FMoW: land use from above; the shifted domain is later years, its metric the worst region."""

from support.errors import BadInput
from support.readers.tables import PUBLISHED, Row, Table, csv_rows

RECIPE = PUBLISHED | {"descriptions": "descriptions/fmow.json", "template": ("satellite photo of a {}.",)}
RECIPE |= {
    "domain": "satellite photos from straight above, half a meter a pixel: roofs, lots, roads, shadows"
}
LAYOUT = (
    "allowed: a folder with fmow_v1.1/{rgb_metadata.csv,country_code_mapping.csv,images/}, "
    "from https://wilds.stanford.edu"
)
REGIONS = ("Asia", "Europe", "Africa", "Americas", "Oceania")  # all else is "Other", and never the worst
BEFORE_2013 = {"train": "train", "val": "val", "test": "id_test"}


def read(root):
    """An image is named after its row in the whole table. The out-of-distribution validation is not used."""
    base, rows = root / "fmow_v1.1", []
    mapping = csv_rows(base / "country_code_mapping.csv", "alpha-3 region")
    region_of = {row["alpha-3"]: row["region"] for row in mapping if row["region"] in REGIONS}
    table = csv_rows(base / "rgb_metadata.csv", "split category country_code timestamp")
    for i, row in enumerate(table):
        split = split_of(row, f"{base / 'rgb_metadata.csv'}: row {i + 1}")
        if split:
            region = region_of.get(row["country_code"], "Other")
            rows.append(Row(split, base / "images" / f"rgb_img_{i}.png", row["category"], region))
    classes = {name: name for name in sorted({row["category"] for row in table})}
    return Table(classes, rows, "id_test", ("accuracy", "worst_region_accuracy"), "region")


def split_of(row, where):
    """The split of a row, or None. Times are in UTC, so that the year decides both cut-offs."""
    year = row["timestamp"][:4]
    if not (year.isdecimal() and len(year) == 4):
        raise BadInput(f"{where} has the timestamp {row['timestamp']!r}; allowed: 2015-04-12T08:02:17Z")
    if year < "2013":
        return BEFORE_2013.get(row["split"])
    return "test" if row["split"] == "test" and year >= "2016" else None
