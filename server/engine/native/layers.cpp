// The C interface of the compiled code: all layers of a decoder, a linear layer, argmax. The Python
// side is layers.py, linear.py and team.py.

#include <limits>

#include "decoder.h"
#include "gemm.h"
#include "structs.h"
#include "team.h"

using namespace foreword;

namespace {

template <class T>
void linear(Team& team, const CWeight& c, const void* x, int m, void* out) {
  const Weight<T> w{c.data, c.bias, c.scales, c.n, c.k};
  T* to = static_cast<T*>(out);
  team.run([&](int) {
    enter_tiles();
    team.share(w.num_chunks(), [&](int i) {
      multiply(static_cast<const T*>(x), w.k, m, w, i, likely_next(i, team.size(), w, w),
               [](int) { return kNoPrefetch; },
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
