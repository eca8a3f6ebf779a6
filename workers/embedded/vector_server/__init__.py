"""Qdrant's engine behind Qdrant's own gRPC contract: one small process that many workers share."""
