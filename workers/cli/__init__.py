"""The command line `millrace`."""
