"""Rows, photos and a model -> one HTML file for people, which needs no network and no server."""
