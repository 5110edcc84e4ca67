"""Virtual brains: simulated recordings of any stimuli, with known ground truth."""

from __future__ import annotations

from phosphene.virtual.people import VirtualPerson
from phosphene.virtual.settings import PersonSettings, StimulusSettings, VirtualSettings
from phosphene.virtual.simulation import Truth, VirtualStudy, make_settings, record, simulate, study, write_study

__all__ = [
    "PersonSettings",
    "StimulusSettings",
    "Truth",
    "VirtualPerson",
    "VirtualSettings",
    "VirtualStudy",
    "make_settings",
    "record",
    "simulate",
    "study",
    "write_study",
]
