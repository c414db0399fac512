"""A package, so that pytest does not put this directory on sys.path, where its folder `triton` would pass for the library."""
