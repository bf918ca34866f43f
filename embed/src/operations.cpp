// The operations of a graph, each as MLX's public function of that meaning. moshi_mlx/export/operations.py has the same
// table, and a test holds the two together.
#include <algorithm>
#include <cmath>

#include "graph.hpp"

namespace moshi_mlx {

namespace {
constexpr double kMostElements = 1e9;  // of an array that is made of nothing

struct Operation {
  size_t least, most;  // arrays; most 0: any number
  size_t arguments;
  size_t outputs;  // 0: any number
  Arrays (*run)(const Node&, const Arrays&);
};

[[noreturn]] void wrong(const Node& node, const char* words) { fail(MOSHI_BAD_BUNDLE, node.op, ": ", words); }

const char* mode(const Node& node, size_t k) {
  static const char* const modes[] = {"affine", "mxfp4", "mxfp8", "nvfp4"};
  int which = node.whole(k);
  if (which < 0 || which > 3) wrong(node, "no such mode");
  return modes[which];
}

// Group size and bits, which MLX divides by.
std::pair<int, int> group(const Node& node) {
  int size = node.whole(0), bits = node.whole(1);
  if (size != 16 && size != 32 && size != 64 && size != 128) wrong(node, "no such group size");
  if (bits < 2 || bits > 8 || bits == 7) wrong(node, "no such number of bits");
  return {size, bits};
}

void check_size(const Node& node, const std::vector<int>& shape) {
  double count = 1;
  for (int n : shape) count *= n < 0 ? INFINITY : n;
  if (!(count <= kMostElements)) wrong(node, "too large");
}

std::optional<mx::array> after(const Arrays& x, size_t k) { return x.size() > k ? std::optional(x[k]) : std::nullopt; }

int axis(const Node& node, size_t k, const mx::array& x) {
  int axis = node.whole(k);
  if (axis < 0 || axis >= int(x.ndim())) wrong(node, "no such axis");
  return axis;
}

mx::array arange(const Node& node) {
  double start = node.number(0), stop = node.number(1), step = node.number(2);
  if (!(std::abs((stop - start) / step) <= kMostElements)) wrong(node, "too large");
  return mx::arange(start, stop, step, node.dtype(3));
}

mx::array bits(const Node& node, const mx::array& key) {
  check_size(node, node.list(0));
  int width = node.whole(1);
  if (key.size() != 2 || (width != 1 && width != 2 && width != 4)) wrong(node, "expected one key, and 1, 2 or 4 bytes");
  return mx::random::bits(node.shape(0), width, mx::reshape(key, {2}));
}

mx::array bitwise(const Node& node, const mx::array& a, const mx::array& b) {
  switch (node.whole(0)) {
    case 0: return mx::bitwise_and(a, b);
    case 1: return mx::bitwise_or(a, b);
    case 2: return mx::bitwise_xor(a, b);
    case 3: return mx::left_shift(a, b);
    case 4: return mx::right_shift(a, b);
    default: wrong(node, "no such operation on bits");
  }
}

mx::array reduce(const Node& node, const mx::array& x) {
  auto& axes = node.list(1);
  switch (node.whole(0)) {
    case 0: return mx::all(x, axes, true);
    case 1: return mx::any(x, axes, true);
    case 2: return mx::sum(x, axes, true);
    case 3: return mx::prod(x, axes, true);
    case 4: return mx::min(x, axes, true);
    case 5: return mx::max(x, axes, true);
    default: wrong(node, "no such reduction");
  }
}

mx::array scan(const Node& node, const mx::array& x) {
  int along = axis(node, 1, x);
  bool reverse = node.whole(2), inclusive = node.whole(3);
  switch (node.whole(0)) {
    case 0: return mx::cummax(x, along, reverse, inclusive);
    case 1: return mx::cummin(x, along, reverse, inclusive);
    case 2: return mx::cumsum(x, along, reverse, inclusive);
    case 3: return mx::cumprod(x, along, reverse, inclusive);
    case 4: return mx::logcumsumexp(x, along, reverse, inclusive);
    default: wrong(node, "no such scan");
  }
}

mx::array log(const Node& node, const mx::array& x) {
  switch (node.whole(0)) {
    case 0: return mx::log2(x);
    case 1: return mx::log10(x);
    case 2: return mx::log(x);
    default: wrong(node, "no such base");
  }
}

void check_slice(const Node& node, size_t k, const mx::array& x) {
  for (size_t i = k; i < k + 3; i++)
    if (node.list(i).size() != x.ndim()) wrong(node, "expected as many numbers as axes");
  for (int step : node.list(k + 2))
    if (step == 0) wrong(node, "a step of 0");
}

mx::array slice(const Node& node, const mx::array& x) {
  check_slice(node, 0, x);
  return mx::slice(x, node.shape(0), node.shape(1), node.shape(2));
}

mx::array slice_update(const Node& node, const mx::array& x, const mx::array& update) {
  check_slice(node, 1, x);
  if (node.whole(0) != 4) wrong(node, "only in place of what is there");
  return mx::slice_update(x, update, node.shape(1), node.shape(2), node.shape(3));
}

Arrays split(const Node& node, const mx::array& x) {
  int along = axis(node, 1, x), before = 0;
  for (int end : node.list(0)) {
    if (end < before || end > x.shape(along)) wrong(node, "parts out of order");
    before = end;
  }
  return mx::split(x, node.shape(0), along);
}

mx::array gather(const Node& node, const Arrays& x) {
  auto &axes = node.list(0), &sizes = node.list(1);
  if (axes.size() != x.size() - 1 || sizes.size() != x[0].ndim()) wrong(node, "expected an index for each axis");
  return mx::gather(x[0], Arrays(x.begin() + 1, x.end()), axes, node.shape(1));
}

mx::array scatter_axis(const Node& node, const Arrays& x) {
  if (node.whole(0) != 1) wrong(node, "only in place of what is there");
  return mx::put_along_axis(x[0], x[1], x[2], axis(node, 1, x[0]));
}

mx::array pad(const Node& node, const Arrays& x) {
  auto &axes = node.list(0), &before = node.list(1), &behind = node.list(2);
  if (axes.size() != before.size() || axes.size() != behind.size()) wrong(node, "expected as many numbers as axes");
  for (size_t i = 0; i < axes.size(); i++)
    if (axes[i] < 0 || axes[i] >= int(x[0].ndim()) || before[i] < 0 || behind[i] < 0) wrong(node, "no such padding");
  return mx::pad(x[0], axes, node.shape(1), node.shape(2), x[1]);
}

mx::array convolution(const Node& n, const mx::array& x, const mx::array& w) {
  if (n.whole(5) < 1) wrong(n, "no groups");
  return mx::conv_general(x, w, n.list(0), n.list(1), n.list(2), n.list(3), n.list(4), n.whole(5), bool(n.whole(6)));
}

mx::array softmax(const Node& node, const mx::array& x) {
  return mx::softmax(x, std::vector<int>{-1}, bool(node.whole(0)));
}

mx::array quantized_matmul(const Node& node, const Arrays& x) {
  auto [size, bits] = group(node);
  return mx::quantized_matmul(x[0], x[1], x[2], after(x, 3), bool(node.whole(3)), size, bits, mode(node, 2));
}

Arrays quantize(const Node& node, const mx::array& x) {
  auto [size, bits] = group(node);
  return mx::quantize(x, size, bits, mode(node, 2));
}

mx::array dequantize(const Node& node, const Arrays& x) {
  auto [size, bits] = group(node);
  return mx::dequantize(x[0], x[1], after(x, 2), size, bits, mode(node, 2), std::nullopt, node.dtype(3));
}

mx::array rope(const Node& n, const Arrays& x) {
  return mx::fast::rope(x[0], n.whole(0), bool(n.whole(1)), float(n.number(2)), float(n.number(3)), x[1]);
}

mx::array attention(const Node& node, const Arrays& x) {
  return mx::fast::scaled_dot_product_attention(x[0], x[1], x[2], float(node.number(0)), x.size() > 3 ? "array" : "",
                                                after(x, 3));
}

#define RUN(expression) [](const Node& n, const Arrays& x) -> Arrays { (void)n, (void)x; return {expression}; }
#define MANY(expression) [](const Node& n, const Arrays& x) -> Arrays { return expression; }
#define UNARY(function) {1, 1, 0, 1, RUN(mx::function(x[0]))}
#define BINARY(function) {2, 2, 0, 1, RUN(mx::function(x[0], x[1]))}
#define SAME {1, 1, 0, 1, RUN(x[0])}

// Arrays at least and at most, arguments, results. A name is one of MLX's primitives, or one that tracing.py marks.
const std::map<std::string, Operation>& operations() {
  static const std::map<std::string, Operation> all{
      {"Abs", UNARY(abs)},
      {"Add", BINARY(add)},
      {"AddMM", {3, 3, 2, 1, RUN(mx::addmm(x[2], x[0], x[1], float(n.number(0)), float(n.number(1))))}},
      {"Arange", {0, 0, 4, 1, RUN(arange(n))}},
      {"ArgPartition", {1, 1, 2, 1, RUN(mx::argpartition(x[0], n.whole(0), axis(n, 1, x[0])))}},
      {"ArgReduce",
       {1, 1, 2, 1, RUN(n.whole(0) ? mx::argmax(x[0], axis(n, 1, x[0]), true) : mx::argmin(x[0], axis(n, 1, x[0]), true))}},
      {"ArgSort", {1, 1, 1, 1, RUN(mx::argsort(x[0], axis(n, 0, x[0])))}},
      {"AsType", {1, 1, 1, 1, RUN(mx::astype(x[0], n.dtype(0)))}},
      {"Attention", {3, 4, 1, 1, RUN(attention(n, x))}},
      {"BitwiseBinary", {2, 2, 1, 1, RUN(bitwise(n, x[0], x[1]))}},
      {"Broadcast", {1, 1, 1, 1, RUN((check_size(n, n.list(0)), mx::broadcast_to(x[0], n.shape(0))))}},
      {"Ceil", UNARY(ceil)},
      {"Choose", {1, 1, 1, 1, nullptr}},
      {"Concatenate", {1, 0, 1, 1, RUN(mx::concatenate(x, axis(n, 0, x[0])))}},
      {"Contiguous", SAME},
      {"Convolution", {2, 2, 7, 1, RUN(convolution(n, x[0], x[1]))}},
      {"Copy", SAME},
      {"Cos", UNARY(cos)},
      {"Dequantize", {2, 3, 4, 1, RUN(dequantize(n, x))}},
      {"Divide", BINARY(divide)},
      {"Equal", {2, 2, 1, 1, RUN(mx::equal(x[0], x[1]))}},
      {"Erf", UNARY(erf)},
      {"ErfInv", UNARY(erfinv)},
      {"Exp", UNARY(exp)},
      {"ExpandDims", {1, 1, 1, 1, RUN(mx::expand_dims(x[0], n.list(0)))}},
      {"Expm1", UNARY(expm1)},
      {"Flatten", {1, 1, 2, 1, RUN(mx::flatten(x[0], n.whole(0), n.whole(1)))}},
      {"Floor", UNARY(floor)},
      {"FloorDivide", BINARY(floor_divide)},
      {"Full", SAME},
      {"Gather", {1, 0, 2, 1, RUN(gather(n, x))}},
      {"GatherAxis", {2, 2, 1, 1, RUN(mx::take_along_axis(x[0], x[1], axis(n, 0, x[0])))}},
      {"Greater", BINARY(greater)},
      {"GreaterEqual", BINARY(greater_equal)},
      {"LayerNorm", {3, 3, 1, 1, RUN(mx::fast::layer_norm(x[0], x[1], x[2], float(n.number(0))))}},
      {"Less", BINARY(less)},
      {"LessEqual", BINARY(less_equal)},
      {"Log", {1, 1, 1, 1, RUN(log(n, x[0]))}},
      {"Log1p", UNARY(log1p)},
      {"LogAddExp", BINARY(logaddexp)},
      {"LogSumExp", {1, 1, 0, 1, RUN(mx::logsumexp(x[0], std::vector<int>{-1}, true))}},
      {"LogicalAnd", BINARY(logical_and)},
      {"LogicalNot", UNARY(logical_not)},
      {"LogicalOr", BINARY(logical_or)},
      {"Matmul", BINARY(matmul)},
      {"Maximum", BINARY(maximum)},
      {"Minimum", BINARY(minimum)},
      {"Multiply", BINARY(multiply)},
      {"Negative", UNARY(negative)},
      {"NotEqual", BINARY(not_equal)},
      {"Pad", {2, 2, 3, 1, RUN(pad(n, x))}},
      {"Partition", {1, 1, 2, 1, RUN(mx::partition(x[0], n.whole(0), axis(n, 1, x[0])))}},
      {"Power", BINARY(power)},
      {"Quantize", {1, 1, 4, 0, MANY(quantize(n, x[0]))}},
      {"QuantizedMatmul", {3, 4, 4, 1, RUN(quantized_matmul(n, x))}},
      {"RMSNorm", {2, 2, 1, 1, RUN(mx::fast::rms_norm(x[0], x[1], float(n.number(0))))}},
      {"RandomBits", {1, 1, 2, 1, RUN(bits(n, x[0]))}},
      {"Reduce", {1, 1, 2, 1, RUN(reduce(n, x[0]))}},
      {"Remainder", BINARY(remainder)},
      {"Reshape", {1, 1, 1, 1, RUN(mx::reshape(x[0], n.shape(0)))}},
      {"RoPE", {2, 2, 4, 1, RUN(rope(n, x))}},
      {"Round", UNARY(round)},
      {"Scan", {1, 1, 4, 1, RUN(scan(n, x[0]))}},
      {"ScatterAxis", {3, 3, 2, 1, RUN(scatter_axis(n, x))}},
      {"Select", {3, 3, 0, 1, RUN(mx::where(x[0], x[1], x[2]))}},
      {"Sigmoid", UNARY(sigmoid)},
      {"Sign", UNARY(sign)},
      {"Sin", UNARY(sin)},
      {"Slice", {1, 1, 3, 1, RUN(slice(n, x[0]))}},
      {"SliceUpdate", {2, 2, 4, 1, RUN(slice_update(n, x[0], x[1]))}},
      {"Softmax", {1, 1, 1, 1, RUN(softmax(n, x[0]))}},
      {"Sort", {1, 1, 1, 1, RUN(mx::sort(x[0], axis(n, 0, x[0])))}},
      {"Split", {1, 1, 2, 0, MANY(split(n, x[0]))}},
      {"Sqrt", {1, 1, 1, 1, RUN(n.whole(0) ? mx::rsqrt(x[0]) : mx::sqrt(x[0]))}},
      {"Square", UNARY(square)},
      {"Squeeze", {1, 1, 1, 1, RUN(mx::squeeze(x[0], n.list(0)))}},
      {"StopGradient", SAME},
      {"Subtract", BINARY(subtract)},
      {"Tan", UNARY(tan)},
      {"Tanh", UNARY(tanh)},
      {"Transpose", {1, 1, 1, 1, RUN(mx::transpose(x[0], n.list(0)))}},
      {"Unflatten", {1, 1, 2, 1, RUN(mx::unflatten(x[0], axis(n, 0, x[0]), n.shape(1)))}},
      {"View", {1, 1, 1, 1, RUN(mx::view(x[0], n.dtype(0)))}},
  };
  return all;
}
}  // namespace

bool takes(const Node& node) {
  auto found = operations().find(node.op);
  if (found == operations().end()) return false;
  auto& op = found->second;
  size_t given = node.inputs.size();
  return given >= op.least && (op.most == 0 || given <= op.most) && node.arguments.size() == op.arguments &&
         (op.outputs == 0 || op.outputs == node.outputs.size());
}

Arrays run_operation(const Node& node, const Arrays& inputs) {
  return operations().at(node.op).run(node, inputs);
}

}  // namespace moshi_mlx
