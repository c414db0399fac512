// The interface that a library was built with, which Python compares with its own before it calls anything else
// (interface.py). Included once in each library.
#pragma once

#include "api.h"

#if !defined(CROSSRANK_INTERFACE)
#error "setup.py defines CROSSRANK_INTERFACE, the hash of the headers that Python calls"
#endif

CROSSRANK_API const char* crossrank_interface() { return CROSSRANK_INTERFACE; }
