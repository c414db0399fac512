"""API keys, limits, prepaid credit and metering.

base.py      the seam: `Accounts`, and what a server without keys does
metered.py   accounts with keys: keys.py finds them, ledger.py admits with the SQL of admission.py and settles,
             meter.py sums up usage, windows.py computes sliding windows, redis_limits.py counts limits in Redis
clock.py     the time, which tests hand in; prices.py the price list
store.py     the tables in SQLite or PostgreSQL; threads.py keeps them off the event loop; usage.py reads sums
"""
