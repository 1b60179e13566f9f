// All layers of a Llama-like decoder in one call: RMSNorm, attention over prefix and own keys with
// rotary embeddings, SiLU-gated MLP. layers.py calls the C interface at the end of the file.
//
// Prefetching. A step with few rows does little arithmetic per byte, so its speed is that of
// reading weights and KV from memory, and a thread must always have reads in flight. The
// processor's own prefetcher follows a stream of addresses, but cannot know where the next one
// starts. So the products prefetch it while they compute, cache line by cache line:
//
//                | out | gate_up      | down       | qkv of i + 1 |
//    attention i |-----+--------------+------------+--------------| attention i + 1
//       weights  | each product: its own next chunks, and at its end those of the next matrix
//       KV       |             piece 0, piece 1, ... of layer i + 1
//
// - Weights: `ahead_of` names the chunk that a thread will probably multiply after its current one.
//   `Reader` and `multiply_rows` spread the cache lines of that chunk evenly over the product.
// - KV: `plan_cache` lists the memory that attention reads in each layer, as pieces (a block of a
//   prefix, a page of a sequence). The strips of the four products between two attentions are
//   numbered as calls 0 ... num_calls_ - 1, and `ahead_in_cache` assigns the pieces to the last
//   calls: the weights would evict again what was prefetched much earlier.

#include <limits>

#include "attention.h"
#include "gemm.h"
#include "team.h"

using namespace foreword;

extern "C" {

struct CWeight {
  const void* data;
  const float* bias;    // [n], or null
  const float* scales;  // [n]: factors of 8-bit integers; null if the weights are not quantized
  int32_t n, k;
};

struct CLayer {
  CWeight qkv, out, gate_up, down;  // gate_up: rows of gate and up interleaved, 16 at a time
  const float *input_norm, *post_norm;
  const float *query_norm, *key_norm;  // [head_dim], or null
  int32_t window;                      // 0: none
};

struct CModel {
  const CLayer* layers;
  int32_t num_layers, hidden_size, num_heads, num_kv_heads, head_dim, intermediate_size;
  float norm_eps, scale;
};

// A sequence's rows in this step: [row, row + num_rows). `start` own tokens precede them.
struct CSpan {
  int32_t row, num_rows, start, first_page;  // first_page: index into `pages`
};

// Spans [first_span, last_span), which share a prefix or have none. The prefix is in blocks:
// [layers][2][kv_heads][num_slots][head_dim], num_slots being num_tokens rounded up.
struct CGroup {
  const void* prefix;  // or null
  int32_t num_tokens, num_slots, first_span, last_span;
};

struct CStep {
  int32_t num_rows, num_spans, num_groups, page_size;
  const CSpan* spans;
  const CGroup* groups;
  const int32_t* pages;
  void* pool;  // blocks [page][layers][2][kv_heads][page_size][head_dim]
  const void *cos, *sin;  // [num_rows, head_dim]
  const void* hidden;     // [num_rows, hidden_size]
  void* result;           // [num_rows, hidden_size]
};
}

namespace {

// Rows of one group whose queries are computed together, for one KV head at a time.
struct Item {
  int group, span, last_span;  // spans [span, last_span)
  int row, last_row;
};

// A piece of memory with keys and values of layer 0: `size` values. The same piece of layer i is
// i * `stride` values further on.
template <class T>
struct Piece {
  const T* data;
  long stride, size;
};

// Maximum number of calls that share the prefetching of one piece.
constexpr int kMaxShare = 2;

template <class T>
class Decoder {
 public:
  Decoder(Team& team, const CModel& model, const CStep& step) : team_(team), m_(model), s_(step) {
    const int rows = round_up(s_.num_rows, kTileRows);
    wide_ = round_up(std::max(m_.hidden_size, m_.num_heads * m_.head_dim), 32);
    qkv_ = (m_.num_heads + 2 * m_.num_kv_heads) * m_.head_dim;
    inner_ = round_up(m_.intermediate_size, 32);
    hidden_.resize(size_t(rows) * m_.hidden_size);
    input_.resize(size_t(rows) * wide_);
    heads_.resize(size_t(rows) * qkv_);
    gated_.resize(size_t(rows) * inner_);
    span_of_.resize(s_.num_rows);
    for (int i = 0; i < s_.num_spans; i++)
      std::fill_n(span_of_.begin() + s_.spans[i].row, s_.spans[i].num_rows, i);
    plan();
    plan_cache();
  }

  void run() {
    memcpy(hidden_.data(), s_.hidden, sizeof(T) * s_.num_rows * m_.hidden_size);
    team_.run([this](int) {
      enter_tiles();
      for (int i = 0; i < m_.num_layers; i++)
        layer(i, m_.layers[i], m_.layers[std::min(i + 1, m_.num_layers - 1)]);
      leave_tiles();
    });
    memcpy(s_.result, hidden_.data(), sizeof(T) * s_.num_rows * m_.hidden_size);
  }

 private:
  // Splits the rows of each group into items: enough to occupy all threads, but each with as many
  // rows as possible, because it reads the whole prefix.
  void plan() {
    const int per_kv = m_.num_heads / m_.num_kv_heads;
    const int wanted = 4 * team_.size();
    const int share = (s_.num_rows * m_.num_kv_heads + wanted - 1) / wanted;
    const int max_rows = std::clamp(share, (kMaxQueries + per_kv - 1) / per_kv, 32);
    for (int g = 0; g < s_.num_groups; g++) {
      const CGroup& group = s_.groups[g];
      const CSpan& last = s_.spans[group.last_span - 1];
      const int end = last.row + last.num_rows;
      for (int row = s_.spans[group.first_span].row; row < end; row += max_rows) {
        const int last_row = std::min(end, row + max_rows);
        items_.push_back({g, span_of_[row], span_of_[last_row - 1] + 1, row, last_row});
      }
    }
  }

  // Lists the keys and values that attention reads in a layer, as pieces to prefetch, and counts
  // the calls among which `ahead_in_cache` distributes them.
  void plan_cache() {
    const long block = 2L * m_.num_kv_heads * kBlock * m_.head_dim;
    const long page = block / kBlock * s_.page_size;
    for (int g = 0; g < s_.num_groups; g++) {
      const CGroup& group = s_.groups[g];
      const T* prefix = static_cast<const T*>(group.prefix);
      for (int b = 0; prefix && b < group.num_slots / kBlock; b++)
        cache_.push_back({prefix + b * block, block * (group.num_slots / kBlock), block});
    }
    for (int i = 0; i < s_.num_spans; i++) {
      const CSpan& span = s_.spans[i];
      for (int p = 0; p * s_.page_size < span.start + span.num_rows; p++) {
        const T* pool = static_cast<const T*>(s_.pool);
        cache_.push_back({pool + s_.pages[span.first_page + p] * m_.num_layers * page, page, page});
      }
    }
    num_strips_ = (s_.num_rows + kStripRows - 1) / kStripRows;
    const CLayer& l = m_.layers[0];
    num_calls_ = num_calls(l.out) + num_calls(l.gate_up) + num_calls(l.down) + num_calls(l.qkv);
    share_ = cache_.empty() ? 1 : std::clamp(num_calls_ / int(cache_.size()), 1, kMaxShare);
  }

  // The memory that call number `call` since the last attention prefetches for the attention of
  // `layer`. The last piece falls to the last call, so that all arrive in time but not too early.
  Ahead ahead_in_cache(int layer, int call) const {
    const int at = call - (num_calls_ - int(cache_.size()) * share_);
    const int i = at / share_;
    if (at < 0 || i >= int(cache_.size()) || layer >= m_.num_layers) return kNothing;
    const Piece<T>& piece = cache_[i];
    const Ahead whole{reinterpret_cast<const char*>(piece.data + layer * piece.stride),
                      piece.size * long(sizeof(T))};
    return whole.part(at % share_, share_);
  }

  int num_calls(const CWeight& w) const { return weight(w).num_chunks() * num_strips_; }

  static Weight<T> weight(const CWeight& w) { return {w.data, w.bias, w.scales, w.n, w.k}; }

  // One phase: x times the weight `c`. `next_c` is the matrix that is needed next. `first_call` is
  // the number of this product's first call since the last attention, and `attends` the layer of
  // the next attention, for `ahead_in_cache`.
  template <class Finish>
  void linear(const T* x, int ldx, const CWeight& c, const CWeight& next_c, int attends,
              int first_call, const Finish& finish) {
    const Weight<T> w = weight(c), next = weight(next_c);
    team_.share(w.num_chunks(), [&](int i) {
      const auto cache = [&](int strip) {
        return ahead_in_cache(attends, first_call + i * num_strips_ + strip);
      };
      multiply(x, ldx, s_.num_rows, w, i, ahead_of(i, team_.size(), w, next), cache, finish);
    });
  }

  void layer(int i, const CLayer& l, const CLayer& next) {
    const int gate_call = num_calls(l.out), down_call = gate_call + num_calls(l.gate_up);
    norm(l.input_norm);
    linear(input_.data(), wide_, l.qkv, l.out, i, down_call + num_calls(l.down),
           [&](int row, int col, Floats x) { store(heads_.data() + long(row) * qkv_ + col, x); });
    team_.share(s_.num_rows, [&](int row) { rotate(i, l, row); });
    team_.share(int(items_.size()) * m_.num_kv_heads, [&](int n) {
      attend_item(i, l.window, items_[n / m_.num_kv_heads], n % m_.num_kv_heads);
    });
    linear(input_.data(), wide_, l.out, l.gate_up, i + 1, 0,
           [&](int row, int col, Floats x) { add(row, col, x); });
    norm(l.post_norm);
    gate(l.gate_up, l.down, i + 1, gate_call);
    linear(gated_.data(), inner_, l.down, next.qkv, i + 1, down_call,
           [&](int row, int col, Floats x) { add(row, col, x); });
  }

  void add(int row, int col, Floats x) {
    T* at = hidden_.data() + long(row) * m_.hidden_size + col;
    store(at, load(at) + x);
  }

  void norm(const float* weight) {
    team_.share(s_.num_rows, [&](int row) {
      const T* from = hidden_.data() + long(row) * m_.hidden_size;
      normalize(from, weight, m_.hidden_size, input_.data() + long(row) * wide_);
    });
  }

  void normalize(const T* from, const float* weight, int n, T* to) const {
    Floats squares = {};
    for (int i = 0; i < n; i += kLanes) {
      Floats x = load(from + i);
      squares += x * x;
    }
    const float scale = 1.0f / __builtin_sqrtf(sum(squares) / n + m_.norm_eps);
    for (int i = 0; i < n; i += kLanes) store(to + i, load(from + i) * scale * load(weight + i));
  }

  // SiLU(gate) * up. A chunk of 32 columns is 16 of gate, then the same 16 of up.
  void gate(const CWeight& c, const CWeight& next, int attends, int first_call) {
    Floats gate = {};
    linear(input_.data(), wide_, c, next, attends, first_call, [&](int row, int col, Floats x) {
      if (col % kTileCols == 0) {
        gate = x / (exp(Floats{} - x) + 1.0f);
      } else {
        store(gated_.data() + long(row) * inner_ + col / 2 - kLanes / 2, gate * x);
      }
    });
  }

  // Norms (if the model has them) and rotary embedding of a row's queries and keys; then its keys
  // and values are written to the pool.
  void rotate(int layer, const CLayer& l, int row) {
    const int d = m_.head_dim;
    T* heads = heads_.data() + long(row) * qkv_;
    const T* cos = static_cast<const T*>(s_.cos) + long(row) * d;
    const T* sin = static_cast<const T*>(s_.sin) + long(row) * d;
    for (int h = 0; h < m_.num_heads + m_.num_kv_heads; h++) {
      const float* w = h < m_.num_heads ? l.query_norm : l.key_norm;
      if (w) normalize(heads + h * d, w, d, heads + h * d);
      rotate_head(heads + h * d, cos, sin);
    }
    const CSpan& span = s_.spans[span_of_[row]];
    const int token = span.start + row - span.row;
    const T* keys = heads + m_.num_heads * d;
    const T* values = keys + m_.num_kv_heads * d;
    for (int h = 0; h < m_.num_kv_heads; h++) {
      T* k = own(span, layer, 0, h, token / kBlock);
      T* v = own(span, layer, 1, h, token / kBlock);
      write_key(k, token % kBlock, keys + h * d, d);
      write_value(v, token % kBlock, values + h * d, d);
      if (row == span.row + span.num_rows - 1 && token / kBlock * kBlock >= span.start)
        clear_after(v, token % kBlock);
    }
  }

  // Zeroes the values after `token` in a block that its sequence has just started. They have weight
  // 0, but an earlier sequence may have left infinity there, and 0 * infinity is NaN.
  void clear_after(T* values, int token) const {
    for (int t = token + 1; t < kBlock; t++)
      for (int j = 0; j < m_.head_dim; j++) values[value_slot<T>(t, j, m_.head_dim)] = T{};
  }

  void rotate_head(T* x, const T* cos, const T* sin) const {
    const int half = m_.head_dim / 2;
    int i = 0;
    for (; i + kLanes <= half; i += kLanes) {
      const Floats a = load(x + i), b = load(x + i + half);
      store(x + i, a * load(cos + i) - b * load(sin + i));
      store(x + i + half, b * load(cos + i + half) + a * load(sin + i + half));
    }
    for (; i < half; i++) {
      const float a = to_float(x[i]), b = to_float(x[i + half]);
      from_float(x[i], a * to_float(cos[i]) - b * to_float(sin[i]));
      from_float(x[i + half], b * to_float(cos[i + half]) + a * to_float(sin[i + half]));
    }
  }

  // Address of a block of a sequence's own keys (kv = 0) or values (kv = 1).
  T* own(const CSpan& span, int layer, int kv, int head, int block) const {
    const int per_page = s_.page_size / kBlock;
    const long page = s_.pages[span.first_page + block / per_page];
    const long index = ((page * m_.num_layers + layer) * 2 + kv) * m_.num_kv_heads + head;
    return static_cast<T*>(s_.pool) +
           (index * s_.page_size + block % per_page * kBlock) * m_.head_dim;
  }

  // Attention of an item's queries to KV head `head`, kMaxQueries at a time.
  void attend_item(int layer, int window, const Item& item, int head) {
    const CGroup& group = s_.groups[item.group];
    const int per_kv = m_.num_heads / m_.num_kv_heads;
    const int num = (item.last_row - item.row) * per_kv;
    Queries<T> qs;
    qs.head_dim = m_.head_dim;
    for (int first = 0; first < num; first += kMaxQueries) {
      qs.num = std::min(kMaxQueries, num - first);
      for (int q = 0; q < qs.num; q++) {
        const int row = item.row + (first + q) / per_kv;
        const long at = long(head * per_kv + (first + q) % per_kv) * m_.head_dim;
        qs.query[q] = heads_.data() + long(row) * qkv_ + at;
        qs.out[q] = input_.data() + long(row) * wide_ + at;
      }
      qs.clear();
      if (group.prefix) attend_prefix(qs, layer, window, group, item, head, first);
      attend_own(qs, layer, window, item, head, first);
      qs.finish();
    }
  }

  // Index of a row's token among its sequence's own tokens.
  int token_of(int row) const {
    const CSpan& span = s_.spans[span_of_[row]];
    return span.start + row - span.row;
  }

  // Queries [first, first + qs.num) of the item against the prefix, which they read together.
  void attend_prefix(Queries<T>& qs, int layer, int window, const CGroup& group, const Item& item,
                     int head, int first) const {
    const int per_kv = m_.num_heads / m_.num_kv_heads;
    for (int q = 0; q < qs.num; q++) {
      const int slot = group.num_tokens + token_of(item.row + (first + q) / per_kv);
      qs.first[q] = window ? std::clamp(slot - window + 1, 0, group.num_tokens) : 0;
      qs.last[q] = group.num_tokens;
    }
    const long size = long(group.num_slots) * m_.head_dim;
    const T* keys = static_cast<const T*>(group.prefix) +
                    (long(layer) * 2 * m_.num_kv_heads + head) * size;
    const T* values = keys + m_.num_kv_heads * size;
    attend(qs, m_.scale, [&](int b, const T*& k, const T*& v) {
      k = keys + long(b) * kBlock * m_.head_dim;
      v = values + long(b) * kBlock * m_.head_dim;
    });
  }

  // The same queries against the own keys of their sequences, one sequence after another. The
  // queries of a sequence are adjacent: they are copied to a `Queries` of their own and back.
  void attend_own(Queries<T>& all, int layer, int window, const Item& item, int head,
                  int first) const {
    const int per_kv = m_.num_heads / m_.num_kv_heads;
    for (int q = 0; q < all.num;) {
      const int s = span_of_[item.row + (first + q) / per_kv];
      const CSpan& span = s_.spans[s];
      Queries<T> qs;
      qs.head_dim = m_.head_dim;
      const int begin = q;
      for (; q < all.num && span_of_[item.row + (first + q) / per_kv] == s; q++) {
        const int i = qs.num++;
        const int token = token_of(item.row + (first + q) / per_kv);
        qs.query[i] = all.query[q];
        qs.first[i] = window ? std::max(0, token - window + 1) : 0;
        qs.last[i] = token + 1;
        qs.highest[i] = all.highest[q];
        qs.total[i] = all.total[q];
      }
      const size_t bytes = sizeof(float) * qs.num * m_.head_dim;
      memcpy(qs.sums, all.sums + begin * m_.head_dim, bytes);
      attend(qs, m_.scale, [&](int b, const T*& k, const T*& v) {
        k = own(span, layer, 0, head, b);
        v = own(span, layer, 1, head, b);
      });
      memcpy(all.sums + begin * m_.head_dim, qs.sums, bytes);
      for (int i = 0; i < qs.num; i++) {
        all.highest[begin + i] = qs.highest[i];
        all.total[begin + i] = qs.total[i];
      }
    }
  }

  Team& team_;
  const CModel& m_;
  const CStep& s_;
  int wide_, qkv_, inner_;
  std::vector<T> hidden_, input_, heads_, gated_;
  std::vector<int> span_of_;
  std::vector<Item> items_;
  std::vector<Piece<T>> cache_;
  int num_strips_ = 0, num_calls_ = 0, share_ = 1;
};

template <class T>
void linear(Team& team, const CWeight& c, const void* x, int m, void* out) {
  const Weight<T> w{c.data, c.bias, c.scales, c.n, c.k};
  T* to = static_cast<T*>(out);
  team.run([&](int) {
    enter_tiles();
    team.share(w.num_chunks(), [&](int i) {
      multiply(static_cast<const T*>(x), w.k, m, w, i, ahead_of(i, team.size(), w, w),
               [](int) { return kNothing; },
               [&](int row, int col, Floats sums) {
        store(to + long(row) * w.n + col, sums);
      });
    });
    leave_tiles();
  });
}

// Index of the highest of n values, the first of equals; -1 if one of them is NaN.
template <class T>
int64_t argmax(const T* x, int n) {
  const Ints lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const float kLowest = -std::numeric_limits<float>::infinity();
  Floats best = splat(kLowest);
  Ints places = {}, nan = {};
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const Floats value = load(x + i);
    const Ints is_higher = value > best;
    best = is_higher ? value : best;
    places = is_higher ? lane + i : places;
    nan |= value != value;
  }
  float top = kLowest;
  int64_t place = 0;
  for (int j = 0; j < kLanes; j++) {
    if (nan[j]) return -1;
    if (best[j] > top || (best[j] == top && places[j] < place)) top = best[j], place = places[j];
  }
  for (; i < n; i++) {
    const float value = to_float(x[i]);
    if (value != value) return -1;
    if (value > top) top = value, place = i;
  }
  return place;
}

template <class T>
void argmax_of_rows(Team& team, const T* x, int64_t stride, int num_rows, int n, int64_t* places) {
  team.run([&](int) {
    team.share(num_rows, [&](int row) { places[row] = argmax(x + row * stride, n); });
  });
}

}  // namespace

extern "C" {

void* foreword_team(int32_t size) { return new Team(size); }

int32_t foreword_has_bf16() {
#if defined(FOREWORD_BF16)
  return 1;
#else
  return 0;
#endif
}

void foreword_layers(void* team, int32_t is_bf16, const CModel* model, const CStep* step) {
#if defined(FOREWORD_BF16)
  if (is_bf16) return Decoder<bf16>(*static_cast<Team*>(team), *model, *step).run();
#endif
  Decoder<float>(*static_cast<Team*>(team), *model, *step).run();
}

// x: [num_rows, k], allocated for a multiple of 32 rows; out: [num_rows, n], n a multiple of 16.
void foreword_linear(void* team, int32_t is_bf16, const CWeight* weight, const void* x,
                     int32_t num_rows, void* out) {
#if defined(FOREWORD_BF16)
  if (is_bf16) return linear<bf16>(*static_cast<Team*>(team), *weight, x, num_rows, out);
#endif
  linear<float>(*static_cast<Team*>(team), *weight, x, num_rows, out);
}

// x: [num_rows, n], rows `stride` values apart; places: [num_rows].
void foreword_argmax(void* team, int32_t is_bf16, const void* x, int64_t stride, int32_t num_rows,
                      int32_t n, int64_t* places) {
  Team& threads = *static_cast<Team*>(team);
#if defined(FOREWORD_BF16)
  if (is_bf16)
    return argmax_of_rows(threads, static_cast<const bf16*>(x), stride, num_rows, n, places);
#endif
  argmax_of_rows(threads, static_cast<const float*>(x), stride, num_rows, n, places);
}
}
