"""Families of models, a package each: the maths, and what the packages below are told about it."""
