// The memory of a plan.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

namespace bitbranch {

// Bytes that start on a cache line and hold `fill` until a step writes them.
class Buffer {
 public:
  explicit Buffer(size_t bytes, uint8_t fill = 0)
      : size_((bytes + 63) / 64 * 64), data_(static_cast<uint8_t*>(std::aligned_alloc(64, size_))) {
    if (!data_) throw std::bad_alloc();
    std::memset(data_, fill, size_);
  }
  ~Buffer() { std::free(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  uint8_t* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  size_t size_;
  uint8_t* data_;
};

}  // namespace bitbranch
