"""What every part of the client works with."""

from __future__ import annotations

from pipeline.assembly import Services
from pipeline.monitoring.reporting import Reporter, configure, report_at_first_record
from pipeline.settings import Settings, load_settings

DEFAULT_COLLECTION = "default"


class Connected:
    """The services of one Millrace, and whose documents are meant where a call names no tenant."""

    def __init__(
        self, settings: Settings | None = None, *, tenant: str | None = None, services: Services | None = None
    ) -> None:
        self._services = services or Services(settings or load_settings())
        self.settings = self._services.settings
        self._reporter: Reporter | None = None
        if services is None:  # those that are lent belong to a process that reports by itself
            configure(self.settings.metrics, self.settings.logs, self.settings.alerts)
            self._reporter = report_at_first_record(self.settings.redis, self.settings.metrics)
        self.tenant = tenant or self.settings.tenant
