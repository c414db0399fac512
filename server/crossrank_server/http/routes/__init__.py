"""The dialects: each reads its own fields into a request of the service and writes the answer in its own form."""
