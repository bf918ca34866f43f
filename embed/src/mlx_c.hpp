// The part of MLX's C++ interface that this library uses, over mlx-c: what mlx-swift gives to other packages.
#pragma once
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <vector>

#include "mlx/c/mlx.h"

namespace moshi_mlx::mlxc {

using Shape = std::vector<int>;
using Dtype = mlx_dtype;
constexpr Dtype bool_ = MLX_BOOL, uint8 = MLX_UINT8, uint16 = MLX_UINT16, uint32 = MLX_UINT32, uint64 = MLX_UINT64,
                int8 = MLX_INT8, int16 = MLX_INT16, int32 = MLX_INT32, int64 = MLX_INT64, float16 = MLX_FLOAT16,
                float32 = MLX_FLOAT32, bfloat16 = MLX_BFLOAT16;

inline thread_local std::string error_text;

inline void check(int failed) {
  if (failed) throw std::runtime_error(error_text.empty() ? "MLX failed" : std::exchange(error_text, {}));
}

// mlx-c's own handler ends the process. mlx-swift installs one of its own, which must stay: its withError, around every
// call from Swift, has the words then.
inline void take_errors() {
#ifndef MOSHI_MLX_SWIFT
  static std::once_flag once;
  std::call_once(once, [] {
    mlx_set_error_handler([](const char* words, void*) { error_text = words; }, nullptr, nullptr);
  });
#endif
}

// mlx-c wants the stream named: this thread's default one of the default device.
inline mlx_stream here() {
  struct Held {
    mlx_stream stream = mlx_stream_new();
    Held() {
      mlx_device device = mlx_device_new();
      mlx_get_default_device(&device);
      mlx_get_default_stream(&stream, device);
      mlx_device_free(device);
    }
    ~Held() { mlx_stream_free(stream); }
  };
  thread_local Held held;
  return held.stream;
}

class array {
 public:
  mlx_array c;

  array() : c(mlx_array_new()) {}
  array(const array& other) : c(mlx_array_new()) { mlx_array_set(&c, other.c); }
  array(array&& other) noexcept : c(std::exchange(other.c, mlx_array{nullptr})) {}
  array& operator=(array other) noexcept {
    std::swap(c, other.c);
    return *this;
  }
  ~array() {
    if (c.ctx) mlx_array_free(c);
  }
  template <class T>
  array(const T* data, const Shape& shape) : c(mlx_array_new_data(data, shape.data(), int(shape.size()), type_of<T>())) {}

  size_t ndim() const { return mlx_array_ndim(c); }
  size_t size() const { return mlx_array_size(c); }
  size_t nbytes() const { return mlx_array_nbytes(c); }
  Dtype dtype() const { return mlx_array_dtype(c); }
  int shape(int axis) const { return mlx_array_dim(c, axis); }
  Shape shape() const { return Shape(mlx_array_shape(c), mlx_array_shape(c) + ndim()); }
  void eval() const { check(mlx_array_eval(c)); }

  template <class T>
  const T* data() const {
    if constexpr (std::is_same_v<T, float>) return mlx_array_data_float32(c);
    else if constexpr (std::is_same_v<T, int>) return mlx_array_data_int32(c);
    else return mlx_array_data_uint8(c);
  }
  template <class T>
  T item() const {
    T value{};
    if constexpr (std::is_same_v<T, bool>) check(mlx_array_item_bool(&value, c));
    else check(mlx_array_item_int32(&value, c));
    return value;
  }

 private:
  template <class T>
  static Dtype type_of() {
    if constexpr (std::is_same_v<T, float>) return MLX_FLOAT32;
    else if constexpr (std::is_same_v<T, int>) return MLX_INT32;
    else if constexpr (std::is_same_v<T, uint32_t>) return MLX_UINT32;
    else return MLX_UINT8;
  }
};

using Arrays = std::vector<array>;

struct Vector {
  mlx_vector_array v = mlx_vector_array_new();
  Vector() = default;
  explicit Vector(const Arrays& all) {
    for (auto& one : all) mlx_vector_array_append_value(v, one.c);
  }
  Vector(const Vector&) = delete;
  ~Vector() { mlx_vector_array_free(v); }
  static Arrays arrays(mlx_vector_array v) {
    Arrays out;
    for (size_t i = 0; i < mlx_vector_array_size(v); i++) {
      out.emplace_back();
      mlx_vector_array_get(&out.back().c, v, i);
    }
    return out;
  }
  Arrays arrays() const { return arrays(v); }
};

#define MLXC(name, parameters, ...) \
  inline array name parameters {    \
    array r;                        \
    check(mlx_##__VA_ARGS__);       \
    return r;                       \
  }
#define MLXC_UNARY(name) MLXC(name, (const array& a), name(&r.c, a.c, here()))
#define MLXC_BINARY(name) MLXC(name, (const array& a, const array& b), name(&r.c, a.c, b.c, here()))
#define MLXC_REDUCE(name) \
  MLXC(name, (const array& a, const Shape& s, bool keep), name##_axes(&r.c, a.c, s.data(), s.size(), keep, here()))
#define MLXC_SCAN(name) \
  MLXC(name, (const array& a, int axis, bool reverse, bool inclusive), name(&r.c, a.c, axis, reverse, inclusive, here()))
#define MLXC_LIST(s) s.data(), s.size()

MLXC_UNARY(abs) MLXC_UNARY(ceil) MLXC_UNARY(cos) MLXC_UNARY(erf) MLXC_UNARY(erfinv) MLXC_UNARY(exp) MLXC_UNARY(expm1)
MLXC_UNARY(floor) MLXC_UNARY(log) MLXC_UNARY(log10) MLXC_UNARY(log1p) MLXC_UNARY(log2) MLXC_UNARY(logical_not)
MLXC_UNARY(negative) MLXC_UNARY(rsqrt) MLXC_UNARY(sigmoid) MLXC_UNARY(sign) MLXC_UNARY(sin) MLXC_UNARY(sqrt)
MLXC_UNARY(square) MLXC_UNARY(tan) MLXC_UNARY(tanh)
MLXC_BINARY(add) MLXC_BINARY(bitwise_and) MLXC_BINARY(bitwise_or) MLXC_BINARY(bitwise_xor) MLXC_BINARY(divide)
MLXC_BINARY(equal) MLXC_BINARY(floor_divide) MLXC_BINARY(greater) MLXC_BINARY(greater_equal) MLXC_BINARY(left_shift)
MLXC_BINARY(less) MLXC_BINARY(less_equal) MLXC_BINARY(logaddexp) MLXC_BINARY(logical_and) MLXC_BINARY(logical_or)
MLXC_BINARY(matmul) MLXC_BINARY(maximum) MLXC_BINARY(minimum) MLXC_BINARY(multiply) MLXC_BINARY(not_equal)
MLXC_BINARY(power) MLXC_BINARY(remainder) MLXC_BINARY(right_shift) MLXC_BINARY(subtract)
MLXC_REDUCE(all) MLXC_REDUCE(any) MLXC_REDUCE(logsumexp) MLXC_REDUCE(max) MLXC_REDUCE(min) MLXC_REDUCE(prod) MLXC_REDUCE(sum)
MLXC_SCAN(cummax) MLXC_SCAN(cummin) MLXC_SCAN(cumprod) MLXC_SCAN(cumsum) MLXC_SCAN(logcumsumexp)
MLXC(addmm, (const array& c, const array& a, const array& b, float x, float y), addmm(&r.c, c.c, a.c, b.c, x, y, here()))
MLXC(arange, (double start, double stop, double step, Dtype t), arange(&r.c, start, stop, step, t, here()))
MLXC(argmax, (const array& a, int axis, bool keep), argmax_axis(&r.c, a.c, axis, keep, here()))
MLXC(argmin, (const array& a, int axis, bool keep), argmin_axis(&r.c, a.c, axis, keep, here()))
MLXC(argpartition, (const array& a, int kth, int axis), argpartition_axis(&r.c, a.c, kth, axis, here()))
MLXC(argsort, (const array& a, int axis), argsort_axis(&r.c, a.c, axis, here()))
MLXC(astype, (const array& a, Dtype t), astype(&r.c, a.c, t, here()))
MLXC(broadcast_to, (const array& a, const Shape& s), broadcast_to(&r.c, a.c, MLXC_LIST(s), here()))
MLXC(concatenate, (const Arrays& a, int axis), concatenate_axis(&r.c, Vector(a).v, axis, here()))
MLXC(contiguous, (const array& a, bool columns), contiguous(&r.c, a.c, columns, here()))
MLXC(conv_general, (const array& x, const array& w, const Shape& stride, const Shape& before, const Shape& behind, const Shape& kernel, const Shape& input, int groups, bool flip),
     conv_general(&r.c, x.c, w.c, MLXC_LIST(stride), MLXC_LIST(before), MLXC_LIST(behind), MLXC_LIST(kernel), MLXC_LIST(input), groups, flip, here()))
MLXC(expand_dims, (const array& a, const Shape& s), expand_dims_axes(&r.c, a.c, MLXC_LIST(s), here()))
MLXC(flatten, (const array& a, int from, int to), flatten(&r.c, a.c, from, to, here()))
MLXC(gather, (const array& a, const Arrays& i, const Shape& axes, const Shape& sizes), gather(&r.c, a.c, Vector(i).v, MLXC_LIST(axes), MLXC_LIST(sizes), here()))
MLXC(pad, (const array& a, const Shape& axes, const Shape& before, const Shape& behind, const array& value), pad(&r.c, a.c, MLXC_LIST(axes), MLXC_LIST(before), MLXC_LIST(behind), value.c, "constant", here()))
MLXC(partition, (const array& a, int kth, int axis), partition_axis(&r.c, a.c, kth, axis, here()))
MLXC(put_along_axis, (const array& a, const array& i, const array& v, int axis), put_along_axis(&r.c, a.c, i.c, v.c, axis, here()))
MLXC(reshape, (const array& a, const Shape& s), reshape(&r.c, a.c, MLXC_LIST(s), here()))
MLXC(round, (const array& a), round(&r.c, a.c, 0, here()))
MLXC(slice, (const array& a, const Shape& b, const Shape& e, const Shape& s), slice(&r.c, a.c, MLXC_LIST(b), MLXC_LIST(e), MLXC_LIST(s), here()))
MLXC(slice_update, (const array& a, const array& u, const Shape& b, const Shape& e, const Shape& s), slice_update(&r.c, a.c, u.c, MLXC_LIST(b), MLXC_LIST(e), MLXC_LIST(s), here()))
MLXC(softmax, (const array& a, const Shape& s, bool precise), softmax_axes(&r.c, a.c, MLXC_LIST(s), precise, here()))
MLXC(sort, (const array& a, int axis), sort_axis(&r.c, a.c, axis, here()))
MLXC(squeeze, (const array& a, const Shape& s), squeeze_axes(&r.c, a.c, MLXC_LIST(s), here()))
MLXC(take_along_axis, (const array& a, const array& i, int axis), take_along_axis(&r.c, a.c, i.c, axis, here()))
MLXC(transpose, (const array& a, const Shape& s), transpose_axes(&r.c, a.c, MLXC_LIST(s), here()))
MLXC(unflatten, (const array& a, int axis, const Shape& s), unflatten(&r.c, a.c, axis, MLXC_LIST(s), here()))
MLXC(view, (const array& a, Dtype t), view(&r.c, a.c, t, here()))
MLXC(where, (const array& c, const array& a, const array& b), where(&r.c, c.c, a.c, b.c, here()))

inline Arrays split(const array& a, const Shape& ends, int axis) {
  Vector r;
  check(mlx_split_sections(&r.v, a.c, MLXC_LIST(ends), axis, here()));
  return r.arrays();
}

inline mlx_array c_of(const std::optional<array>& a) { return a ? a->c : mlx_array{nullptr}; }

MLXC(quantized_matmul, (const array& x, const array& w, const array& scales, const std::optional<array>& biases, bool transpose, int group, int bits, const char* mode),
     quantized_matmul(&r.c, x.c, w.c, scales.c, c_of(biases), transpose, mlx_optional_int{group, true}, mlx_optional_int{bits, true}, mode, here()))
MLXC(dequantize, (const array& w, const array& scales, const std::optional<array>& biases, int group, int bits, const char* mode, std::nullopt_t, Dtype t),
     dequantize(&r.c, w.c, scales.c, c_of(biases), mlx_optional_int{group, true}, mlx_optional_int{bits, true}, mode, mlx_array{nullptr}, mlx_optional_dtype{t, true}, here()))
inline Arrays quantize(const array& x, int group, int bits, const char* mode) {
  Vector r;
  check(mlx_quantize(&r.v, x.c, mlx_optional_int{group, true}, mlx_optional_int{bits, true}, mode, mlx_array{nullptr}, here()));
  return r.arrays();
}

namespace random {
MLXC(bits, (const Shape& s, int width, const array& key), random_bits(&r.c, MLXC_LIST(s), width, key.c, here()))
}
namespace fast {
MLXC(rms_norm, (const array& x, const array& w, float eps), fast_rms_norm(&r.c, x.c, w.c, eps, here()))
MLXC(layer_norm, (const array& x, const array& w, const array& b, float eps), fast_layer_norm(&r.c, x.c, w.c, b.c, eps, here()))
MLXC(rope, (const array& x, int dims, bool traditional, float base, float scale, const array& offset),
     fast_rope_dynamic(&r.c, x.c, dims, traditional, mlx_optional_float{base, true}, scale, offset.c, mlx_array{nullptr}, here()))
MLXC(scaled_dot_product_attention, (const array& q, const array& k, const array& v, float scale, const char* mode, const std::optional<array>& mask),
     fast_scaled_dot_product_attention(&r.c, q.c, k.c, v.c, scale, mode, c_of(mask), mlx_array{nullptr}, here()))
}  // namespace fast

inline void eval(const Arrays& all) { check(mlx_eval(Vector(all).v)); }

inline std::unordered_map<std::string, array> load_tensors(const std::string& path) {
  auto map = mlx_map_string_to_array_new();
  auto metadata = mlx_map_string_to_string_new();
  auto cpu = mlx_default_cpu_stream_new();  // where files are read
  int failed = mlx_load_safetensors(&map, &metadata, path.c_str(), cpu);
  std::unordered_map<std::string, array> out;
  if (!failed) {
    auto it = mlx_map_string_to_array_iterator_new(map);
    const char* name = nullptr;
    for (array value; !mlx_map_string_to_array_iterator_next(&name, &value.c, it); value = array()) out.emplace(name, value);
    mlx_map_string_to_array_iterator_free(it);
  }
  mlx_map_string_to_array_free(map);
  mlx_map_string_to_string_free(metadata);
  mlx_stream_free(cpu);
  check(failed);
  return out;
}

using Function = std::function<Arrays(const Arrays&)>;

inline Function compile(Function f) {
  auto call = [](mlx_vector_array* result, const mlx_vector_array given, void* held) -> int {
    try {
      Vector made((*static_cast<Function*>(held))(Vector::arrays(given)));
      return mlx_vector_array_set(result, made.v);
    } catch (const std::exception& error) {
      error_text = error.what();
      return 1;
    }
  };
  auto plain = mlx_closure_new_func_payload(call, new Function(std::move(f)), [](void* held) { delete static_cast<Function*>(held); });
  auto made = mlx_closure_new();
  int failed = mlx_compile(&made, plain, false);
  mlx_closure_free(plain);
  std::shared_ptr<mlx_closure> compiled(new mlx_closure(made), [](mlx_closure* c) {
    mlx_closure_free(*c);
    delete c;
  });
  check(failed);
  return [compiled](const Arrays& given) {
    Vector result, inputs(given);
    check(mlx_closure_apply(&result.v, *compiled, inputs.v));
    return result.arrays();
  };
}

struct Device {
  enum DeviceType { cpu, gpu } type;
  Device(DeviceType type) : type(type) {}
  bool operator==(const Device& other) const { return type == other.type; }
};

inline Device default_device() {
  mlx_device device = mlx_device_new();
  mlx_device_type type = MLX_CPU;
  mlx_get_default_device(&device);
  mlx_device_get_type(&type, device);
  mlx_device_free(device);
  return type == MLX_GPU ? Device::gpu : Device::cpu;
}

inline size_t get_active_memory() {
  size_t bytes = 0;
  check(mlx_get_active_memory(&bytes));
  return bytes;
}
inline size_t get_peak_memory() {
  size_t bytes = 0;
  check(mlx_get_peak_memory(&bytes));
  return bytes;
}
inline void set_cache_limit(size_t bytes) {
  take_errors();
  check(mlx_set_cache_limit(&bytes, bytes));
}
inline void set_memory_limit(size_t bytes) { check(mlx_set_memory_limit(&bytes, bytes)); }
inline void set_wired_limit(size_t bytes) { check(mlx_set_wired_limit(&bytes, bytes)); }

#undef MLXC
#undef MLXC_UNARY
#undef MLXC_BINARY
#undef MLXC_REDUCE
#undef MLXC_SCAN
#undef MLXC_LIST

}  // namespace moshi_mlx::mlxc
