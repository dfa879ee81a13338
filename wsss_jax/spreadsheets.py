"""Text in CSV files that no spreadsheet takes for a formula."""

# What Excel, LibreOffice and Google Sheets begin a formula with, or skip before one (OWASP, "CSV
# injection"); also in the full width of East Asian type.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def text(value: str) -> str:
    """A cell of text such as a name, with ' before it where it would begin a formula.

    Numbers need none: they are written as they are.
    """
    return f"'{value}" if value.startswith(_FORMULA) else value
