// What the native tests share.
#pragma once
#include <cstring>
#include <string>
#include <vector>

#include "../self_check.hpp"

namespace bitbranch::testing {

using Bytes = std::vector<uint8_t>;

template <class T>
void append(Bytes& bytes, const T* values, size_t count) {
  const size_t at = bytes.size();
  bytes.resize(at + count * sizeof(T));
  if (count) std::memcpy(bytes.data() + at, values, count * sizeof(T));
}

// Numbers between lo and hi, now and then one of the two.
template <class T>
std::vector<T> numbers(Random& random, size_t count, int64_t lo, int64_t hi) {
  std::vector<T> x(count);
  for (T& v : x) {
    const int64_t kind = random.between(0, 15);
    v = static_cast<T>(kind == 0 ? lo : kind == 1 ? hi : random.between(lo, hi));
  }
  return x;
}

// Counts a comparison, and says what differs.
void expect(bool holds, const std::string& what);

void test_kernels(const InstructionSet& set);
void test_functions(const InstructionSet& set);
void test_dot(const InstructionSet& set);
void test_pool();
void test_self_check();

}  // namespace bitbranch::testing
