// A team of threads that go through the phases of a step together.
//
// A step has hundreds of phases of a few microseconds, so threads wait for each other by spinning.
// But they share the cores with the API process, so they do not spin for long, and no phase waits
// for a thread that has lost its core: a phase ends when its chunks are done, and any thread may
// compute a chunk.
#pragma once

#include <atomic>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace foreword {

class Team {
 public:
  using Work = std::function<void(int)>;

  explicit Team(int size) : size_(size) {
    for (int i = 1; i < size; i++) threads_.emplace_back([this, i] { follow(i); });
  }

  ~Team() {
    begin(&kEnd);
    for (auto& thread : threads_) thread.join();
  }

  int size() const { return size_; }

  // Runs `work(thread)` on the calling thread and on those that wake up in time. Returns when all
  // phases of `work` have ended and no thread is inside it.
  void run(const Work& work) {
    const Job job{work, ticket_.load() >> kChunkBits};
    begin(&job);
    next_phase_ = job.first_phase;
    work(0);
    begin(nullptr);
    for (int now; (now = num_inside_.load(std::memory_order_acquire)) != 0;) wait(num_inside_, now);
  }

  // One phase: the threads inside `run` share `num_chunks` calls of `work(chunk)`. Every thread
  // must call `share` for the same phases in the same order. It returns when all calls of the phase
  // have ended; a thread that arrives later does nothing.
  template <class Chunk>
  void share(int num_chunks, const Chunk& work) {
    if (num_chunks == 0) return;
    const uint64_t phase = next_phase_++;
    uint64_t ticket = ticket_.load(std::memory_order_acquire);
    while (ticket >> kChunkBits == phase) {
      const int chunk = int(ticket & ((1 << kChunkBits) - 1));
      if (chunk == num_chunks) return wait_for_end(phase);
      if (!ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel)) continue;
      work(chunk);
      if (num_done_.fetch_add(1, std::memory_order_acq_rel) + 1 == num_chunks) return end(phase);
      ticket = ticket_.load(std::memory_order_acquire);
    }
  }

 private:
  struct Job {
    const Work& work;
    uint64_t first_phase;
  };

  static constexpr int kSpins = 2000;
  static constexpr int kChunkBits = 24;
  inline static const Work kNoWork;
  inline static const Job kEnd{kNoWork, 0};

  void begin(const Job* job) {
    const std::lock_guard lock(mutex_);
    job_ = job;
    if (!job) return;
    round_.fetch_add(1, std::memory_order_release);
    round_.notify_all();
  }

  void end(uint64_t phase) {
    num_done_.store(0, std::memory_order_relaxed);
    ticket_.store((phase + 1) << kChunkBits, std::memory_order_release);
    num_ended_.fetch_add(1, std::memory_order_release);
    num_ended_.notify_all();
  }

  // `num_ended_` is updated after the ticket: it may not yet include the phases before this one.
  void wait_for_end(uint64_t phase) {
    uint32_t now = num_ended_.load(std::memory_order_acquire);
    while (int32_t(now - uint32_t(phase)) <= 0) {
      wait(num_ended_, now);
      now = num_ended_.load(std::memory_order_acquire);
    }
  }

  void follow(int thread) {
    uint32_t seen = 0;
    for (const Job* job; (job = enter(seen)) != &kEnd;) {
      next_phase_ = job->first_phase;
      job->work(thread);
      num_inside_.fetch_sub(1, std::memory_order_acq_rel);
      num_inside_.notify_all();
    }
  }

  // Waits for the next job that has not ended, and enters it.
  const Job* enter(uint32_t& seen) {
    for (;;) {
      wait(round_, seen);
      const std::lock_guard lock(mutex_);
      seen = round_.load(std::memory_order_relaxed);
      if (!job_) continue;
      if (job_ != &kEnd) num_inside_.fetch_add(1, std::memory_order_relaxed);
      return job_;
    }
  }

  template <class Number>
  static void wait(const std::atomic<Number>& value, Number old) {
    for (int i = 0; i < kSpins; i++) {
      if (value.load(std::memory_order_acquire) != old) return;
#if defined(__x86_64__)
      _mm_pause();
#endif
    }
    value.wait(old, std::memory_order_acquire);
  }

  inline static thread_local uint64_t next_phase_ = 0;

  const int size_;
  std::vector<std::thread> threads_;
  std::mutex mutex_;
  const Job* job_ = nullptr;
  alignas(64) std::atomic<uint32_t> round_{0};
  alignas(64) std::atomic<uint64_t> ticket_{0};     // current phase, and its next chunk
  alignas(64) std::atomic<uint32_t> num_ended_{0};  // phases that have ended; waited on
  alignas(64) std::atomic<int> num_done_{0};        // finished chunks of the current phase
  alignas(64) std::atomic<int> num_inside_{0};      // threads inside `run`, without its caller
};

}  // namespace foreword
