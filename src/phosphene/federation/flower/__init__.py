"""The same federated functions as a Flower app: rounds between machines, over TLS. The only place that knows Flower."""

from __future__ import annotations

from phosphene.errors import require

require("flwr", "federated", "federated training between machines")

from phosphene.federation.flower.config import RunSettings, SiteSettings  # noqa: E402
from phosphene.federation.flower.server import federate_over, server_app  # noqa: E402
from phosphene.federation.flower.site import client_app  # noqa: E402

__all__ = ["RunSettings", "SiteSettings", "client_app", "federate_over", "server_app"]
