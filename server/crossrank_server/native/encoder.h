// Token ids to logits. One Encoder a thread; the model is shared.
#pragma once

#include "attention.h"

namespace crossrank {

// Documents pass in groups: whole ones, until `kGroupRows` rows are reached. Their rows lie one after the other, without
// padding, and every step reads and writes the same few buffers, which stay in the second-level cache:
//
//     ids -> embed -> x [rows][width]
//     each layer but the last:   x -> QKV -> attention -> for every chunk of rows: output, norm, FFN, norm -> x
//     last layer:                x -> attention of [CLS] -> tail [document][inner]
//     every kChunk documents:    tail -> output, norm, FFN, norm -> pooler -> classifier -> logits
template <class Kernel>
class Encoder {
  using Operand = typename Kernel::Operand;
  static constexpr int64_t kGroupRows = 192;
  static constexpr int64_t kChunk = round_up(48, Kernel::kRows);
  static constexpr int64_t kSlack = Kernel::kRows > Kernel::kCols ? Kernel::kRows : Kernel::kCols;

 public:
  explicit Encoder(const Model<Kernel>& model)
      : model_(model),
        shape_(model.shape),
        attention_(shape_),
        x_(group_rows() * shape_.width),
        qkv_(group_rows() * 3 * shape_.inner),
        context_(group_rows() * shape_.inner),
        sum_(kChunk * shape_.width),
        middle_(kChunk * shape_.width),
        middle_sum_(kChunk * shape_.width),
        ffn_(kChunk * shape_.ffn_width),
        first_((kChunk + kSlack) * shape_.width),
        query_((kChunk + kSlack) * shape_.inner),
        seen_((kChunk + kSlack) * shape_.heads * shape_.width),
        means_((kChunk + kSlack) * shape_.heads * shape_.width),
        scores_(round_up(shape_.positions, kAlign)),
        mean_sum_(shape_.width),
        tail_context_(kChunk * shape_.inner),
        tail_x_(kChunk * shape_.width) {}

  // The arguments have been checked (api.cpp).
  void score(const int32_t* ids, const int32_t* types, const int64_t* offsets, int64_t pairs, float* logits) {
    int64_t in_tail = 0, scored = 0;
    for (int64_t start = 0; start < pairs;) {
      int64_t stop = start + 1;
      const int64_t most = start + kChunk - in_tail;
      while (stop < pairs && stop < most && offsets[stop + 1] - offsets[start] <= kGroupRows) ++stop;
      group(ids, types, offsets + start, stop - start, in_tail);
      in_tail += stop - start;
      start = stop;
      if (in_tail == kChunk || start == pairs) {
        tail(in_tail, logits + scored);
        scored += in_tail;
        in_tail = 0;
      }
    }
  }

 private:
  int64_t group_rows() const {
    return (shape_.positions > kGroupRows ? shape_.positions : kGroupRows) + kSlack;
  }

  void group(const int32_t* ids, const int32_t* types, const int64_t* offsets, int64_t documents, int64_t tail_row) {
    const int64_t rows = offsets[documents] - offsets[0];
    for (int64_t d = 0; d < documents; ++d)
      embed(ids + offsets[d], types + offsets[d], offsets[d + 1] - offsets[d],
            &x_[(offsets[d] - offsets[0]) * shape_.width]);
    for (int64_t i = 0; i + 1 < shape_.layers; ++i) {
      const Layer<Kernel>& layer = model_.layers[i];
      const int64_t ld = 3 * shape_.inner;
      multiply<Kernel>(x_.get(), shape_.width, rows, layer.qkv, into(qkv_.get(), ld));
      for (int64_t d = 0; d < documents; ++d) {
        const int64_t row = offsets[d] - offsets[0];
        attention_.document(&qkv_[row * ld], offsets[d + 1] - offsets[d], &context_[row * shape_.inner]);
      }
      for (int64_t row = 0; row < rows; row += kChunk) {
        const int64_t count = rows - row < kChunk ? rows - row : kChunk;
        finish_layer(layer, &context_[row * shape_.inner], &x_[row * shape_.width], count);
      }
    }
    first_tokens(offsets, documents, tail_row);
  }

  void embed(const int32_t* ids, const int32_t* types, int64_t length, Operand* x) {
    const int64_t width = shape_.width;
    constexpr int64_t kAhead = 8;  // rows of the word table come from memory
    for (int64_t t = 0; t < length; ++t) {
      if (t + kAhead < length) {
        const float* next = &model_.words[ids[t + kAhead] * width];
        for (int64_t i = 0; i < width; i += 16) __builtin_prefetch(next + i);
      }
      const float* word = &model_.words[ids[t] * width];
      const float* position = &model_.positions[(int64_t{types[t]} * shape_.positions + t) * width];
      for (int64_t i = 0; i < width; i += kLanes) store(&sum_[i], load(word + i) + load(position + i));
      model_.embedding_norm.row(sum_.get(), [&](int64_t i, Vector v) { store(x + t * width + i, v); });
    }
  }

  // x = norm(h + FFN(h)) with h = norm(x + context Wo), for up to kChunk rows, in place.
  void finish_layer(const Layer<Kernel>& layer, const Operand* context, Operand* x, int64_t rows) {
    const int64_t width = shape_.width;
    const auto add_to = [&](const auto* residual) {
      return [=](int64_t row, int64_t column, int64_t wanted, const float* c) {
        for_each_vector<Kernel>(row, column, wanted, c, [&](Vector v, int64_t i, int64_t j) {
          store(&sum_[i * width + j], v + load(residual + i * width + j));
        });
      };
    };
    multiply<Kernel>(context, shape_.inner, rows, layer.output, add_to(x));
    for (int64_t row = 0; row < rows; ++row)
      layer.attention_norm.row(&sum_[row * width], [&](int64_t i, Vector v) {
        store(&middle_[row * width + i], v);
        store(&middle_sum_[row * width + i], v);
      });
    multiply<Kernel>(middle_.get(), width, rows, layer.up,
                     [&](int64_t row, int64_t column, int64_t wanted, const float* c) {
                       for_each_vector<Kernel>(row, column, wanted, c, [&](Vector v, int64_t i, int64_t j) {
                         store(&ffn_[i * shape_.ffn_width + j], gelu_of(v));
                       });
                     });
    multiply<Kernel>(ffn_.get(), shape_.ffn_width, rows, layer.down, add_to(middle_sum_.get()));
    for (int64_t row = 0; row < rows; ++row)
      layer.output_norm.row(&sum_[row * width], [&](int64_t i, Vector v) { store(x + row * width + i, v); });
  }

  // The last layer's attention of each document's first token; results go to the tail from `tail_row` on.
  void first_tokens(const int64_t* offsets, int64_t documents, int64_t tail_row) {
    const Layer<Kernel>& layer = model_.layers[shape_.layers - 1];
    const int64_t width = shape_.width, inner = shape_.inner, head = shape_.head_width;
    for (int64_t d = 0; d < documents; ++d) {
      const Operand* first = &x_[(offsets[d] - offsets[0]) * width];
      std::memcpy(&first_[d * width], first, width * sizeof(Operand));
      std::memcpy(&tail_x_[(tail_row + d) * width], first, width * sizeof(Operand));
    }
    const Packed<Kernel>& qv = layer.qkv.weight;
    multiply<Kernel>(first_.get(), width, documents, qv.panel(0), width, inner, layer.qkv.bias.get(),
                     into(query_.get(), inner));
    for (int64_t h = 0; h < shape_.heads; ++h) {
      float* seen = &seen_[h * kChunk * width];
      Operand* means = &means_[h * kChunk * width];
      multiply<Kernel>(&query_[h * head], inner, documents, layer.key_transposed[h].panel(0), head, width, nullptr,
                       into(seen, width));
      for (int64_t d = 0; d < documents; ++d)
        attend_first(&x_[(offsets[d] - offsets[0]) * width], offsets[d + 1] - offsets[d], width, seen + d * width,
                     scores_.get(), mean_sum_.get(), means + d * width);
      multiply<Kernel>(means, width, documents, qv.panel(inner + h * head), width, head,
                       layer.qkv.bias.get() + inner + h * head,
                       into(&tail_context_[tail_row * inner + h * head], inner));
    }
  }

  // The rest of the last layer, pooler and classifier, for the documents that have gathered.
  void tail(int64_t documents, float* logits) {
    const int64_t width = shape_.width;
    finish_layer(model_.layers[shape_.layers - 1], tail_context_.get(), tail_x_.get(), documents);
    multiply<Kernel>(tail_x_.get(), width, documents, model_.pooler, into(sum_.get(), width));
    for (int64_t d = 0; d < documents; ++d) {
      Vector sum = {};
      for (int64_t i = 0; i < width; i += kLanes)
        sum += tanh_of(load(&sum_[d * width + i])) * load(&model_.classifier[i]);
      logits[d] = sum_of(sum) + model_.classifier_bias;
    }
  }

  // Stores a product's rows as they are.
  template <class Target>
  static auto into(Target* target, int64_t ld) {
    return [=](int64_t row, int64_t column, int64_t wanted, const float* c) {
      for_each_vector<Kernel>(row, column, wanted, c,
                              [&](Vector v, int64_t i, int64_t j) { store(target + i * ld + j, v); });
    };
  }

  const Model<Kernel>& model_;
  const Shape& shape_;
  Attention<Kernel> attention_;
  Buffer<Operand> x_, qkv_, context_;    // [group rows][...]
  Buffer<float> sum_;                    // [kChunk][width]: before a norm
  Buffer<Operand> middle_;               // [kChunk][width]: between attention and FFN, as an operand
  Buffer<float> middle_sum_;             // the same in fp32, for the residual
  Buffer<Operand> ffn_;                  // [kChunk][ffn_width]
  Buffer<Operand> first_, query_;        // [documents][...]: [CLS] rows and their queries
  Buffer<float> seen_;                   // [heads][kChunk][width]: queries seen through the keys
  Buffer<Operand> means_;                // [heads][kChunk][width]: what [CLS] attends to, before the value product
  Buffer<float> scores_, mean_sum_;      // of one document
  Buffer<Operand> tail_context_, tail_x_;  // [kChunk][...]
};

}  // namespace crossrank
