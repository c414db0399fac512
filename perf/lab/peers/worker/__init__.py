"""The process that scores with one system, in that system's environment, where crossrank is not installed.

__main__.py   the protocol; started as `python DIRECTORY NAME`, so its modules import nothing of this project
with_*.py     one system each: `System` loads it and scores with it
"""
