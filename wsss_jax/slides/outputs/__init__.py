"""What is made from a finished map: files, tables, pages."""
