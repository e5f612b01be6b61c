"""Good images -> a fitted model."""
