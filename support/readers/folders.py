"""Your own folders, --dataset folder: train/<class>/, val/<class>/; further ones are shifted, but `id`."""

from support.readers.tables import PUBLISHED, Row, Table, class_folders

RECIPE = PUBLISHED
LAYOUT = "allowed: a folder with train/<class>/, val/<class>/, <domain>/<class>/ (id: in distribution)"


def read(root):
    """Look at what is there, and return one row an image: the pattern of every reader."""
    domains = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    rows, left_out = [], []
    for domain in sorted(domains, key=lambda name: name not in ("train", "val")):
        rows += [Row(domain, image, name) for name, image in class_folders(root / domain, left_out)]
    classes = sorted({row.label for row in rows if row.split == "train"})
    return Table({name: name for name in classes}, rows, id_test="id", left_out=left_out)
