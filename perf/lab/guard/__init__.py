"""This tree beside an earlier commit."""
