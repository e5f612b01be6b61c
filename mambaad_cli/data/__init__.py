"""Files -> images -> labelled samples."""
