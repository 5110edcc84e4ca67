"""How fast NSD sessions of the real size are imported, and how much memory that takes.

    python benchmarks/import_nsd.py [--sessions 2]

Writes sessions of subject 1's size (750 volumes of 81 x 104 x 83, int16, 1.05 GB each) with random values and an
nsdgeneral mask of 15,724 voxels, stored in three ways, and imports each in a process of its own. The session files come
from the page cache of the machine: a slow disk adds its own time. Figures go to ``benchmarks/results/import_nsd.json``.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import scipy.io

from phosphene.files import read_json, write_json

_RESULT = Path(__file__).parent / "results" / "import_nsd.json"
_SHAPE, _TRIALS, _VOXELS = (81, 104, 83), 750, 15_724
_BETAS = "nsddata_betas/ppdata/subj01/func1pt8mm/betas_fithrf_GLMdenoise_RR"
_STORED = {
    "contiguous": None,
    "all trials of a place together": (_TRIALS, 1, 1, _SHAPE[0]),
    "volume by volume": (1, *_SHAPE[::-1]),
}


def write_tree(root: Path) -> None:
    """Design, mask and ncsnr of one person."""
    rng = np.random.default_rng(0)
    mask = np.full(_SHAPE, -1, dtype=np.float32)
    box = np.zeros(_SHAPE, dtype=bool)
    box[10:70, 5:45, 20:60] = True
    mask.ravel()[rng.choice(np.flatnonzero(box), _VOXELS, replace=False)] = 1
    for path, values in (
        (root / "nsddata/ppdata/subj01/func1pt8mm/roi/nsdgeneral.nii.gz", mask),
        (root / _BETAS / "ncsnr.nii.gz", np.ones(_SHAPE, dtype=np.float32)),
    ):
        path.parent.mkdir(parents=True)
        nibabel.save(nibabel.Nifti1Image(values, np.diag([1.8, 1.8, 1.8, 1.0])), path)
    images = np.stack([rng.permutation(73_000)[:10_000] for _ in range(8)]) + 1
    order = rng.permutation(np.repeat(np.arange(10_000), 3))[None] + 1
    design = {"masterordering": order, "subjectim": images, "sharedix": images[:1, :1000]}
    (root / "nsddata/experiments/nsd").mkdir(parents=True)
    scipy.io.savemat(root / "nsddata/experiments/nsd/nsd_expdesign.mat", design)


def write_session(path: Path, chunks: tuple[int, ...] | None) -> None:
    """750 volumes of random numbers, slice by slice."""
    rng = np.random.default_rng(1)
    with h5py.File(path, "w") as file:
        data = file.create_dataset("betas", shape=(_TRIALS, *_SHAPE[::-1]), dtype="int16", chunks=chunks)
        if chunks and chunks[0] == _TRIALS:
            for k in range(_SHAPE[2]):
                data[:, k] = rng.integers(-900, 900, (_TRIALS, *_SHAPE[1::-1]), dtype=np.int16)
        else:
            for start in range(0, _TRIALS, 50):
                data[start : start + 50] = rng.integers(-900, 900, (50, *_SHAPE[::-1]), dtype=np.int16)


def one_import(root: Path, sessions: int, result: Path) -> None:
    """Import and note seconds and memory (in a process of its own)."""
    from phosphene.recordings.readers.nsd import import_nsd

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    out = root / "study.h5"
    import_nsd(root, out, subjects=[1], sessions=sessions, pictures=False, progress=False)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    row = {"s_per_session": round(seconds / sessions, 2), "trials_per_s": round(_TRIALS * sessions / seconds, 1)}
    row |= {"peak_mb": round(peak / 1024), "peak_above_start_mb": round((peak - before) / 1024)}
    write_json(result, row | {"study_mb": round(out.stat().st_size / 1e6, 1)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=2)
    parser.add_argument("--json", type=Path, default=_RESULT)
    parser.add_argument("--import-only", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.import_only is not None:
        one_import(options.import_only, options.sessions, options.json)
        return
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        write_tree(root)
        for name, chunks in _STORED.items():
            for session in range(1, options.sessions + 1):
                write_session(root / _BETAS / f"betas_session{session:02d}.hdf5", chunks)
            words = ["--import-only", root, "--sessions", options.sessions, "--json", root / "row.json"]
            subprocess.run([sys.executable, __file__, *map(str, words)], check=True)
            rows[name] = read_json(root / "row.json")
    settings = {"sessions": options.sessions, "voxels": _VOXELS, "volume": list(_SHAPE), "cores": os.cpu_count()}
    settings |= {"python": platform.python_version(), "h5py": h5py.__version__}
    write_json(options.json, {"benchmark": "import_nsd", "settings": settings, "results": rows})
    for name, row in rows.items():
        print(f"{name:32s}", "  ".join(f"{key} {value}" for key, value in row.items()))
    print(f"written: {options.json}")


if __name__ == "__main__":
    main()
