// Scores the pairs of standard input with the portable kernel and writes their logits, so that a test can run the encoder
// of another architecture in an emulator. Numbers are those of the machine: test_native_aarch64.py writes them.
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "api.h"

template <class T>
std::vector<T> read(int64_t count) {
  std::vector<T> values(count);
  if (std::fread(values.data(), sizeof(T), values.size(), stdin) != values.size()) std::exit(2);
  return values;
}

int main() {
  const crossrank_shape shape = read<crossrank_shape>(1)[0];
  const int64_t roles = read<int64_t>(1)[0];
  std::vector<std::string> names;
  std::vector<std::vector<float>> arrays;
  for (int64_t i = 0; i < roles; ++i) {
    const std::vector<char> name = read<char>(read<int64_t>(1)[0]);
    names.emplace_back(name.begin(), name.end());
    arrays.push_back(read<float>(read<int64_t>(1)[0]));
  }
  std::vector<crossrank_weight> weights;
  for (int64_t i = 0; i < roles; ++i)
    weights.push_back({names[i].c_str(), arrays[i].data(), static_cast<int64_t>(arrays[i].size())});
  const int64_t tokens = read<int64_t>(1)[0], pairs = read<int64_t>(1)[0];
  const std::vector<int32_t> ids = read<int32_t>(tokens), types = read<int32_t>(tokens);
  const std::vector<int64_t> offsets = read<int64_t>(pairs + 1);
  std::vector<float> logits(pairs);

  char error[kErrorBytes] = "";
  crossrank_model* model = crossrank_model_create(&shape, weights.data(), roles, error);
  crossrank_context* context = model ? crossrank_context_create(model, error) : nullptr;
  if (!context || !crossrank_score(context, ids.data(), types.data(), tokens, offsets.data(), pairs, logits.data(), error)) {
    std::fprintf(stderr, "%s\n", error);
    return 1;
  }
  crossrank_context_destroy(context);
  crossrank_model_destroy(model);
  std::fwrite(logits.data(), sizeof(float), logits.size(), stdout);
}
