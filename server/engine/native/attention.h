// Attention of up to eight queries at a time over segments of keys and values, with a running
// softmax (Milakov and Gimelshein, 2018): a prefix and a sequence's own keys need no merge.
//
// Keys and values are stored in blocks of 16 tokens: keys as [head_dim / pack][16][pack], values as
// [16 / pack][head_dim][pack], so that no product has to sum across lanes.
#pragma once

#include "simd.h"

namespace foreword {

constexpr int kBlock = 16;     // tokens in a block of keys or values
constexpr int kMaxQueries = 8;
constexpr int kMaxHeadDim = 256;
constexpr int kChunk = 8;      // blocks between two updates of the running softmax
constexpr float kHidden = -1e30f;

// Up to eight queries that share their keys and values, and their results so far.
template <class T>
struct Queries {
  int num = 0;
  int head_dim = 0;
  const T* query[kMaxQueries];
  T* out[kMaxQueries];
  int first[kMaxQueries];  // first key of the segment that a query sees
  int last[kMaxQueries];   // one past the last key that it sees
  float highest[kMaxQueries];
  float total[kMaxQueries];
  alignas(64) float sums[kMaxQueries * kMaxHeadDim];

  void clear() {
    for (int q = 0; q < num; q++) highest[q] = kHidden, total[q] = 0;
    memset(sums, 0, sizeof(float) * num * head_dim);
  }

  void finish() {
    for (int q = 0; q < num; q++)
      for (int d = 0; d < head_dim; d += kLanes)
        store(out[q] + d, load(sums + q * head_dim + d) * (1.0f / total[q]));
  }
};

// Addresses of the keys and values of a chunk. While a chunk is computed, the cache lines of the
// next one are prefetched one at a time: many prefetches at once would delay the loads.
template <class T>
struct Blocks {
  const T *keys[kChunk], *values[kChunk];
};

// Scores of NQ queries against NB blocks of keys, into scores[query][block][16].
template <class T, int NQ, int NB>
inline void score(const Queries<T>& qs, const T* const* keys, const T* const* later,
                  float* scores) {
  using L = Lanes<T>;
  Floats acc[NQ][NB] = {};
  for (int d = 0; d < qs.head_dim; d += L::kPack) {
    Floats k[NB];
    for (int b = 0; b < NB; b++) {
      k[b] = L::load_lanes(keys[b] + d * kBlock);
      prefetch_l2(later[b] + d * kBlock);
    }
    for (int q = 0; q < NQ; q++) {
      Floats x = L::broadcast(qs.query[q] + d);
      for (int b = 0; b < NB; b++) acc[q][b] = L::dot(acc[q][b], x, k[b]);
    }
  }
  for (int q = 0; q < NQ; q++)
    for (int b = 0; b < NB; b++) store(scores + (q * kChunk + b) * kBlock, acc[q][b]);
}

// Adds the values, weighted by `probs`, to the sums: dimensions [d, d + 16 * ND) of NQ queries.
template <class T, int NQ, int ND>
inline void add_values(Queries<T>& qs, int d, int num_blocks, const T* const* values,
                       const T* const* later, const T* probs) {
  using L = Lanes<T>;
  Floats acc[NQ][ND];
  for (int q = 0; q < NQ; q++)
    for (int i = 0; i < ND; i++) acc[q][i] = load(qs.sums + q * qs.head_dim + d + i * kLanes);
  for (int b = 0; b < num_blocks; b++)
    for (int t = 0; t < kBlock; t += L::kPack) {
      Floats v[ND];
      for (int i = 0; i < ND; i++) {
        const long at = long(t) * qs.head_dim + (d + i * kLanes) * L::kPack;
        v[i] = L::load_lanes(values[b] + at);
        prefetch_l2(later[b] + at);
      }
      for (int q = 0; q < NQ; q++) {
        Floats p = L::broadcast(probs + (q * kChunk + b) * kBlock + t);
        for (int i = 0; i < ND; i++) acc[q][i] = L::dot(acc[q][i], p, v[i]);
      }
    }
  for (int q = 0; q < NQ; q++)
    for (int i = 0; i < ND; i++) store(qs.sums + q * qs.head_dim + d + i * kLanes, acc[q][i]);
}

// Turns the scores of one query into weights relative to its highest score so far. If that rises,
// the sums are scaled down. From here on exponentials are in base 2, which saves a multiplication.
template <class T>
inline void update_softmax(Queries<T>& qs, int q, int first_key, int num_blocks, float scale,
                           float* s, T* probs) {
  const Ints lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const bool all = qs.first[q] <= first_key && first_key + num_blocks * kBlock <= qs.last[q];
  Floats highest = splat(kHidden);
  for (int b = 0; b < num_blocks; b++) {
    Floats x = load(s + b * kBlock) * (scale * kLog2E);
    if (!all) {
      Ints key = lane + (first_key + b * kBlock);
      Ints seen = (key >= qs.first[q]) & (key < qs.last[q]);
      x = seen ? x : splat(kHidden);
    }
    store(s + b * kBlock, x);
    highest = max(highest, x);
  }
  const float before = qs.highest[q], now = max(highest) > before ? max(highest) : before;
  Floats total = {};
  for (int b = 0; b < num_blocks; b++) {
    Floats x = load(s + b * kBlock);
    Floats p = exp2(x - now);
    if (!all) p = x > kHidden ? p : Floats{};
    total += p;
    store(probs + b * kBlock, p);
  }
  if (now > before) {
    const float shrink = exp2(splat(before - now))[0];
    for (int d = 0; d < qs.head_dim; d += kLanes) {
      float* at = qs.sums + q * qs.head_dim + d;
      store(at, load(at) * shrink);
    }
    qs.total[q] *= shrink;
    qs.highest[q] = now;
  }
  qs.total[q] += sum(total);
}

// Up to kChunk blocks for NQ queries: scores, softmax, weighted sum of values.
template <class T, int NQ>
inline void attend_chunk(Queries<T>& qs, int first_key, int num_blocks, const Blocks<T>& now,
                         const Blocks<T>& later, float scale) {
  alignas(64) float scores[NQ * kChunk * kBlock];
  alignas(64) T probs[NQ * kChunk * kBlock];
  int b = 0;
  constexpr int kWide = NQ <= 4 ? 4 : 2;
  for (; b + kWide <= num_blocks; b += kWide)
    score<T, NQ, kWide>(qs, now.keys + b, later.keys + b, scores + b * kBlock);
  for (; b < num_blocks; b++)
    score<T, NQ, 1>(qs, now.keys + b, later.keys + b, scores + b * kBlock);
  for (int q = 0; q < NQ; q++)
    update_softmax(qs, q, first_key, num_blocks, scale, scores + q * kChunk * kBlock,
                   probs + q * kChunk * kBlock);
  int d = 0;
  for (; d + 2 * kLanes <= qs.head_dim; d += 2 * kLanes)
    add_values<T, NQ, 2>(qs, d, num_blocks, now.values, later.values, probs);
  for (; d < qs.head_dim; d += kLanes)
    add_values<T, NQ, 1>(qs, d, num_blocks, now.values, later.values, probs);
}

// All keys of a segment for `qs`, whose `first` and `last` must be set. `block(i, keys, values)`
// returns the addresses of the segment's i-th block.
template <class T, class Block>
inline void attend(Queries<T>& qs, float scale, const Block& block) {
  int first = qs.first[0], last = qs.last[0];
  for (int q = 1; q < qs.num; q++) {
    first = qs.first[q] < first ? qs.first[q] : first;
    last = qs.last[q] > last ? qs.last[q] : last;
  }
  const int begin = first / kBlock, end = (last + kBlock - 1) / kBlock;
  Blocks<T> now, later;
  const auto read = [&](int b, Blocks<T>& to) {
    for (int i = 0; i < kChunk; i++) block(b + i < end ? b + i : end - 1, to.keys[i], to.values[i]);
  };
  read(begin, later);
  for (int b = begin; b < end; b += kChunk) {
    const int n = end - b < kChunk ? end - b : kChunk;
    now = later;
    if (b + kChunk < end) read(b + kChunk, later);
    switch (qs.num) {
      case 1: attend_chunk<T, 1>(qs, b * kBlock, n, now, later, scale); break;
      case 2: attend_chunk<T, 2>(qs, b * kBlock, n, now, later, scale); break;
      case 3: attend_chunk<T, 3>(qs, b * kBlock, n, now, later, scale); break;
      case 4: attend_chunk<T, 4>(qs, b * kBlock, n, now, later, scale); break;
      case 5: attend_chunk<T, 5>(qs, b * kBlock, n, now, later, scale); break;
      case 6: attend_chunk<T, 6>(qs, b * kBlock, n, now, later, scale); break;
      case 7: attend_chunk<T, 7>(qs, b * kBlock, n, now, later, scale); break;
      default: attend_chunk<T, 8>(qs, b * kBlock, n, now, later, scale);
    }
  }
}

// Writes the key of token `t` to its block: the values of a lane are adjacent.
template <class T>
inline void write_key(T* block, int t, const T* from, int head_dim) {
  constexpr int P = Lanes<T>::kPack;
  for (int d = 0; d < head_dim; d += P)
    memcpy(block + (d / P * kBlock + t) * P, from + d, sizeof(T) * P);
}

// Index of dimension `d` of token `t` in its block of values.
template <class T>
inline int value_slot(int t, int d, int head_dim) {
  constexpr int P = Lanes<T>::kPack;
  return (t / P * head_dim + d) * P + t % P;
}

template <class T>
inline void write_value(T* block, int t, const T* from, int head_dim) {
  for (int d = 0; d < head_dim; d++) block[value_slot<T>(t, d, head_dim)] = from[d];
}

}  // namespace foreword
