"""Numbers in sentences."""


def counted(number: int, noun: str) -> str:
    """ "1 level", "2 levels"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def two_digits(value: float) -> str:
    """A positive number with two significant digits: 0.35, 5.5, 120, 3,400."""
    short = float(f"{value:.2g}")
    return f"{short:,.0f}" if short >= 10 else f"{short:.2g}"
