"""Engines behind one Protocol: `base` states it, each other module implements it."""
