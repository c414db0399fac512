// Which id a piece of a word has: a hash table over the vocabulary, immutable once made.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace crossrank {

// FNV-1a of 64 bits, byte by byte, so that one pass gives the hash of every prefix.
// Source: http://www.isthe.com/chongo/tech/comp/fnv/
inline uint64_t hash_on(uint64_t hash, char byte) {
  return (hash ^ static_cast<unsigned char>(byte)) * 0x100000001b3;
}

class Vocabulary {
 public:
  // A piece that goes on inside a word is another entry than the same letters at its start; its hash starts elsewhere.
  enum Place : uint64_t { kStart = 0xcbf29ce484222325, kInside = 0x9ae16a3b2f90404f };

  // Token i is text[offsets[i], offsets[i + 1]); one that begins with `prefix` is a piece inside a word too.
  Vocabulary(const char* text, const int64_t* offsets, const int32_t* ids, int64_t count, std::string_view prefix) {
    size_t slots = 16;
    while (slots < static_cast<size_t>(count) * 4) slots *= 2;
    slots_.resize(slots);
    letters_.reserve(2 * offsets[count]);  // never moved: entries point into it
    for (int64_t i = 0; i < count; ++i) {
      const std::string_view token(text + offsets[i], offsets[i + 1] - offsets[i]);
      if (ids[i] < 0) throw std::invalid_argument("the id of token " + std::string(token) + " is negative");
      add(kStart, token, ids[i]);
      if (token.substr(0, prefix.size()) == prefix) add(kInside, token.substr(prefix.size()), ids[i]);
    }
  }

  // Returns the id of the longest piece that `word` begins with, and its bytes; 0 bytes if there is none.
  int32_t longest(Place place, std::string_view word, size_t* bytes) const {
    uint64_t hashes[kMostBytes];
    const size_t most = std::min(word.size(), most_bytes_);
    uint64_t hash = place;
    for (size_t i = 0; i < most; ++i) hashes[i] = hash = hash_on(hash, word[i]);
    for (*bytes = most; *bytes > 0; --*bytes) {
      const int32_t id = find(hashes[*bytes - 1], place, word.substr(0, *bytes));
      if (id >= 0) return id;
    }
    return -1;
  }

 private:
  // Longer tokens are refused; the longest of BERT's has 18 bytes.
  static constexpr size_t kMostBytes = 512;

  struct Slot {
    uint64_t hash = 0;
    const char* letters = nullptr;
    uint16_t bytes = 0;
    bool starts = false;
    int32_t id = -1;  // empty

    bool holds(uint64_t other, Place place, std::string_view piece) const {
      return hash == other && starts == (place == kStart) && bytes == piece.size() &&
             !std::memcmp(letters, piece.data(), piece.size());
    }
  };

  void add(Place place, std::string_view piece, int32_t id) {
    if (piece.empty()) return;
    if (piece.size() > kMostBytes)
      throw std::invalid_argument("a token has " + std::to_string(piece.size()) + " bytes, the limit is " +
                                  std::to_string(kMostBytes));
    most_bytes_ = std::max(most_bytes_, piece.size());
    uint64_t hash = place;
    for (char byte : piece) hash = hash_on(hash, byte);
    size_t at = first(hash);
    while (slots_[at].id >= 0 && !slots_[at].holds(hash, place, piece)) at = next(at);
    const char* letters = letters_.data() + letters_.size();
    letters_.append(piece);
    slots_[at] = {hash, letters, static_cast<uint16_t>(piece.size()), place == kStart, id};
  }

  int32_t find(uint64_t hash, Place place, std::string_view piece) const {
    for (size_t at = first(hash);; at = next(at))
      if (slots_[at].id < 0 || slots_[at].holds(hash, place, piece)) return slots_[at].id;
  }

  size_t first(uint64_t hash) const { return (hash ^ hash >> 32) & (slots_.size() - 1); }
  size_t next(size_t at) const { return (at + 1) & (slots_.size() - 1); }

  std::vector<Slot> slots_;  // a power of two, at most half of them taken
  std::string letters_;
  size_t most_bytes_ = 0;
};

}  // namespace crossrank
