"""Readers of demonstrations from elsewhere, a format a file."""
