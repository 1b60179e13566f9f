// out[M, N] = x[M, K] w[N, K]^T, for few rows of x: every weight is read once.
//
// Weights are laid out as [N / 16][K / pack][16][pack], with K padded with zeros to a multiple of
// 32: 16 outputs side by side, each with the `pack` values that one instruction multiplies. This
// layout serves AVX512-BF16 and AMX tiles alike. Weights have the type of x (W = T), or are 8-bit
// integers that are widened in registers and scaled per output.
//
// Speed is bound by memory, so products also prefetch: see prefetch.h.
#pragma once

#include <algorithm>
#include <type_traits>

#include "simd.h"
#if defined(__AMX_BF16__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace foreword {

constexpr int kTileRows = 32;  // rows of x at a time; buffers of x hold a multiple of it
constexpr int kTileCols = 32;  // columns of out at a time

inline int round_up(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }

// Memory to prefetch during a product, a little in each iteration. The processor's own prefetcher
// stops at each change of stream, and between two matrices.
struct Prefetch {
  const char* next;
  long num_bytes;

  // The i-th of `num_parts` equal parts.
  Prefetch part(int i, int num_parts) const {
    return {next + num_bytes / num_parts * i, num_bytes / num_parts};
  }
};

constexpr Prefetch kNoPrefetch{nullptr, 0};

constexpr int kRun = 32;       // K is a multiple of it
constexpr int kStripRows = 8;  // rows of x that one call of the inner loop multiplies

// Prefetches `memory` evenly over a product: one step per run of kRun values of K.
class Prefetcher {
 public:
  Prefetcher(Prefetch memory, int k)
      : next_(memory.next), end_(next_), stride_(memory.num_bytes * kRun / k) {}

  void step() {
    end_ += stride_;
    for (; next_ < end_; next_ += 64) prefetch_l2(next_);
  }

 private:
  const char *next_, *end_;
  long stride_;
};

// Rows [0, MR) of x times NB blocks of 16 columns. `next_w` (weights) and `kv` (the KV cache) are
// prefetched along the way. KU independent sums hide the latency of the multiply-adds.
template <class T, class W, int MR, int NB, int KU>
inline void multiply_rows(const T* x, int ldx, const W* w, int k, Prefetch next_w, Prefetch kv,
                          float* out) {
  using L = Lanes<T>;
  constexpr int kStep = kLanes * L::kPack;
  Floats acc[KU][MR][NB] = {};
  const long block = long(k) * kLanes;
  Prefetcher prefetcher(kv, k);
  const char* next = next_w.next;
  const long stride = next_w.num_bytes * L::kPack / k;
  for (const T *end = x + k, *run = x; x < end;) {
    prefetcher.step();
    run += kRun;
    while (x < run) {
      for (int u = 0; u < KU; u++) {
        for (int b = 0; b < NB; b++) prefetch_l2(next + 64 * b);
        next += stride;
        Floats wv[NB];
        for (int b = 0; b < NB; b++) wv[b] = L::load_lanes(w + b * block);
        w += kStep;
        for (int r = 0; r < MR; r++) {
          Floats xv = L::broadcast(x + r * long(ldx));
          for (int b = 0; b < NB; b++) acc[u][r][b] = L::dot(acc[u][r][b], xv, wv[b]);
        }
        x += L::kPack;
      }
    }
  }
  for (int r = 0; r < MR; r++)
    for (int b = 0; b < NB; b++) {
      Floats total = acc[0][r][b];
      for (int u = 1; u < KU; u++) total += acc[u][r][b];
      store(out + r * kTileCols + b * kLanes, total);
    }
}

// Multiplies `m` rows, a strip of kStripRows at a time. Strip i prefetches `kv(i)` of the KV pool
// and its share of `next_w`.
template <class T, class W, int NB, class Kv>
inline void multiply_any(const T* x, int ldx, const W* w, int m, int k, Prefetch next_w,
                         const Kv& kv, float* out) {
  const int num_parts = (m + kStripRows - 1) / kStripRows;
  for (int i = 0; i < num_parts; i++) {
    const int n = std::min(m, kStripRows);
    const Prefetch part = next_w.part(i, num_parts), its_kv = kv(i);
    switch (n) {
      case 1: multiply_rows<T, W, 1, NB, 4>(x, ldx, w, k, part, its_kv, out); break;
      case 2: multiply_rows<T, W, 2, NB, 4>(x, ldx, w, k, part, its_kv, out); break;
      case 3: multiply_rows<T, W, 3, NB, 2>(x, ldx, w, k, part, its_kv, out); break;
      case 4: multiply_rows<T, W, 4, NB, 2>(x, ldx, w, k, part, its_kv, out); break;
      case 5: multiply_rows<T, W, 5, NB, 1>(x, ldx, w, k, part, its_kv, out); break;
      case 6: multiply_rows<T, W, 6, NB, 1>(x, ldx, w, k, part, its_kv, out); break;
      case 7: multiply_rows<T, W, 7, NB, 1>(x, ldx, w, k, part, its_kv, out); break;
      default: multiply_rows<T, W, 8, NB, 1>(x, ldx, w, k, part, its_kv, out);
    }
    m -= n, x += long(n) * ldx, out += n * kTileCols;
  }
}

#if defined(__AMX_BF16__)
struct TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
};

// Linux lets a process use the tile registers once it has asked for permission.
inline bool may_use_tiles() {
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  static const bool granted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return granted;
}

inline void load_tile_config() {
  static const TileConfig config = [] {
    TileConfig c;
    for (int i = 0; i < 8; i++) c.rows[i] = 16, c.bytes[i] = 64;
    return c;
  }();
  _tile_loadconfig(&config);
}

// 32 rows (16 if `half`) times 32 columns with AMX, prefetching `next_w` and `kv`.
inline void multiply_tiles(const bf16* x, int ldx, const bf16* w, int k, Prefetch next_w,
                           Prefetch kv, float* out, bool half) {
  const bf16* w1 = w + long(k) * kLanes;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  Prefetcher w_prefetcher(next_w, k), kv_prefetcher(kv, k);
  for (int i = 0; i < k; i += kRun) {
    w_prefetcher.step();
    kv_prefetcher.step();
    _tile_loadd(6, w + i * kLanes, 64);
    _tile_loadd(7, w1 + i * kLanes, 64);
    _tile_loadd(4, x + i, ldx * 2);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if (half) continue;
    _tile_loadd(5, x + 16L * ldx + i, ldx * 2);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, out, kTileCols * 4);
  _tile_stored(1, out + 16, kTileCols * 4);
  if (half) return;
  _tile_stored(2, out + 16 * kTileCols, kTileCols * 4);
  _tile_stored(3, out + 16 * kTileCols + 16, kTileCols * 4);
}
#endif

inline void enter_tiles() {
#if defined(__AMX_BF16__)
  if (may_use_tiles()) load_tile_config();
#endif
}

inline void leave_tiles() {
#if defined(__AMX_BF16__)
  if (may_use_tiles()) _tile_release();
#endif
}

// A packed weight matrix.
template <class T>
struct Weight {
  const void* data;
  const float* bias;    // [n], or null
  const float* scales;  // [n], for 8-bit integers; otherwise null
  int n, k;             // k including padding

  int num_chunks() const { return (n + kTileCols - 1) / kTileCols; }
  long chunk_bytes() const { return long(kTileCols) * k * (scales ? 1 : long(sizeof(T))); }
  const char* chunk(int i) const { return static_cast<const char*>(data) + i * chunk_bytes(); }
  Prefetch prefetch(int i) const { return {chunk(i), chunk_bytes()}; }
};

// Up to 32 rows of x times one or two blocks of 16 columns.
template <class T, class W, class Kv>
inline void multiply_block(const T* x, int ldx, const W* w, int rows, int k, int num_blocks,
                           Prefetch next_w, const Kv& kv, float* out) {
#if defined(__AMX_BF16__)
  constexpr int kMinTileRows = 5;  // with fewer rows, tiles are slower than vectors
  if constexpr (std::is_same_v<W, bf16>) {
    if (num_blocks == 2 && rows >= kMinTileRows && may_use_tiles())
      return multiply_tiles(x, ldx, w, k, next_w, kv(0), out, rows <= 16);
  }
#endif
  if (num_blocks == 2)
    multiply_any<T, W, 2>(x, ldx, w, rows, k, next_w, kv, out);
  else
    multiply_any<T, W, 1>(x, ldx, w, rows, k, next_w, kv, out);
}

// Columns [32 c, 32 (c + 1)) of the result for all rows of x. `next_w` is prefetched in total, and
// `kv(strip)` for each strip of kStripRows rows. `finish(row, column, sums)` receives the
// results, 16 columns at a time.
template <class T, class Kv, class Finish>
inline void multiply(const T* x, int ldx, int m, const Weight<T>& w, int c, Prefetch next_w,
                     const Kv& kv, const Finish& finish) {
  alignas(64) float out[kTileRows * kTileCols];
  const int first = c * kTileCols;
  const int num_blocks = std::min(2, (w.n - first + kLanes - 1) / kLanes);
  const int num_tiles = (m + kTileRows - 1) / kTileRows;
  for (int i = 0; i < num_tiles; i++) {
    const int row = i * kTileRows, rows = std::min(kTileRows, m - row);
    const T* from = x + long(row) * ldx;
    const Prefetch part = next_w.part(i, num_tiles);
    const auto own = [&](int strip) { return kv(row / kStripRows + strip); };
    if (w.scales)
      multiply_block(from, ldx, reinterpret_cast<const int8_t*>(w.chunk(c)), rows, w.k, num_blocks,
                     part, own, out);
    else
      multiply_block(from, ldx, reinterpret_cast<const T*>(w.chunk(c)), rows, w.k, num_blocks, part,
                     own, out);
    for (int r = 0; r < rows; r++)
      for (int b = 0; b < num_blocks; b++) {
        Floats sums = load(out + r * kTileCols + b * kLanes);
        if (w.scales) sums *= load(w.scales + first + b * kLanes);
        if (w.bias) sums += load(w.bias + first + b * kLanes);
        finish(row + r, first + b * kLanes, sums);
      }
  }
}

// The chunk of weights that a thread is likely to need after chunk `c`. Threads take chunks in
// turn, so it is `team_size` chunks further on, and after the last chunk it is in the next matrix.
template <class T>
inline Prefetch likely_next(int c, int team_size, const Weight<T>& w, const Weight<T>& next) {
  const int i = c + team_size;
  return i < w.num_chunks() ? w.prefetch(i) : next.prefetch(i - w.num_chunks());
}

}  // namespace foreword
