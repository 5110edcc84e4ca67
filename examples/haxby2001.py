"""One slice of Haxby 2001 as a plain study folder: BOLD runs with events, to be split run by run.

    python examples/haxby2001.py OUT [--data FOLDER]
    phosphene import folder OUT --out haxby.h5 --folds-by run

FOLDER holds ``haxby2001/`` (OpenFMRI tree) and ``mask.nii.gz``; the default is the data root of phosphene.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from phosphene.errors import InputError
from phosphene.files import data_root, write_json

RUNS = range(1, 13)


def build(source: Path, out: Path) -> Path:
    """Lay out person 1 as ``sub-01/func`` with BIDS names; returns the folder."""
    if not (source / "haxby2001").is_dir():
        raise InputError(f"{source} does not hold haxby2001/")
    person = out / "sub-01"
    (person / "func").mkdir(parents=True, exist_ok=True)
    for run in RUNS:
        tree = source / "haxby2001" / "sub001" / "BOLD" / f"task001_run{run:03d}"
        name = f"sub-01_task-objectviewing_run-{run:02d}"
        shutil.copyfile(tree / "bold_1slice.nii.gz", person / "func" / f"{name}_bold.nii.gz")
        shutil.copyfile(tree / "bold_events.tsv", person / "func" / f"{name}_events.tsv")
    shutil.copyfile(source / "mask.nii.gz", person / "mask.nii.gz")
    write_json(person / "recording.json", {"space": "func", "delay": 5.0})
    write_json(
        out / "study.json",
        {
            "name": "haxby2001, one slice",
            "licence": "CC BY-SA 3.0",
            "citation": "Haxby et al. 2001, Science 293:2425",
        },
    )
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, help="folder of the data set")
    arguments = parser.parse_args()
    root = data_root()
    source = arguments.data or (root / "haxby2001_slice" if root else None)
    if source is None:
        parser.error("no data root found: name the folder with --data or set PHOSPHENE_DATA")
    print(build(source, arguments.out))


if __name__ == "__main__":
    main()
