"""PmcmFL: training across sites that keep their data, with trials that miss a modality."""

from __future__ import annotations

from phosphene.federation.classes import ClusterClasses, LabelClasses
from phosphene.federation.client import client_update, site_model
from phosphene.federation.engine import RoundFailure, federate
from phosphene.federation.faults import Fault
from phosphene.federation.inference import Predicted, infer, predict
from phosphene.federation.library import PrototypeLibrary, Prototypes
from phosphene.federation.missing import Missing, fractions, missing_pattern, site_patterns
from phosphene.federation.model import PmcmModel
from phosphene.federation.run_state import Federated, RoundRecord
from phosphene.federation.server import first_state, server_update
from phosphene.federation.settings import FederationSettings, InferenceSettings
from phosphene.federation.sites import StudySites, dealt
from phosphene.federation.state import (
    Agreement,
    Contribution,
    GlobalState,
    RoundReport,
    SiteState,
    check_agreement,
)
from phosphene.federation.trials import MODALITIES, Inputs, Trials

__all__ = [
    "MODALITIES",
    "Agreement",
    "ClusterClasses",
    "Contribution",
    "Fault",
    "Federated",
    "FederationSettings",
    "GlobalState",
    "InferenceSettings",
    "Inputs",
    "LabelClasses",
    "Missing",
    "PmcmModel",
    "Predicted",
    "PrototypeLibrary",
    "Prototypes",
    "RoundFailure",
    "RoundRecord",
    "RoundReport",
    "SiteState",
    "StudySites",
    "Trials",
    "check_agreement",
    "client_update",
    "dealt",
    "federate",
    "first_state",
    "fractions",
    "infer",
    "missing_pattern",
    "predict",
    "server_update",
    "site_model",
    "site_patterns",
]
