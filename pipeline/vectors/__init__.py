"""Where points live: the `VectorStore` seam (base), Qdrant behind it (qdrant), and the BM25 vectors (sparse)."""
