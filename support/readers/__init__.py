"""Published data sets, a file each: RECIPE (defaults), LAYOUT (where it comes from), read(root) -> Table.

To add one, copy the file that is most like it, and name it in READERS. tables.py says what a Table holds.
"""

from support.readers import cifar10, csv_file, fmow, folders, imagenet, iwildcam, waterbirds

READERS = {"cifar10": cifar10, "waterbirds": waterbirds, "iwildcam": iwildcam, "fmow": fmow}
READERS |= {"imagenet": imagenet, "folder": folders, "csv": csv_file}
