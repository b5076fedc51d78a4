// The thread pool: every item once, and exceptions that come out where all parts have ended.
#include <atomic>
#include <new>

#include "../thread_pool.hpp"
#include "testing.hpp"

namespace bitbranch::testing {

void test_pool() {
  for (const int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    for (int round = 0; round < 200; ++round) {
      std::atomic<int> ended{0};
      const int bad = round % (threads + 1);  // a part that throws, or none
      bool thrown = false;
      try {
        pool.parallel(threads, 1, [&](int part, int64_t begin, int64_t end) {
          ended += static_cast<int>(end - begin);
          if (part == bad) throw std::bad_alloc();
        });
      } catch (const std::bad_alloc&) {
        thrown = true;
      }
      const std::string where = std::to_string(threads) + " threads, round " + std::to_string(round);
      expect(ended == threads, "pool: all items, " + where);
      expect(thrown == (bad < threads), "pool: an exception, " + where);
    }
  }
}

}  // namespace bitbranch::testing
