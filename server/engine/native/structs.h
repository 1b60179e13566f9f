// The structs of the C interface, which structs.py declares a second time.
#pragma once

#include <cstdint>

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
