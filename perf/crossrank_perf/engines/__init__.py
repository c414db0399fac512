"""`crossrank bench engines`: the embedded engines called directly, on the same batches in turn."""
