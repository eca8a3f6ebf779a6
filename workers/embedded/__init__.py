"""The embedded stack: Postgres, Redis and the vector server as child processes."""
