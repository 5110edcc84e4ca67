"""A small NSD tree in the released layout: real file names, axes and number types, tiny volumes."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import nibabel
import numpy as np
import scipy.io

SHAPE = (5, 4, 6)  # X, Y, Z
VERTICES = 40
TRIALS = 750
AFFINE = np.array([[1.8, 0, 0, -4], [0, 1.8, 0, -3], [0, 0, 1.8, -2], [0, 0, 0, 1.0]])
BETAS = "betas_fithrf_GLMdenoise_RR"


def write_design(root: Path) -> None:
    rng = np.random.default_rng(0)
    order = rng.permutation(np.repeat(np.arange(10_000), 3))
    # 18 shared images appear in the last three sessions only, as in the released data
    late = np.flatnonzero(order < 18)
    free = np.setdiff1d(np.arange(27_750, 30_000), late)[: len(late)]
    order[late], order[free] = order[free], order[late].copy()
    numbers = rng.permutation(73_000)
    shared = np.sort(numbers[:1000])
    lists = [np.concatenate([shared, numbers[1000 + 9000 * s : 10_000 + 9000 * s]]) for s in range(8)]
    folder = root / "nsddata/experiments/nsd"
    folder.mkdir(parents=True)
    scipy.io.savemat(
        folder / "nsd_expdesign.mat",
        {"masterordering": order[None] + 1, "subjectim": np.stack(lists) + 1, "sharedix": shared[None] + 1},
        do_compression=True,
    )
    lines = [",cocoId,cocoSplit,cropBox,nsdId"]
    lines += [f'{n},{500_000 - n},train2017,"(0, 0, 0.1, 0.1)",{n}' for n in range(73_000)]
    (folder / "nsd_stim_info_merged.csv").write_text("\n".join(lines) + "\n")


def write_pictures(root: Path) -> np.ndarray:
    pictures = np.random.default_rng(1).integers(0, 256, (73_000, 3, 3, 3), dtype=np.uint8)
    path = root / "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"
    path.parent.mkdir(parents=True)
    with h5py.File(path, "w") as file:
        file["imgBrick"] = pictures
    return pictures


def write_captions(path: Path) -> Path:
    entries = [{"image_id": 500_000 - n, "caption": f"picture {n}\n"} for n in range(73_000)]
    path.write_text(json.dumps({"annotations": entries}))
    return path


def volume(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, AFFINE), path)


def write_person(root: Path, subject: int, sessions: int, suffix: str = "hdf5") -> list[np.ndarray]:
    """Betas of one person as (trials, X, Y, Z) int16, one array a session; voxel (1, 1, 1) is lost in session 2."""
    rng = np.random.default_rng(subject)
    folder = root / f"nsddata_betas/ppdata/subj{subject:02d}/func1pt8mm/{BETAS}"
    roi = root / f"nsddata/ppdata/subj{subject:02d}/func1pt8mm/roi"
    label = root / f"nsddata/freesurfer/subj{subject:02d}/label"
    label.mkdir(parents=True)
    general = np.full(SHAPE, -1, dtype=np.float32)
    general[1:4, 1:3, 1:5] = 1
    volume(roi / "nsdgeneral.nii.gz", general)
    volume(roi / "lh.nsdgeneral.nii.gz", general)
    visual = np.zeros(SHAPE, dtype=np.float32)
    visual[1, 1:3, 1:5], visual[2, 1:3, 1:5] = 1, 2
    volume(roi / "prf-visualrois.nii.gz", visual)
    volume(roi / "Kastner2015.nii.gz", (visual == 2).astype(np.float32) * 3)
    (label / "prf-visualrois.mgz.ctab").write_text("0 Unknown 0 0 0 0\n1 V1v 255 0 0 0\n2 V1d 0 255 0 0\n")
    (label / "nsdgeneral.mgz.ctab").write_text("0 Unknown\n1 nsdgeneral\n")
    (label / "Kastner2015.mgz.ctab").write_text("0 Unknown\n3 V1d\n")
    volume(folder / "ncsnr.nii.gz", np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE))
    betas = []
    for session in range(1, sessions + 1):
        block = rng.integers(-900, 900, (TRIALS, *SHAPE), dtype=np.int16)
        if session == 2:
            block[:, 1, 1, 1] = 0
        betas.append(block)
        path = folder / f"betas_session{session:02d}.{suffix}"
        if suffix == "hdf5":
            with h5py.File(path, "w") as file:
                chunks = (TRIALS, 2, 1, 1) if session == 1 else None
                file.create_dataset("betas", data=block.transpose(0, 3, 2, 1), chunks=chunks)
        else:
            volume(path, block.transpose(1, 2, 3, 0))
    return betas


def write_surfaces(root: Path, subject: int, sessions: int, mask: np.ndarray | None = None) -> list[list[np.ndarray]]:
    """Betas of one person on two tiny "fsaverage" surfaces, (trials, vertices) float32 a session and hemisphere."""
    rng = np.random.default_rng(subject)
    folder = root / f"nsddata_betas/ppdata/subj{subject:02d}/fsaverage/{BETAS}"
    label = root / "nsddata/freesurfer/fsaverage/label"
    for each in (folder, label):
        each.mkdir(parents=True, exist_ok=True)
    for side in ("lh", "rh"):
        within = np.zeros((VERTICES, 1, 1), dtype=np.int32)
        within[slice(5, 15) if mask is None else mask] = 1
        nibabel.save(nibabel.MGHImage(within, np.eye(4)), label / f"{side}.nsdgeneral.mgz")
        nibabel.save(
            nibabel.MGHImage(np.arange(VERTICES, dtype=np.float32).reshape(-1, 1, 1), np.eye(4)),
            folder / f"{side}.ncsnr.mgh",
        )
    betas = []
    for session in range(1, sessions + 1):
        pair = []
        for side in ("lh", "rh"):
            block = rng.normal(size=(TRIALS, VERTICES)).astype(np.float32)
            if session == 1 and side == "rh":
                block[3, 7 if mask is None else np.flatnonzero(mask)[-1]] = np.nan
            pair.append(block)
            image = nibabel.MGHImage(np.ascontiguousarray(block.T).reshape(VERTICES, 1, 1, TRIALS), np.eye(4))
            nibabel.save(image, folder / f"{side}.betas_session{session:02d}.mgh")
        betas.append(pair)
    return betas
