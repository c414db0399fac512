// Exceptions of C++ as messages for the callers in C.
#pragma once

#include <cstdio>
#include <exception>
#include <new>

#include "api.h"

namespace crossrank {

// Runs `function` and returns its result; a failure is explained in `error`, and the result is empty.
template <class Function>
auto guarded(char* error, Function function) -> decltype(function()) {
  try {
    return function();
  } catch (const std::bad_alloc&) {
    std::snprintf(error, kErrorBytes, "out of memory");
  } catch (const std::exception& failure) {
    std::snprintf(error, kErrorBytes, "%s", failure.what());
  }
  return {};
}

}  // namespace crossrank
