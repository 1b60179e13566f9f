// The decoder layers: RMSNorm, attention over prefix and own keys with rotary embeddings, an MLP
// gated by SiLU. Each is a sequence of phases, which the threads of a team compute together.
#pragma once

#include <algorithm>
#include <vector>

#include "attention.h"
#include "gemm.h"
#include "prefetch.h"
#include "structs.h"
#include "team.h"

namespace foreword {
namespace {  // one translation unit: with internal linkage the compiler inlines as in a .cpp

// Rows of one group whose queries are computed together, for one KV head at a time.
struct Item {
  int group, span, last_span;  // spans [span, last_span)
  int row, last_row;
};

template <class T>
class Decoder {
 public:
  Decoder(Team& team, const CModel& model, const CStep& step)
      : team_(team),
        m_(model),
        s_(step),
        num_strips_((step.num_rows + kStripRows - 1) / kStripRows),
        kv_prefetch_(model, step, num_calls(model.layers[0])) {
    const int rows = round_up(s_.num_rows, kTileRows);
    input_stride_ = round_up(std::max(m_.hidden_size, m_.num_heads * m_.head_dim), 32);
    heads_stride_ = (m_.num_heads + 2 * m_.num_kv_heads) * m_.head_dim;
    gated_stride_ = round_up(m_.intermediate_size, 32);
    hidden_.resize(size_t(rows) * m_.hidden_size);
    input_.resize(size_t(rows) * input_stride_);
    heads_.resize(size_t(rows) * heads_stride_);
    gated_.resize(size_t(rows) * gated_stride_);
    span_of_.resize(s_.num_rows);
    for (int i = 0; i < s_.num_spans; i++)
      std::fill_n(span_of_.begin() + s_.spans[i].row, s_.spans[i].num_rows, i);
    plan();
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

  // Calls of `multiply_rows` or `multiply_tiles` in a product.
  int num_calls(const CWeight& w) const { return weight(w).num_chunks() * num_strips_; }

  int num_calls(const CLayer& l) const {
    return num_calls(l.out) + num_calls(l.gate_up) + num_calls(l.down) + num_calls(l.qkv);
  }

  static Weight<T> weight(const CWeight& w) { return {w.data, w.bias, w.scales, w.n, w.k}; }

  // One phase: x times the weight `c`. `next_c` is the matrix that is needed next. `first_call` is
  // the number of this product's first call since the last attention, and `next_layer` the layer of
  // the next attention, for `KvPrefetch`.
  template <class Finish>
  void linear(const T* x, int ldx, const CWeight& c, const CWeight& next_c, int next_layer,
              int first_call, const Finish& finish) {
    const Weight<T> w = weight(c), next = weight(next_c);
    team_.share(w.num_chunks(), [&](int i) {
      const auto kv = [&](int strip) {
        return kv_prefetch_.at(next_layer, first_call + i * num_strips_ + strip);
      };
      multiply(x, ldx, s_.num_rows, w, i, likely_next(i, team_.size(), w, next), kv, finish);
    });
  }

  void layer(int i, const CLayer& l, const CLayer& next) {
    const int gate_call = num_calls(l.out), down_call = gate_call + num_calls(l.gate_up);
    norm(l.input_norm);
    linear(input_.data(), input_stride_, l.qkv, l.out, i, down_call + num_calls(l.down),
           [&](int row, int col, Floats x) { store(heads_row(row) + col, x); });
    team_.share(s_.num_rows, [&](int row) { rotate(i, l, row); });
    team_.share(int(items_.size()) * m_.num_kv_heads, [&](int n) {
      attend_item(i, l.window, items_[n / m_.num_kv_heads], n % m_.num_kv_heads);
    });
    linear(input_.data(), input_stride_, l.out, l.gate_up, i + 1, 0,
           [&](int row, int col, Floats x) { add(row, col, x); });
    norm(l.post_norm);
    gate(l.gate_up, l.down, i + 1, gate_call);
    linear(gated_.data(), gated_stride_, l.down, next.qkv, i + 1, down_call,
           [&](int row, int col, Floats x) { add(row, col, x); });
  }

  void add(int row, int col, Floats x) {
    T* at = hidden_.data() + long(row) * m_.hidden_size + col;
    store(at, load(at) + x);
  }

  void norm(const float* weight) {
    team_.share(s_.num_rows, [&](int row) {
      const T* from = hidden_.data() + long(row) * m_.hidden_size;
      normalize(from, weight, m_.hidden_size, input_.data() + long(row) * input_stride_);
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
  void gate(const CWeight& c, const CWeight& next, int next_layer, int first_call) {
    Floats gate = {};
    const auto finish = [&](int row, int col, Floats x) {
      if (col % kTileCols == 0) {
        gate = x / (exp(Floats{} - x) + 1.0f);
      } else {
        store(gated_.data() + long(row) * gated_stride_ + col / 2 - kLanes / 2, gate * x);
      }
    };
    linear(input_.data(), input_stride_, c, next, next_layer, first_call, finish);
  }

  // Norms (if the model has them) and rotary embedding of a row's queries and keys; then its keys
  // and values are written to the pool.
  void rotate(int layer, const CLayer& l, int row) {
    const int d = m_.head_dim;
    T* heads = heads_row(row);
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
        qs.query[q] = heads_row(row) + at;
        qs.out[q] = input_.data() + long(row) * input_stride_ + at;
      }
      qs.clear();
      if (group.prefix) attend_prefix(qs, layer, window, group, item, head, first);
      attend_own(qs, layer, window, item, head, first);
      qs.finish();
    }
  }

  // The queries, keys and values of a row.
  T* heads_row(int row) { return heads_.data() + long(row) * heads_stride_; }

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
  const int num_strips_;
  const KvPrefetch<T> kv_prefetch_;
  int input_stride_, heads_stride_, gated_stride_;
  std::vector<T> hidden_, input_, heads_, gated_;
  std::vector<int> span_of_;
  std::vector<Item> items_;
};

}  // namespace
}  // namespace foreword
