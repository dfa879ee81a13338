"""Numbers in sentences."""


def format_count(number: int, noun: str) -> str:
    """Writes a number and what is counted: "1 level", "2 levels"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def format_two_digits(value: float) -> str:
    """Writes a positive number with two significant digits: 0.35, 5.5, 120, 3,400."""
    rounded = float(f"{value:.2g}")
    return f"{rounded:,.0f}" if rounded >= 10 else f"{rounded:.2g}"
