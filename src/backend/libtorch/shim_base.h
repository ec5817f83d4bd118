// What the parts of the shim share: tensors, and how exceptions become texts.
#pragma once

#include <cstdlib>
#include <cstring>
#include <exception>
#include <new>

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>
#include <torch/csrc/jit/runtime/jit_exception.h>

struct nt_tensor {
  at::Tensor tensor;
};

namespace {

// `origin` is the first byte of the text.
char* text_new(char origin, const char* text) {
  const size_t length = std::strlen(text);
  char* copy = static_cast<char*>(std::malloc(length + 2));
  // Out of memory while reporting an error: the caller cannot be told, and must not believe in success.
  if (copy == nullptr) std::abort();
  copy[0] = origin;
  std::memcpy(copy + 1, text, length + 1);
  return copy;
}

// Runs `body` and turns whatever it throws into a text. C++ backtraces are left out: symbolising them takes 0.8 ms.
template <typename Body>
char* guarded(Body&& body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const torch::jit::JITException& error) {
    return text_new('R', error.what());
  } catch (const c10::OutOfMemoryError& error) {
    return text_new('M', error.what_without_backtrace());
  } catch (const c10::Error& error) {
    return text_new('E', error.what_without_backtrace());
  } catch (const std::bad_alloc& error) {
    return text_new('M', error.what());
  } catch (const std::exception& error) {
    return text_new('E', error.what());
  } catch (...) {
    return text_new('E', "an exception of unknown type");
  }
}

}  // namespace
