// How often memory was allocated while plans ran, in builds with a sanitizer, whose hooks tell; else nothing.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>

#ifdef BITBRANCH_COUNT_ALLOCATIONS
extern "C" int __sanitizer_install_malloc_and_free_hooks(void (*allocated)(const volatile void*, size_t),
                                                         void (*freed)(const volatile void*));
#endif

namespace bitbranch {

#ifdef BITBRANCH_COUNT_ALLOCATIONS
inline std::atomic<int64_t> allocations{0}, allocations_in_runs{0};

// By all threads, from here to the end of the block.
class CountAllocations {
 public:
  CountAllocations() {
    static const int installed = __sanitizer_install_malloc_and_free_hooks(
        [](const volatile void*, size_t) { allocations.fetch_add(1, std::memory_order_relaxed); },
        [](const volatile void*) {});
    (void)installed;
    before_ = allocations.load();
  }
  ~CountAllocations() { allocations_in_runs += allocations.load() - before_; }

 private:
  int64_t before_;
};
#else
struct CountAllocations {
  CountAllocations() {}  // so that it is not an unused variable
};
#endif

}  // namespace bitbranch
