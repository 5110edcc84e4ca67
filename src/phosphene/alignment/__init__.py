"""Alignment between people: linear maps from everybody's voxels into one space, by anatomy or by function."""

from __future__ import annotations

from phosphene.alignment.base import TRAINING_ROLES, Aligner, AlignerSettings, PersonMap, Template
from phosphene.alignment.isc import IscReport, inter_subject_correlation, unaligned
from phosphene.alignment.registry import ALIGNERS, make_aligner

__all__ = [
    "ALIGNERS",
    "TRAINING_ROLES",
    "Aligner",
    "AlignerSettings",
    "IscReport",
    "PersonMap",
    "Template",
    "inter_subject_correlation",
    "make_aligner",
    "unaligned",
]
