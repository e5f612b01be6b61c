"""A fitted model -> one file that other runtimes score with, and the gate that proves that they score the same."""
