// The last layer for the first token of each document, pooler and classifier: all that a cross-encoder's score needs.
#pragma once

#include "layer_end.h"

namespace crossrank {

// Neither keys nor values of the document are computed. With the [CLS] query q of a head and its softmax p,
//
//     q (x Wk)^T = (Wk q^T)^T x^T        seen = Wk q^T is one vector; the key bias cancels in the softmax
//     p (x Wv + bv) = (p x) Wv + bv      mean = p x is one vector
//
// Documents gather until kDocuments have passed their attention; the products that follow then have full blocks.
class LastLayer {
  using Kernel = FmaKernel;

 public:
  static constexpr int64_t kDocuments = round_up(48, Kernel::kRows);

  template <class AnyKernel>
  explicit LastLayer(const Model<AnyKernel>& model)
      : shape_(model.shape),
        layer_(model.last),
        pooler_(model.pooler),
        classifier_(model.classifier.get()),
        classifier_bias_(model.classifier_bias),
        end_(shape_, kDocuments),
        first_(kDocuments * shape_.width),
        query_(kDocuments * shape_.inner),
        seen_(kDocuments * shape_.width),
        means_(kDocuments * shape_.width),
        scores_(round_up(shape_.positions, kAlign)),
        sum_(kDocuments * shape_.width),
        context_((kDocuments + Kernel::kRows) * shape_.inner),
        residual_(kDocuments * shape_.width) {}

  int64_t room() const { return kDocuments - documents_; }

  // Attention of some documents; x: [rows][width] fp32, document d from row offsets[d] - offsets[0] on.
  void attend(const float* x, const int64_t* offsets, int64_t documents) {
    const int64_t width = shape_.width, inner = shape_.inner, head = shape_.head_width;
    for (int64_t d = 0; d < documents; ++d) {
      const float* row = x + (offsets[d] - offsets[0]) * width;
      std::memcpy(&first_[d * width], row, width * sizeof(float));
      std::memcpy(&residual_[(documents_ + d) * width], row, width * sizeof(float));
    }
    multiply_into(query_.get(), inner, first_.get(), width, documents, layer_.qkv.weight.all(), layer_.qkv.bias.get());
    for (int64_t h = 0; h < shape_.heads; ++h) {
      multiply_into(seen_.get(), width, &query_[h * head], inner, documents, layer_.key_transposed[h].all(), nullptr);
      for (int64_t d = 0; d < documents; ++d)
        attend_head(x + (offsets[d] - offsets[0]) * width, offsets[d + 1] - offsets[d], &seen_[d * width],
                    &means_[d * width]);
      multiply_into(&context_[documents_ * inner + h * head], inner, means_.get(), width, documents,
                    layer_.value[h].weight.all(), layer_.value[h].bias.get());
    }
    documents_ += documents;
  }

  // Writes the logits of the documents that have gathered, and returns how many.
  int64_t finish(float* logits) {
    const int64_t width = shape_.width, documents = documents_;
    end_.run(layer_, context_.get(), residual_.get(), documents,
             [&](int64_t d, int64_t i, const auto& v) { store(&first_[d * width + i], v); });
    multiply_into(sum_.get(), width, first_.get(), width, documents, pooler_.weight.all(), pooler_.bias.get());
    for (int64_t d = 0; d < documents; ++d) {
      Vector sum = {};
      for (int64_t i = 0; i < width; i += kLanes) sum += tanh_of(load(&sum_[d * width + i])) * load(classifier_ + i);
      logits[d] = sum_of(sum) + classifier_bias_;
    }
    documents_ = 0;
    return documents;
  }

 private:
  // mean = softmax(x . seen) x
  void attend_head(const float* x, int64_t length, const float* seen, float* mean) {
    const int64_t width = shape_.width;
    float* scores = scores_.get();
    for (int64_t t = 0; t < length; ++t) {
      Vector sum[kAlign / kLanes] = {}, part[kAlign / kLanes], other[kAlign / kLanes];
      for (int64_t i = 0; i < width; i += kAlign) {
        load(x + t * width + i, part);
        load(seen + i, other);
#pragma GCC unroll 8
        for (int m = 0; m < kAlign / kLanes; ++m) sum[m] += part[m] * other[m];
      }
      scores[t] = sum_of(sum);
    }
    const float inverse = softmax_row(scores, scores, length);
    for (int64_t i = 0; i < width; i += kAlign) {
      Vector sum[kAlign / kLanes] = {}, part[kAlign / kLanes];
      for (int64_t t = 0; t < length; ++t) {
        load(x + t * width + i, part);
#pragma GCC unroll 8
        for (int m = 0; m < kAlign / kLanes; ++m) sum[m] += part[m] * scores[t];
      }
#pragma GCC unroll 8
      for (int m = 0; m < kAlign / kLanes; ++m) store(mean + i + m * kLanes, sum[m] * inverse);
    }
  }

  const Shape& shape_;
  const Layer<Kernel>& layer_;
  const Linear<Kernel>& pooler_;
  const float* classifier_;
  float classifier_bias_;
  LayerEnd<Kernel> end_;
  int64_t documents_ = 0;         // that have gathered
  Buffer<float> first_, query_;   // [documents][...]: [CLS] rows and their queries
  Buffer<float> seen_, means_;    // [documents][width]: of one head
  Buffer<float> scores_;          // of one document
  Buffer<float> sum_;             // [documents][width]
  Buffer<float> context_;         // [kDocuments][inner]
  Buffer<float> residual_;        // [kDocuments][width]
};

}  // namespace crossrank
