// Threads that walk through the phases of a step together.
//
// A step has hundreds of phases of a few microseconds, so threads wait for each other by spinning;
// but the cores are shared with whoever asks and answers over HTTP, so nobody spins for long, and a
// thread that loses its core is not waited for: a phase ends with its chunks, whoever computes them.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
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
    begin(nullptr);
    for (auto& thread : threads_) thread.join();
  }

  int size() const { return size_; }

  // Every thread runs `work(thread)`, or skips it; returns when all of its phases have ended. A thread
  // that was elsewhere may still walk through it then: without effect, but what `work` holds must
  // live as long as `work`.
  void run(Work work) {
    const auto job = std::make_shared<const Job>(Job{std::move(work), ticket_.load() >> kChunkBits});
    begin(job);
    join(*job, 0);
    const std::lock_guard lock(mutex_);
    job_ = kNothing;
  }

  // Of all threads, inside `run`: they share `num_chunks` calls of `work(chunk)`, a phase, which ends
  // when all calls have.
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
    Work work;
    uint64_t first_phase;
  };
  using JobPointer = std::shared_ptr<const Job>;

  static constexpr int kSpins = 2000;
  static constexpr int kChunkBits = 24;
  inline static const JobPointer kNothing = std::make_shared<const Job>();

  void begin(JobPointer job) {
    const std::lock_guard lock(mutex_);
    job_ = std::move(job);
    round_.fetch_add(1, std::memory_order_release);
    round_.notify_all();
  }

  void end(uint64_t phase) {
    num_done_.store(0, std::memory_order_relaxed);
    ticket_.store((phase + 1) << kChunkBits, std::memory_order_release);
    num_ended_.fetch_add(1, std::memory_order_release);
    num_ended_.notify_all();
  }

  // `num_ended_` follows the ticket: it may not have counted the phases before this one yet.
  void wait_for_end(uint64_t phase) {
    uint32_t now = num_ended_.load(std::memory_order_acquire);
    while (int32_t(now - uint32_t(phase)) <= 0) {
      wait(num_ended_, now);
      now = num_ended_.load(std::memory_order_acquire);
    }
  }

  void follow(int thread) {
    for (uint32_t seen = 0;;) {
      wait(round_, seen);
      JobPointer job;
      {
        const std::lock_guard lock(mutex_);
        seen = round_.load(std::memory_order_relaxed);
        job = job_;
      }
      if (!job) return;
      if (job->work) join(*job, thread);
    }
  }

  static void join(const Job& job, int thread) {
    next_phase_ = job.first_phase;
    job.work(thread);
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

  inline static thread_local uint64_t next_phase_ = 0;

  const int size_;
  std::vector<std::thread> threads_;
  std::mutex mutex_;
  JobPointer job_ = kNothing;  // null: the end
  alignas(64) std::atomic<uint32_t> round_{0};
  alignas(64) std::atomic<uint64_t> ticket_{0};  // phase, and its next chunk
  alignas(64) std::atomic<uint32_t> num_ended_{0};  // phases; to wait for
  alignas(64) std::atomic<int> num_done_{0};
};

}  // namespace foreword
