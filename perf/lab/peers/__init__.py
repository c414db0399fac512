"""crossrank beside other libraries and servers."""
