"""What every part of the client works with."""

from __future__ import annotations

from pipeline.assembly import Services
from pipeline.settings import Settings, load_settings

DEFAULT_COLLECTION = "default"


class Connected:
    """The services of one Millrace, and whose documents are meant where a call names no tenant."""

    def __init__(
        self, settings: Settings | None = None, *, tenant: str | None = None, services: Services | None = None
    ) -> None:
        self._services = services or Services(settings or load_settings())
        self.settings = self._services.settings
        self.tenant = tenant or self.settings.tenant
