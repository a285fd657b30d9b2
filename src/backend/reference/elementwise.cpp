#include <cmath>

#include "backend/reference/ops.h"

namespace orrery::reference {
namespace {

template <typename Function>
Array map(const Array& x, Function function) {
  Array y(x.size());
  for (size_t i = 0; i < x.size(); ++i) y[i] = function(x[i]);
  return y;
}
template <typename Function>
Array map(const Array& a, const Array& b, Function function) {
  Array y(a.size());
  for (size_t i = 0; i < a.size(); ++i) y[i] = function(a[i], b[i]);
  return y;
}

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
double silu_of(double x) { return x * sigmoid(x); }
double silu_slope(double x) { return sigmoid(x) * (1 + x * (1 - sigmoid(x))); }
const double kRoot = std::sqrt(2 / M_PI);

}  // namespace

Array add(const Array& a, const Array& b) {
  return map(a, b, [](double x, double y) { return x + y; });
}
Array mul(const Array& a, const Array& b) {
  return map(a, b, [](double x, double y) { return x * y; });
}
Array scale(const Array& x, double factor) {
  return map(x, [factor](double v) { return factor * v; });
}
Array silu(const Array& x) { return map(x, silu_of); }
Array gelu(const Array& x) {
  return map(x, [](double v) { return 0.5 * v * (1 + std::tanh(kRoot * (v + 0.044715 * v * v * v))); });
}
Array silu_grad(const Array& dy, const Array& x) {
  return map(dy, x, [](double d, double v) { return d * silu_slope(v); });
}
Array gelu_grad(const Array& dy, const Array& x) {
  return map(dy, x, [](double d, double v) {
    const double t = std::tanh(kRoot * (v + 0.044715 * v * v * v));
    return d * (0.5 * (1 + t) + 0.5 * v * (1 - t * t) * kRoot * (1 + 3 * 0.044715 * v * v));
  });
}

Array swiglu(const Array& gate_up, int64_t width) {
  Array h;
  for (size_t row = 0; row < gate_up.size(); row += 2 * width)
    for (int64_t i = 0; i < width; ++i) h.push_back(silu_of(gate_up[row + i]) * gate_up[row + width + i]);
  return h;
}
Array swiglu_grad(const Array& dh, const Array& gate_up, int64_t width) {
  Array d(gate_up.size());
  for (size_t row = 0; row < gate_up.size(); row += 2 * width)
    for (int64_t i = 0; i < width; ++i) {
      const double gate = gate_up[row + i], up = gate_up[row + width + i], dout = dh[row / 2 + i];
      d[row + i] = dout * up * silu_slope(gate);
      d[row + width + i] = dout * silu_of(gate);
    }
  return d;
}

Array gather_rows(const Array& x, const Ids& ids, int64_t width) {
  Array y;
  for (int32_t id : ids) y.insert(y.end(), x.begin() + id * width, x.begin() + (id + 1) * width);
  return y;
}
Array embedding_grad(const Array& dy, const Ids& ids, int64_t height, int64_t width) {
  Array dtable(height * width, 0.0);
  for (size_t row = 0; row < ids.size(); ++row)
    for (int64_t i = 0; i < width; ++i) dtable[ids[row] * width + i] += dy[row * width + i];
  return dtable;
}
std::vector<Array> split(const Array& x, const std::vector<int64_t>& widths) {
  std::vector<Array> parts(widths.size());
  for (size_t position = 0; position < x.size();)
    for (size_t part = 0; part < widths.size(); ++part)
      for (int64_t i = 0; i < widths[part]; ++i) parts[part].push_back(x[position++]);
  return parts;
}
Array concat(const std::vector<Array>& parts, const std::vector<int64_t>& widths) {
  Array y;
  const size_t num_rows = parts[0].size() / widths[0];
  for (size_t row = 0; row < num_rows; ++row)
    for (size_t part = 0; part < parts.size(); ++part)
      for (int64_t i = 0; i < widths[part]; ++i) y.push_back(parts[part][row * widths[part] + i]);
  return y;
}
Array bias_grad(const Array& dy, int64_t width) {
  Array sums(width, 0.0);
  for (size_t i = 0; i < dy.size(); ++i) sums[i % width] += dy[i];
  return sums;
}

Array rope(const Array& x, const Ids& positions, const Array& table, int64_t num_heads, int64_t head_dim, int64_t rotary_dim,
           int direction) {
  Array y = x;
  const int64_t half = rotary_dim / 2;
  for (size_t row = 0; row < positions.size(); ++row)
    for (int64_t head = 0; head < num_heads; ++head)
      for (int64_t i = 0; i < half; ++i) {
        const size_t a = (row * num_heads + head) * head_dim + i, b = a + half;
        const double c = table[(positions[row] * half + i) * 2], s = direction * table[(positions[row] * half + i) * 2 + 1];
        y[a] = x[a] * c - x[b] * s;
        y[b] = x[b] * c + x[a] * s;
      }
  return y;
}

}  // namespace orrery::reference
