"""One slice of Haxby 2001: which of eight categories was on the screen, one run left out at a time.

    python benchmarks/haxby2001.py [--out JSON]

Block means after the usual two volumes (5 s), runs detrended and z-scored over time, targets one-hot labels; the
decoders are fitted to eleven runs with their presets and asked for the eight blocks of the twelfth. Chance 1/8.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import phosphene as ph
from phosphene.files import data_root, write_json
from phosphene.recordings import Study
from phosphene.recordings.readers.folder import import_folder

HERE = Path(__file__).parent
DECODERS = ("ridge", "lite-mind", "mindeye-mlp", "shared-response")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "haxby2001.json")
    arguments = parser.parse_args()
    sys.path.insert(0, str(HERE.parent / "examples"))
    from haxby2001 import build

    root = data_root()
    if root is None:
        raise SystemExit("haxby2001_slice is not at hand: set PHOSPHENE_DATA to the folder of data sets")
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as work:
        folder = build(root / "haxby2001_slice", Path(work) / "folder")
        with Study.open(import_folder(folder, Path(work) / "study.h5", folds_column="run")) as study:
            views = {fold: study.using(fold) for fold in study.split_names}
            targets = {
                fold: ph.encode(
                    study.stimuli, "labels", fit_on=view.split("train").stimulus_ids, cache=False, progress=False
                )
                for fold, view in views.items()
            }
            for name in DECODERS:
                fitted = {fold: ph.fit(name, view, targets[fold], progress=False) for fold, view in views.items()}
                card = ph.evaluate(fitted, study, targets, rivals=(), progress=False)
                score = next(s for s in card.scores if s.metric == "accuracy" and s.subject == "mean")
                results[name] = {"accuracy": score.value, "interval": score.interval, "null": score.null}
                low, high = score.interval
                print(
                    f"{name:16} accuracy {score.value:.3f} [{low:.3f}, {high:.3f}] chance {score.chance:.3f}",
                    flush=True,
                )
    write_json(arguments.out, {"command": "python benchmarks/haxby2001.py", "chance": 0.125, "results": results})


if __name__ == "__main__":
    main()
