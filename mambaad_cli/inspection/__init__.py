"""A fitted model -> verdicts and pictures."""
