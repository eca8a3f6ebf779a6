"""HTML pages to Markdown: the text that a person would copy."""
