"""What an ingest would cost and how long it would take, before anything is enqueued: `estimate.estimate`.

The documents are read, extracted and cut in this process, as a worker would do it, a few at a time (`counting`); what
they are made of is looked up in the ledger by the embeddings' own keys, and priced by provider (`offers`). Nothing is
written, and nothing is spent.
"""

from __future__ import annotations

from pipeline.estimates.counting import Counted
from pipeline.estimates.estimate import Estimate, Reading, Wish, estimate
from pipeline.estimates.offers import Offer

__all__ = ["Counted", "Estimate", "Offer", "Reading", "Wish", "estimate"]
