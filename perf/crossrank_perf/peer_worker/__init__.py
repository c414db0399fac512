"""What runs inside the environment of a system under comparison, which has no crossrank (but for crossrank's own).

__main__.py   the protocol; started as `python DIRECTORY NAME`, so its modules import nothing of this project
with_*.py     one system each: `System` loads it and scores with it
"""
