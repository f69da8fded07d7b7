"""A product with its rows normalised, and operands prepared once."""
