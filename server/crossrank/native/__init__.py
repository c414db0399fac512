"""The encoder in C++ and its Python side: `library` (ctypes) and `weights` (roles). README.md here draws its layout."""
