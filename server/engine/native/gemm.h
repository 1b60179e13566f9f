// out[M, N] = x[M, K] w[N, K]^T, for few rows and weights that are read once.
//
// Weights are laid out as [N / 16][K / pack][16][pack], K padded with zeros to a multiple of 32:
// sixteen outputs side by side, and the values that one instruction multiplies together. The same
// layout feeds AVX512-BF16 and AMX tiles.
#pragma once

#include <algorithm>

#include "simd.h"
#if defined(__AMX_BF16__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace foreword {

constexpr int kTileRows = 32;  // rows of x at a time; buffers of x have room for a multiple of it
constexpr int kTileCols = 32;  // columns of out at a time
constexpr int kAhead = 4096;   // bytes of weights that are asked for before they are needed

inline int round_up(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }

// Rows [0, MR) of x against NB blocks of sixteen columns. KU sums run side by side, since one
// multiply-add waits for the one before.
template <class T, int MR, int NB, int KU>
inline void multiply_rows(const T* x, int ldx, const T* w, int k, float* out) {
  using L = Lanes<T>;
  constexpr int kStep = kLanes * L::kPack;
  Floats acc[KU][MR][NB] = {};
  const long block = long(k) * kLanes;
  for (int i = 0; i < k; i += L::kPack * KU)
    for (int u = 0; u < KU; u++) {
      const T* wi = w + (i / L::kPack + u) * kStep;
      Floats wv[NB];
      for (int b = 0; b < NB; b++) {
        prefetch(wi + b * block + kAhead / sizeof(T), 64);
        wv[b] = L::load_lanes(wi + b * block);
      }
      for (int r = 0; r < MR; r++) {
        Floats xv = L::broadcast(x + long(r) * ldx + i + u * L::kPack);
        for (int b = 0; b < NB; b++) acc[u][r][b] = L::dot(acc[u][r][b], xv, wv[b]);
      }
    }
  for (int r = 0; r < MR; r++)
    for (int b = 0; b < NB; b++) {
      Floats total = acc[0][r][b];
      for (int u = 1; u < KU; u++) total += acc[u][r][b];
      store(out + r * kTileCols + b * kLanes, total);
    }
}

template <class T, int NB>
inline void multiply_any(const T* x, int ldx, const T* w, int m, int k, float* out) {
  while (m > 0) {
    int n = std::min(m, 8);
    switch (n) {
      case 1: multiply_rows<T, 1, NB, 4>(x, ldx, w, k, out); break;
      case 2: multiply_rows<T, 2, NB, 4>(x, ldx, w, k, out); break;
      case 3: multiply_rows<T, 3, NB, 2>(x, ldx, w, k, out); break;
      case 4: multiply_rows<T, 4, NB, 2>(x, ldx, w, k, out); break;
      case 5: multiply_rows<T, 5, NB, 1>(x, ldx, w, k, out); break;
      case 6: multiply_rows<T, 6, NB, 1>(x, ldx, w, k, out); break;
      case 7: multiply_rows<T, 7, NB, 1>(x, ldx, w, k, out); break;
      default: multiply_rows<T, 8, NB, 1>(x, ldx, w, k, out);
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

// Linux hands the tile registers to a process that asks for them.
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

// 32 rows (16 if `half`) by 32 columns.
inline void multiply_tiles(const bf16* x, int ldx, const bf16* w, int k, float* out, bool half) {
  const bf16* w1 = w + long(k) * kLanes;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int i = 0; i < k; i += 32) {
    prefetch(w + i * kLanes + kAhead / 2, 1024);
    prefetch(w1 + i * kLanes + kAhead / 2, 1024);
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
  const T* data;
  const float* bias;  // [n], or null
  int n, k;           // k as padded

  int num_chunks() const { return (n + kTileCols - 1) / kTileCols; }
};

// Up to 32 rows of x against one or two blocks of sixteen columns.
template <class T>
inline void multiply_block(const T* x, int ldx, const T* w, int rows, int k, int num_blocks,
                           float* out) {
#if defined(__AMX_BF16__)
  constexpr int kMinTileRows = 5;  // below, the tiles are too empty to be worth loading
  if constexpr (Lanes<T>::kPack == 2) {
    if (num_blocks == 2 && rows >= kMinTileRows && may_use_tiles())
      return multiply_tiles(x, ldx, w, k, out, rows <= 16);
  }
#endif
  if (num_blocks == 2)
    multiply_any<T, 2>(x, ldx, w, rows, k, out);
  else
    multiply_any<T, 1>(x, ldx, w, rows, k, out);
}

// Chunk `c` of the columns for all rows of x. `finish(row, column, sums)` gets sixteen at a time.
template <class T, class Finish>
inline void multiply(const T* x, int ldx, int m, const Weight<T>& w, int c, const Finish& finish) {
  alignas(64) float out[kTileRows * kTileCols];
  const int first = c * kTileCols;
  const int num_blocks = std::min(2, (w.n - first + kLanes - 1) / kLanes);
  for (int row = 0; row < m; row += kTileRows) {
    const int rows = std::min(kTileRows, m - row);
    const T* data = w.data + long(first) * w.k;
    multiply_block(x + long(row) * ldx, ldx, data, rows, w.k, num_blocks, out);
    for (int r = 0; r < rows; r++)
      for (int b = 0; b < num_blocks; b++) {
        Floats sums = load(out + r * kTileCols + b * kLanes);
        if (w.bias) sums += load(w.bias + first + b * kLanes);
        finish(row + r, first + b * kLanes, sums);
      }
  }
}

}  // namespace foreword
