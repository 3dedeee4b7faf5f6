"""Measured quality: features of pictures, distances between sets of them, intervals, path length."""
