#include "wordpiece.h"

#include <algorithm>

#include "characters.h"
#include "guard.h"
#include "interface.h"
#include "vocabulary.h"

using namespace crossrank;

namespace {

std::string_view at(const crossrank_strings& strings, int64_t i) {
  return {strings.text + strings.offsets[i], static_cast<size_t>(strings.offsets[i + 1] - strings.offsets[i])};
}

}  // namespace

struct crossrank_wordpiece {
  crossrank_wordpiece(const crossrank_strings& tokens, const int32_t* ids, std::string_view prefix, int32_t unknown_id,
                      int64_t word_characters, const crossrank_strings& added)
      : vocabulary(tokens.text, tokens.offsets, ids, tokens.count, prefix),
        unknown_id(unknown_id),
        word_characters(word_characters) {
    for (int64_t i = 0; i < added.count; ++i) {
      const std::string_view token = at(added, i);
      if (token.empty()) continue;
      size_t bytes = 0;
      const int32_t id = vocabulary.longest(Vocabulary::kStart, token, &bytes);
      this->added.push_back({std::string(token), bytes == token.size() ? id : -1});
      begins_added[static_cast<unsigned char>(token[0])] = true;
    }
    // Where several match, the longest does.
    std::stable_sort(this->added.begin(), this->added.end(),
                     [](const Added& one, const Added& other) { return one.text.size() > other.text.size(); });
  }

  struct Added {
    std::string text;
    int32_t id;  // -1 where the vocabulary has none
  };

  const Added* added_at(std::string_view text) const {
    if (!begins_added[static_cast<unsigned char>(text[0])]) return nullptr;
    for (const Added& token : added)
      if (text.substr(0, token.text.size()) == token.text) return &token;
    return nullptr;
  }

  const Vocabulary vocabulary;
  const int32_t unknown_id;
  const int64_t word_characters;
  std::vector<Added> added;
  bool begins_added[256] = {};
  Characters characters;
};

namespace {

// Writes the ids of texts, one after the other.
class Writer {
 public:
  Writer(const crossrank_wordpiece& self, int32_t* ids, int64_t capacity)
      : self_(self), ids_(ids), capacity_(capacity) {}

  int64_t written() const { return written_; }

  crossrank_outcome text(std::string_view text) {
    const int64_t start = written_;
    crossrank_outcome outcome = words(text);
    if (outcome == kUntaught) {
      written_ = start;
      outcome = untaught(text);
    }
    if (outcome == kLeft) written_ = start;
    return outcome;
  }

 private:
  crossrank_outcome words(std::string_view text) {
    begin_word();
    std::string_view form;
    while (!text.empty()) {
      if (const auto* token = self_.added_at(text)) {
        if (token->id < 0 || !end_word() || !write(token->id)) return kLeft;
        text.remove_prefix(token->text.size());
        continue;
      }
      const int32_t code_point = next_character(text);
      if (code_point < 0) return kLeft;
      const Characters::State state = self_.characters.look_up(code_point, &form);
      if (state != Characters::kKnown) return state == Characters::kUnsafe ? kLeft : kUntaught;
      for (char byte : form)
        if (byte != ' ')
          add(byte);
        else if (!end_word())
          return kLeft;
    }
    return end_word() ? kTokenized : kLeft;
  }

  // Writes the code points that are not known yet, in place of ids.
  crossrank_outcome untaught(std::string_view text) {
    std::string_view form;
    while (!text.empty()) {
      const int32_t code_point = next_character(text);
      if (code_point < 0) return kLeft;
      if (self_.characters.look_up(code_point, &form) == Characters::kUnknown && !write(code_point)) return kLeft;
    }
    return kUntaught;
  }

  void begin_word() {
    word_.clear();
    characters_ = 0;
  }

  void add(char byte) {
    characters_ += (byte & 0xc0) != 0x80;
    if (characters_ <= self_.word_characters) word_ += byte;
  }

  bool end_word() {
    if (!characters_) return true;
    const int64_t start = written_;
    std::string_view rest = word_;
    bool cut = characters_ <= self_.word_characters;
    for (Vocabulary::Place place = Vocabulary::kStart; cut && !rest.empty(); place = Vocabulary::kInside) {
      size_t bytes = 0;
      const int32_t id = self_.vocabulary.longest(place, rest, &bytes);
      cut = bytes > 0;
      if (cut && !write(id)) return false;
      rest.remove_prefix(bytes);
    }
    begin_word();
    if (cut) return true;
    written_ = start;
    return write(self_.unknown_id);
  }

  bool write(int32_t id) {
    if (written_ == capacity_) return false;
    ids_[written_++] = id;
    return true;
  }

  const crossrank_wordpiece& self_;
  int32_t* const ids_;
  const int64_t capacity_;
  int64_t written_ = 0;
  std::string word_;        // normalized
  int64_t characters_ = 0;  // of the word, those that word_ no longer takes included
};

}  // namespace

crossrank_wordpiece* crossrank_wordpiece_create(const crossrank_strings* vocabulary, const int32_t* ids,
                                                const char* prefix, int32_t unknown_id, int64_t word_characters,
                                                const crossrank_strings* added, char* error) {
  return guarded(error, [&] {
    return new crossrank_wordpiece(*vocabulary, ids, prefix, unknown_id, word_characters, *added);
  });
}

void crossrank_wordpiece_destroy(crossrank_wordpiece* self) { delete self; }

bool crossrank_wordpiece_teach(crossrank_wordpiece* self, int32_t code_point, const char* form, int64_t bytes,
                               char* error) {
  return guarded(error, [&] {
    self->characters.teach(code_point, form, bytes);
    return true;
  });
}

bool crossrank_wordpiece_tokenize(const crossrank_wordpiece* self, const crossrank_strings* texts, int32_t* ids,
                                  int64_t capacity, int64_t* id_offsets, uint8_t* outcomes, char* error) {
  return guarded(error, [&] {
    Writer writer(*self, ids, capacity);
    id_offsets[0] = 0;
    for (int64_t i = 0; i < texts->count; ++i) {
      outcomes[i] = writer.text(at(*texts, i));
      id_offsets[i + 1] = writer.written();
    }
    return true;
  });
}
