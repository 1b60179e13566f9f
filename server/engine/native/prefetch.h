// Prefetching during products.
//
// A step with few rows does little arithmetic per byte, so its speed is that of reading weights and
// KV from memory, and a thread must always have reads in flight. The processor's own prefetcher
// follows a stream of addresses, but cannot know where the next stream starts. So the products
// prefetch it while they compute, cache line by cache line:
//
//                | out | gate_up      | down       | qkv of i + 1 |
//    attention i |-----+--------------+------------+--------------| attention i + 1
//       weights  | each product: its own next chunks, and at its end those of the next matrix
//       KV       |             piece 0, piece 1, ... of layer i + 1
//
// - Weights: `likely_next` names the chunk that a thread will probably multiply next. `Prefetcher`
//   and `multiply_rows` spread the cache lines of that chunk evenly over the product.
// - KV: `KvPrefetch` lists the memory that attention reads in each layer, as pieces (a block of a
//   prefix, a page of a sequence). The strips of the four products between two attentions are
//   numbered as calls 0, 1, ..., and the pieces are assigned to the last of them: the weights would
//   evict what was prefetched much earlier.
#pragma once

#include <algorithm>
#include <vector>

#include "attention.h"
#include "gemm.h"
#include "structs.h"

namespace foreword {
namespace {  // one translation unit: with internal linkage the compiler inlines as in a .cpp

// A piece of memory with keys and values of layer 0: `size` values. The same piece of layer i is
// i * `stride` values further on.
template <class T>
struct KvPiece {
  const T* data;
  long stride, size;
};

// Maximum number of calls that share the prefetching of one piece.
constexpr int kMaxCallsPerPiece = 2;

// Distributes the KV that attention reads in a layer over the calls before it.
template <class T>
class KvPrefetch {
 public:
  // `num_calls`: between the attention of two layers.
  KvPrefetch(const CModel& m, const CStep& s, int num_calls) : num_layers_(m.num_layers) {
    const long block = 2L * m.num_kv_heads * kBlock * m.head_dim;
    const long page = block / kBlock * s.page_size;
    for (int g = 0; g < s.num_groups; g++) {
      const CGroup& group = s.groups[g];
      const T* prefix = static_cast<const T*>(group.prefix);
      for (int b = 0; prefix && b < group.num_slots / kBlock; b++)
        pieces_.push_back({prefix + b * block, block * (group.num_slots / kBlock), block});
    }
    for (int i = 0; i < s.num_spans; i++) {
      const CSpan& span = s.spans[i];
      for (int p = 0; p * s.page_size < span.start + span.num_rows; p++) {
        const T* pool = static_cast<const T*>(s.pool);
        pieces_.push_back({pool + s.pages[span.first_page + p] * m.num_layers * page, page, page});
      }
    }
    const int num_pieces = int(pieces_.size());
    calls_per_piece_ =
        pieces_.empty() ? 1 : std::clamp(num_calls / num_pieces, 1, kMaxCallsPerPiece);
    first_call_ = num_calls - num_pieces * calls_per_piece_;
  }

  // The memory that call number `call` since the last attention prefetches for the attention of
  // `layer`. The last piece falls to the last call: all arrive in time, but not too early.
  Prefetch at(int layer, int call) const {
    const int i = (call - first_call_) / calls_per_piece_;
    if (call < first_call_ || i >= int(pieces_.size()) || layer >= num_layers_) return kNoPrefetch;
    const KvPiece<T>& piece = pieces_[i];
    const Prefetch whole{reinterpret_cast<const char*>(piece.data + layer * piece.stride),
                         piece.size * long(sizeof(T))};
    return whole.part((call - first_call_) % calls_per_piece_, calls_per_piece_);
  }

 private:
  std::vector<KvPiece<T>> pieces_;
  int num_layers_, calls_per_piece_, first_call_;
};

}  // namespace
}  // namespace foreword
