"""Who may ask, how much, and what it costs.

base.py      the seam: `Accounts`, and what a server without keys does
metered.py   accounts with keys: keys.py finds them, ledger.py admits by the statements of admission.py and settles,
             meter.py sums up usage, windows.py is the arithmetic of limits, redis_limits.py counts them elsewhere
store.py     the tables in SQLite or PostgreSQL; threads.py keeps them off the event loop; usage.py reads sums
"""
