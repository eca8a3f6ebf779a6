"""Text in, vectors out: what a model is (`base`), the one that is carried along (`bundled`), FastEmbed (`local`)."""
