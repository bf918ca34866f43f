// MLX, from C++ or, with MOSHI_MLX_C, through mlx-c, which is what mlx-swift gives to other packages.
#pragma once
#include <functional>
#include <string>
#include <unordered_map>
#include <vector>
#ifdef MOSHI_MLX_C
#include "mlx_c.hpp"
namespace mx = moshi_mlx::mlxc;
#else
#include "mlx/mlx.h"
namespace mx = mlx::core;
#endif

namespace moshi_mlx {
#ifdef MOSHI_MLX_C
using mlxc::load_tensors;
#else
// The tensors of a safetensors file by name; each is read when it is evaluated.
inline std::unordered_map<std::string, mx::array> load_tensors(const std::string& path) {
  return mx::load_safetensors(path).first;
}
#endif
using Arrays = std::vector<mx::array>;
using Compiled = std::function<Arrays(const Arrays&)>;

inline void append(Arrays& to, const Arrays& from) { to.insert(to.end(), from.begin(), from.end()); }
inline Arrays part(const Arrays& all, size_t from, size_t count) {
  return Arrays(all.begin() + long(from), all.begin() + long(from + count));
}
}  // namespace moshi_mlx
