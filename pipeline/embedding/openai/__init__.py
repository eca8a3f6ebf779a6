"""Embedding for money: OpenAI, and every server that speaks its protocol, online."""
