"""Rows, photos and a model -> one HTML page, which needs no network and no server."""
