// What the tokenizer makes of each character: its normal form, with spaces where words end. Taught while in use.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>

namespace crossrank {

constexpr int32_t kCodePoints = 0x110000;

// Reads the character that `text`, which is not empty, begins with, and drops it; -1 if that is no UTF-8.
// Source: RFC 3629, section 3. What it also takes, overlong forms and surrogates, are code points all the same.
inline int32_t next_character(std::string_view& text) {
  const auto lead = static_cast<unsigned char>(text[0]);
  const size_t bytes = lead < 0x80 ? 1 : lead < 0xc0 ? 0 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : lead < 0xf8 ? 4 : 0;
  if (bytes == 0 || bytes > text.size()) return -1;
  int32_t code_point = bytes == 1 ? lead : lead & (0x7f >> bytes);
  for (size_t i = 1; i < bytes; ++i) {
    if ((text[i] & 0xc0) != 0x80) return -1;
    code_point = code_point << 6 | (text[i] & 0x3f);
  }
  text.remove_prefix(bytes);
  return code_point < kCodePoints ? code_point : -1;
}

// Zeroed memory that takes up room only where it is touched.
struct Free {
  void operator()(void* memory) const { std::free(memory); }
};
template <class Element>
using Sparse = std::unique_ptr<Element[], Free>;
template <class Element>
Sparse<Element> sparse(size_t count) {
  void* memory = std::calloc(count, sizeof(Element));
  if (!memory) throw std::bad_alloc();
  return Sparse<Element>(static_cast<Element*>(memory));
}

// Any thread may read while another one teaches: an entry is written once, after its form.
class Characters {
 public:
  enum State { kKnown, kUnknown, kUnsafe };

  State look_up(int32_t code_point, std::string_view* form) const {
    const uint32_t entry = entries_[code_point].load(std::memory_order_acquire);
    if (entry <= 1) return entry ? kUnsafe : kUnknown;
    *form = {&forms_[entry >> kLengthBits], static_cast<size_t>(entry & kMostLength)};
    return kKnown;
  }

  // Without a form a character is unsafe: what it becomes depends on its neighbours. What was said first stays.
  void teach(int32_t code_point, const char* form, int64_t bytes) {
    if (code_point < 0 || code_point >= kCodePoints)
      throw std::invalid_argument("there is no code point " + std::to_string(code_point));
    const std::lock_guard<std::mutex> lock(teaching_);
    std::atomic<uint32_t>& entry = entries_[code_point];
    if (entry.load(std::memory_order_relaxed) != 0) return;
    if (!form || bytes < 0 || bytes > kMostLength || taken_ + bytes > kFormBytes) {
      entry.store(1, std::memory_order_release);
      return;
    }
    std::memcpy(&forms_[taken_], form, bytes);
    entry.store(static_cast<uint32_t>(taken_ << kLengthBits | bytes), std::memory_order_release);
    taken_ += bytes;
  }

 private:
  static constexpr int kLengthBits = 6;
  static constexpr int64_t kMostLength = (1 << kLengthBits) - 1;
  static constexpr int64_t kFormBytes = 1 << 23;  // those of all Unicode take about 4 MB

  // 0: unknown; 1: unsafe; else where the form lies << kLengthBits | its bytes.
  Sparse<std::atomic<uint32_t>> entries_ = sparse<std::atomic<uint32_t>>(kCodePoints);
  Sparse<char> forms_ = sparse<char>(kFormBytes);
  int64_t taken_ = 1;  // no form lies at 0
  std::mutex teaching_;
};

}  // namespace crossrank
