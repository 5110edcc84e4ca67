"""The report: one HTML file that holds everything it shows."""

from __future__ import annotations

from phosphene.reporting.decoded import report_decoded
from phosphene.reporting.federated import report_federated
from phosphene.reporting.page import Page
from phosphene.reporting.render import render, write
from phosphene.reporting.report import compose, report

__all__ = ["Page", "compose", "render", "report", "report_decoded", "report_federated", "write"]
