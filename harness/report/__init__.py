"""Reports of records: a page, tables in Markdown, CSV and LaTeX, and plots."""
