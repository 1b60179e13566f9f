// Threads that walk through the phases of a step together.
//
// A step has hundreds of phases of a few microseconds, so threads wait for each other by spinning;
// but the cores are shared with whoever asks and answers over HTTP, so nobody spins for long.
#pragma once

#include <atomic>
#include <functional>
#include <thread>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace foreword {

class Team {
 public:
  explicit Team(int size) : size_(size) {
    for (int i = 1; i < size; i++) threads_.emplace_back([this, i] { follow(i); });
  }

  ~Team() {
    stop_ = true;
    begin();
    for (auto& thread : threads_) thread.join();
  }

  int size() const { return size_; }

  // Every thread runs `work(thread)`; returns when all have ended.
  void run(const std::function<void(int)>& work) {
    work_ = &work;
    begin();
    work(0);
    barrier();
  }

  // Of all threads, inside `run`: they share `num_chunks` calls of `work(chunk)`, and wait for all.
  template <class Work>
  void share(int num_chunks, const Work& work) {
    for (int i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < num_chunks;) work(i);
    barrier();
  }

 private:
  static constexpr int kSpins = 2000;

  void begin() {
    round_.fetch_add(1, std::memory_order_release);
    round_.notify_all();
  }

  void follow(int thread) {
    for (uint32_t seen = 0;;) {
      wait(round_, seen);
      seen++;
      if (stop_) return;
      (*work_)(thread);
      barrier();
    }
  }

  void barrier() {
    uint32_t phase = phase_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 < size_) {
      wait(phase_, phase);
      return;
    }
    arrived_.store(0, std::memory_order_relaxed);
    next_.store(0, std::memory_order_relaxed);
    phase_.fetch_add(1, std::memory_order_release);
    phase_.notify_all();
  }

  static void wait(const std::atomic<uint32_t>& value, uint32_t old) {
    for (int i = 0; i < kSpins; i++) {
      if (value.load(std::memory_order_acquire) != old) return;
#if defined(__x86_64__)
      _mm_pause();
#endif
    }
    value.wait(old, std::memory_order_acquire);
  }

  const int size_;
  std::vector<std::thread> threads_;
  const std::function<void(int)>* work_ = nullptr;
  bool stop_ = false;
  alignas(64) std::atomic<uint32_t> round_{0};
  alignas(64) std::atomic<uint32_t> phase_{0};
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<int> next_{0};
};

}  // namespace foreword
