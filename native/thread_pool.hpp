// A small thread pool with a static partition: the parts of a call depend on nothing but the counts.
#pragma once
#include <cstdint>
#include <memory>

namespace bitbranch {

class ThreadPool {
 public:
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return threads_; }

  // Calls work(part, begin, end) for consecutive parts of 0 .. items, as many as threads; returns when all are done.
  // Parts hold at least `grain` items: less is not worth waking a thread. Where parts throw, the first exception is
  // thrown on when all have ended. One call at a time.
  template <class Work>
  void parallel(int64_t items, int64_t grain, const Work& work) {
    const int64_t useful = items / (grain > 0 ? grain : 1);
    const int parts = useful < threads_ ? static_cast<int>(useful) : threads_;
    if (parts <= 1) {
      if (items > 0) work(0, int64_t{0}, items);
      return;
    }
    struct Call {
      const Work& work;
      int64_t items;
      int parts;
    } call{work, items, parts};
    dispatch(parts, &call, [](void* context, int part) {
      const Call& c = *static_cast<const Call*>(context);
      c.work(part, c.items * part / c.parts, c.items * (part + 1) / c.parts);
    });
  }

 private:
  struct Workers;
  void dispatch(int parts, void* context, void (*job)(void*, int));

  int threads_;
  std::unique_ptr<Workers> workers_;
};

}  // namespace bitbranch
