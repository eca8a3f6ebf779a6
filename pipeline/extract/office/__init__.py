"""Office formats to Markdown: packages of XML, workbooks, RTF."""
