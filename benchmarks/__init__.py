"""Measurements of partialpool: speeds beside its peers' (`bench`), and the checks that take minutes (`check_long`)."""
