"""Bugs that are put into a copy of the project, and the tests that have to catch them."""
