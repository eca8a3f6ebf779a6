"""How the system watches itself."""
