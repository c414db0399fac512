"""Who may ask, how much, and what it costs.

base.py   the seam: `Accounts`, and what a server without keys does
"""
