"""What is made of a finished map: files, tables, pages."""
