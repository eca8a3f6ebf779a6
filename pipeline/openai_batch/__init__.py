"""Embeddings by the Batch API of OpenAI, or of a server that has one like it: half the price, within a day."""
