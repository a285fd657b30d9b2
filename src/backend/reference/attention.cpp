// Legend  T tokens, N query heads, K kv heads, G = N / K, H head_dim, S sequences.
#include <algorithm>
#include <cmath>
#include <limits>

#include "backend/reference/ops.h"

namespace orrery::reference {
namespace {

// softmax over keys [first, t] of scale * q . k, for one query; also its log-sum-exp.
struct Row {
  Array p;
  double lse = 0;
};
template <typename KeyAt>
Row softmax_row(const double* q, int64_t first, int64_t t, int64_t head_dim, double scale, KeyAt key_at) {
  Row row;
  double top = -std::numeric_limits<double>::infinity();
  for (int64_t s = first; s <= t; ++s) {
    double dot = 0;
    for (int64_t i = 0; i < head_dim; ++i) dot += q[i] * key_at(s)[i];
    row.p.push_back(scale * dot);
    top = std::max(top, row.p.back());
  }
  double sum = 0;
  for (double& p : row.p) sum += p = std::exp(p - top);
  for (double& p : row.p) p /= sum;
  row.lse = top + std::log(sum);
  return row;
}

int64_t first_key(int64_t t, int64_t start, int64_t window) { return window > 0 ? std::max(start, t - window + 1) : start; }

}  // namespace

Attention attention(const Array& q, const Array& k, const Array& v, const Ids& cu_seqlens, const AttentionAttributes& a) {
  const int64_t N = a.num_heads, K = a.num_kv_heads, H = a.head_dim, T = static_cast<int64_t>(q.size()) / (N * H);
  Attention result{Array(q.size(), 0.0), Array(N * T, 0.0)};
  for (size_t segment = 0; segment + 1 < cu_seqlens.size(); ++segment)
    for (int64_t t = cu_seqlens[segment]; t < cu_seqlens[segment + 1]; ++t)
      for (int64_t n = 0; n < N; ++n) {
        const int64_t first = first_key(t, cu_seqlens[segment], a.window), head = n / (N / K);
        const Row row =
            softmax_row(&q[(t * N + n) * H], first, t, H, a.scale, [&](int64_t s) { return &k[(s * K + head) * H]; });
        for (int64_t s = first; s <= t; ++s)
          for (int64_t i = 0; i < H; ++i) result.o[(t * N + n) * H + i] += row.p[s - first] * v[(s * K + head) * H + i];
        result.lse[n * T + t] = row.lse;
      }
  return result;
}

AttentionGrad attention_grad(const Array& dout, const Array& q, const Array& k, const Array& v, const Ids& cu_seqlens,
                             const AttentionAttributes& a) {
  const int64_t N = a.num_heads, K = a.num_kv_heads, H = a.head_dim;
  AttentionGrad result{Array(q.size(), 0.0), Array(k.size(), 0.0), Array(v.size(), 0.0)};
  for (size_t segment = 0; segment + 1 < cu_seqlens.size(); ++segment)
    for (int64_t t = cu_seqlens[segment]; t < cu_seqlens[segment + 1]; ++t)
      for (int64_t n = 0; n < N; ++n) {
        const int64_t first = first_key(t, cu_seqlens[segment], a.window), head = n / (N / K), query = (t * N + n) * H;
        const Row row = softmax_row(&q[query], first, t, H, a.scale, [&](int64_t s) { return &k[(s * K + head) * H]; });
        Array dp(row.p.size(), 0.0);
        double mean = 0;
        for (int64_t s = first; s <= t; ++s) {
          for (int64_t i = 0; i < H; ++i) dp[s - first] += dout[query + i] * v[(s * K + head) * H + i];
          mean += row.p[s - first] * dp[s - first];
        }
        for (int64_t s = first; s <= t; ++s) {
          const int64_t key = (s * K + head) * H;
          const double p = row.p[s - first], dscore = p * (dp[s - first] - mean) * a.scale;
          for (int64_t i = 0; i < H; ++i) {
            result.dq[query + i] += dscore * k[key + i];
            result.dk[key + i] += dscore * q[query + i];
            result.dv[key + i] += p * dout[query + i];
          }
        }
      }
  return result;
}

Array paged_attention(const Array& q, const Array& k_cache, const Array& v_cache, const Ids& block_table,
                      const Ids& context_lens, const Ids& cu_seqlens, const AttentionAttributes& a) {
  const int64_t N = a.num_heads, K = a.num_kv_heads, H = a.head_dim, S = static_cast<int64_t>(context_lens.size());
  const int64_t max_blocks = static_cast<int64_t>(block_table.size()) / S;
  Array o(q.size(), 0.0);
  for (int64_t sequence = 0; sequence < S; ++sequence)
    for (int64_t row = cu_seqlens[sequence]; row < cu_seqlens[sequence + 1]; ++row) {
      const int64_t t = context_lens[sequence] - (cu_seqlens[sequence + 1] - row);
      const auto slot = [&](int64_t s) {
        return block_table[sequence * max_blocks + s / a.block_tokens] * a.block_tokens + s % a.block_tokens;
      };
      for (int64_t n = 0; n < N; ++n) {
        const int64_t first = first_key(t, 0, a.window), head = n / (N / K);
        const Row p = softmax_row(&q[(row * N + n) * H], first, t, H, a.scale,
                                  [&](int64_t s) { return &k_cache[(slot(s) * K + head) * H]; });
        for (int64_t s = first; s <= t; ++s)
          for (int64_t i = 0; i < H; ++i) o[(row * N + n) * H + i] += p.p[s - first] * v_cache[(slot(s) * K + head) * H + i];
      }
    }
  return o;
}

}  // namespace orrery::reference
