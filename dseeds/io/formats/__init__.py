"""io/formats."""
