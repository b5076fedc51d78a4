// A plan is a list of steps over buffers that were laid out before; running it allocates nothing.
#pragma once
#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <vector>

#include "kernels.hpp"
#include "thread_pool.hpp"
#include "view.hpp"

namespace bitbranch {

// One input of a run: float32 or uint8 [images][C][H][W].
struct Images {
  const void* data;
  bool is_float;
};

// What the steps of one run share.
struct Run {
  int images;
  const Images* inputs;
  float* const* outputs;  // each [images][C][H][W]
  ThreadPool& pool;
  std::atomic<int>& not_a_number;  // an input that holds a NaN, which is for a step to find; -1: none so far
};

// The grain of plain work, which is worth waking a thread only in larger pieces; see ThreadPool::parallel.
inline int64_t plain_grain(int64_t elements_per_item) {
  constexpr int64_t worth = 16384;
  return 1 + worth / (elements_per_item > 0 ? elements_per_item : 1);
}

class Step {
 public:
  virtual ~Step() = default;
  virtual void run(const Run& run) const = 0;
};

// An instruction set and threads, shared by plans of which one runs at a time.
struct Machine {
  const InstructionSet* isa;
  ThreadPool pool;

  Machine(const InstructionSet* set, int threads) : isa(set), pool(threads) {}
};

class Plan {
 public:
  explicit Plan(std::shared_ptr<Machine> machine) : machine_(std::move(machine)) {}
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;

  Machine& machine() const { return *machine_; }
  int size() const { return static_cast<int>(steps_.size()); }
  void add(std::unique_ptr<Step> step) { steps_.push_back(std::move(step)); }
  std::unique_ptr<Step> take() {  // the last one back
    std::unique_ptr<Step> step = std::move(steps_.back());
    steps_.pop_back();
    return step;
  }

  enum class End { done, interrupted, not_a_number };

  // Runs steps begin .. end on a batch; adds each step's seconds to `seconds` [steps] if that is given. Every so often
  // asks `interrupted` between two steps. The buffers can be used again, whatever the end; `bad` is then the input with
  // a NaN.
  End run(int begin, int end, int images, const Images* inputs, float* const* outputs, double* seconds,
          bool (*interrupted)(), int& bad) {
    using Clock = std::chrono::steady_clock;
    constexpr std::chrono::milliseconds period{50};
    std::atomic<int> not_a_number{-1};
    const Run run{images, inputs, outputs, machine_->pool, not_a_number};
    Clock::time_point asked = Clock::now(), start = asked;
    for (int i = begin; i < end; ++i) {
      steps_[i]->run(run);
      if ((bad = not_a_number) >= 0) return End::not_a_number;
      const Clock::time_point now = Clock::now();
      if (seconds) seconds[i] += std::chrono::duration<double>(now - start).count();
      start = now;
      if (now - asked < period) continue;
      if (interrupted()) return End::interrupted;
      asked = start = Clock::now();
    }
    return End::done;
  }

 private:
  std::shared_ptr<Machine> machine_;
  std::vector<std::unique_ptr<Step>> steps_;
};

}  // namespace bitbranch
