"""A model that answers over HTTP: photos in, rows and overlays out."""
