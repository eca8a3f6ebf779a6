"""Celery tasks: thin. Each unpacks an id, calls the domain and translates the outcome."""
