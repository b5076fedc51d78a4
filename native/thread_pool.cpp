#include "thread_pool.hpp"

#include <pthread.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace bitbranch {

namespace {

// Between two layers a worker waits a few microseconds; falling asleep and waking up would cost more than that.
constexpr std::chrono::microseconds kSpin{50};

inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#endif
}

template <class Condition>
bool spin_until(const Condition& condition) {
  const auto deadline = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 64; ++i) {
      if (condition()) return true;
      relax();
    }
  } while (std::chrono::steady_clock::now() < deadline);
  return condition();
}

// How often this process and its ancestors forked: in a child the threads of its parent do not exist.
std::atomic<uint64_t> forks{0};

uint64_t count_forks() {
  static const int registered = pthread_atfork(nullptr, nullptr, [] { forks.fetch_add(1); });
  (void)registered;
  return forks.load(std::memory_order_relaxed);
}

}  // namespace

// A round is one call of `parallel`. Worker p takes part p; the caller takes part 0 and then whatever no worker has
// begun, so that a worker that the system keeps from running holds nothing up.
struct ThreadPool::Workers {
  std::vector<std::thread> threads;
  const uint64_t process = count_forks();

  std::atomic<uint64_t> round{0};
  std::unique_ptr<std::atomic<uint64_t>[]> taken;  // [threads] last round in which the part was taken
  std::atomic<int> pending{0};                     // parts of this round that are not done, without the caller's
  void* context = nullptr;
  void (*job)(void*, int) = nullptr;
  std::atomic<bool> stop{false};
  std::exception_ptr error;  // the first of this round

  std::mutex mutex;
  std::condition_variable wake, done;

  explicit Workers(int count) : taken(new std::atomic<uint64_t>[count + 1]) {
    for (int part = 0; part <= count; ++part) taken[part] = 0;
    threads.reserve(count);
    try {
      for (int part = 1; part <= count; ++part) threads.emplace_back([this, part] { serve(part); });
    } catch (...) {  // the system has no more threads
      end();
      throw;
    }
  }

  ~Workers() { end(); }

  void end() {
    {
      std::lock_guard<std::mutex> lock(mutex);
      stop = true;
      round.fetch_add(1);
    }
    wake.notify_all();
    for (std::thread& t : threads) t.join();
  }

  // A late worker finds its part taken, in this round or a later one, and touches nothing.
  bool take(int part, uint64_t now) {
    uint64_t last = taken[part].load(std::memory_order_relaxed);
    return last < now && taken[part].compare_exchange_strong(last, now, std::memory_order_acq_rel);
  }

  void run(int part) noexcept {
    try {
      job(context, part);
    } catch (...) {
      std::lock_guard<std::mutex> lock(mutex);
      if (!error) error = std::current_exception();
    }
  }

  void finish() {
    if (pending.fetch_sub(1, std::memory_order_acq_rel) == 1) {
      std::lock_guard<std::mutex> lock(mutex);
      done.notify_one();
    }
  }

  void serve(int part) {
    for (uint64_t seen = 0;;) {
      if (!spin_until([&] { return round.load(std::memory_order_acquire) != seen; })) {
        std::unique_lock<std::mutex> lock(mutex);
        wake.wait(lock, [&] { return round.load() != seen; });
      }
      seen = round.load(std::memory_order_acquire);
      if (stop) return;
      if (take(part, seen)) {
        run(part);
        finish();
      }
    }
  }
};

ThreadPool::ThreadPool(int threads) : threads_(threads) {
  if (threads_ > 1) workers_ = std::make_unique<Workers>(threads_ - 1);
}

ThreadPool::~ThreadPool() {
  // In a forked child the threads do not exist.
  if (workers_ && workers_->process != forks.load(std::memory_order_relaxed)) workers_.release();
}

void ThreadPool::dispatch(int parts, void* context, void (*job)(void*, int)) {
  if (workers_->process != forks.load(std::memory_order_relaxed)) {
    auto fresh = std::make_unique<Workers>(threads_ - 1);
    workers_.release();  // neither its threads nor, perhaps, its mutex can be had
    workers_ = std::move(fresh);
  }
  Workers& w = *workers_;
  const uint64_t now = w.round.load() + 1;
  {
    std::lock_guard<std::mutex> lock(w.mutex);
    w.context = context;
    w.job = job;
    w.pending.store(parts - 1);
    for (int part = parts; part < threads_; ++part) w.taken[part].store(now);  // not in this round
    w.round.store(now, std::memory_order_release);
  }
  w.wake.notify_all();
  w.run(0);
  for (int part = 1; part < parts; ++part)
    if (w.take(part, now)) {
      w.run(part);
      w.finish();
    }
  const auto finished = [&] { return w.pending.load(std::memory_order_acquire) == 0; };
  if (!spin_until(finished)) {
    std::unique_lock<std::mutex> lock(w.mutex);
    w.done.wait(lock, finished);
  }
  if (w.error) std::rethrow_exception(std::exchange(w.error, nullptr));
}

}  // namespace bitbranch
