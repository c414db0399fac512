// BERT's tokenizer as Python sees it (wordpiece.py): plain C, no function touches Python.
//
// The rules are those of BertNormalizer, BertPreTokenizer and WordPiece in https://github.com/huggingface/tokenizers:
// characters are normalized one by one, words end at white space and around punctuation, and a word is cut into the
// longest pieces that the vocabulary has, from left to right. What a character becomes is taught, not known here.
#pragma once

#include "api.h"

struct crossrank_wordpiece;

// Strings one after the other; string i is text[offsets[i], offsets[i + 1]), UTF-8.
struct crossrank_strings {
  const char* text;
  const int64_t* offsets;  // [count + 1]
  int64_t count;
};

// What became of a text.
enum crossrank_outcome : uint8_t {
  kTokenized = 0,  // its ids are there
  kUntaught = 1,   // in place of ids stand the code points that must be taught first
  kLeft = 2,       // only the tokenizer itself can tell
};

// `ids` are those of the vocabulary's tokens. Words of more characters than `word_characters` become `unknown_id`.
// `added` (added tokens) are searched as they are, before anything else, and have the ids of the vocabulary; a text that
// holds one that the vocabulary does not have is left.
CROSSRANK_API crossrank_wordpiece* crossrank_wordpiece_create(const crossrank_strings* vocabulary, const int32_t* ids,
                                                              const char* prefix, int32_t unknown_id,
                                                              int64_t word_characters, const crossrank_strings* added,
                                                              char* error);
CROSSRANK_API void crossrank_wordpiece_destroy(crossrank_wordpiece* self);

// Says what a character becomes: UTF-8, with spaces where words end. Texts with one that has no form are left.
CROSSRANK_API bool crossrank_wordpiece_teach(crossrank_wordpiece* self, int32_t code_point, const char* form,
                                             int64_t bytes, char* error);

// Writes the ids of text i to ids[id_offsets[i], id_offsets[i + 1]) and its outcome; id_offsets [texts + 1], outcomes
// [texts]. A text for which `capacity` ids do not suffice is left. Many threads may call it at once.
CROSSRANK_API bool crossrank_wordpiece_tokenize(const crossrank_wordpiece* self, const crossrank_strings* texts,
                                                int32_t* ids, int64_t capacity, int64_t* id_offsets,
                                                uint8_t* outcomes, char* error);
