"""Money is an integer number of nano-dollars everywhere; here it meets text."""

from decimal import Decimal

NANO_PER_USD = 1_000_000_000


def format_usd(nano: int) -> str:
    """Return nano-dollars as a plain decimal string in USD without trailing zeros (`0.0123`, `2`)."""
    text = format(Decimal(nano).scaleb(-9), "f")
    return (text.rstrip("0").rstrip(".") if "." in text else text) or "0"


def parse_usd(text: str) -> int:
    """Return a decimal string in USD as nano-dollars. Raises ValueError beyond 9 places or for what is no number."""
    try:
        nano = Decimal(text).scaleb(9)
    except ArithmeticError as e:
        raise ValueError(f"{text!r} is not a decimal number") from e
    if not nano.is_finite() or nano != nano.to_integral_value():
        raise ValueError(f"{text!r} has more than 9 decimal places or is not finite")
    return int(nano)
