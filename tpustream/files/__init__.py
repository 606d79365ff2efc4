"""Readers of file formats that weights/ and text/ share."""
