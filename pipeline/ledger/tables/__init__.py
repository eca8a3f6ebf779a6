"""The tables of the ledger. Migrations make them; the SQL beside the code that needs it reads and writes them."""

from __future__ import annotations

from pipeline.ledger.tables import buying, operating, work
from pipeline.ledger.tables.columns import metadata

__all__ = ["buying", "metadata", "operating", "work"]
