"""Processes: the Celery application, the command line, the embedded stack."""
