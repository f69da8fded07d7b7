// Arrays, packed matrices and the list of entries that runs.cpp calls from several threads at once.
// Inputs and packed matrices of an entry are shared by its calls; outputs are not.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/pack.h"

namespace entries {

using namespace semobridge;
using Bytes = std::vector<unsigned char>;

// Zeroed, 64-byte aligned.
template <class T>
struct Array {
  T* data;
  int64_t size;
  explicit Array(int64_t n, uint64_t seed = 0, double scale = 0) : size(n) {
    const size_t bytes = (static_cast<size_t>(n) * sizeof(T) + 63) / 64 * 64 + 64;
    data = static_cast<T*>(std::aligned_alloc(64, bytes));
    std::memset(static_cast<void*>(data), 0, bytes);
    for (int64_t i = 0; i < n && scale != 0; ++i) data[i] = static_cast<T>(scale * draw(seed));
  }
  Array(const Array& other) : Array(other.size) {
    std::memcpy(data, other.data, static_cast<size_t>(size) * sizeof(T));
  }
  Array& operator=(const Array&) = delete;
  ~Array() { std::free(data); }
  T& operator[](int64_t i) { return data[i]; }

  static double draw(uint64_t& state) {  // -1 .. 1
    uint64_t z = (state += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return static_cast<double>((z ^ (z >> 31)) >> 11) * 0x1p-52 - 1;
  }
};
using Floats = Array<float>;
using Counts = Array<int64_t>;

inline ConstMatrix input(const Floats& from, int64_t rows, int64_t cols) {
  return {from.data, DType::kFloat32, rows, cols, cols};
}
inline Matrix output(Floats& to, int64_t rows, int64_t cols) {
  return {to.data, DType::kFloat32, rows, cols, cols};
}

template <class T>
void add(Bytes& all, const Array<T>& part) {
  const auto* first = reinterpret_cast<const unsigned char*>(part.data);
  all.insert(all.end(), first, first + static_cast<size_t>(part.size) * sizeof(T));
}
template <class... Arrays>
Bytes bytes_of(const Arrays&... arrays) {
  Bytes all;
  (add(all, arrays), ...);
  return all;
}

inline Floats pack(const Floats& values, int64_t rows, int64_t cols) {
  Floats out(packed_elements(rows, cols));
  pack_matrix({input(values, rows, cols), DType::kFloat32, out.data});
  return out;
}
struct Packed {
  int64_t rows, cols;
  Floats values, panels;
  Packed(int64_t k, int64_t m, uint64_t seed)
      : rows(k),
        cols(m),
        values(k * m, seed, 1 / std::sqrt(double(k))),
        panels(pack(values, k, m)) {}
  PackedMatrix view() const { return {panels.data, DType::kFloat32, rows, cols}; }
};

// A call with a team of `threads`; its outputs, which are its own.
using Call = std::function<Bytes(int threads)>;
struct Entry {
  std::string name;
  Call call;
};
extern std::vector<Entry> g_entries;

void add_products();  // operators.cpp
void add_rankings();
void add_losses();
void add_blends();  // blends.cpp
void add_cache_grid();
void add_training();  // engines.cpp
void add_tower();

}  // namespace entries
