// Files: read whole, written whole or not at all, and what lies in a safetensors file.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "errors.hpp"

namespace moshi_mlx {

std::string read_file(const std::string& path, moshi_status status);
void write_file(const std::string& path, std::string_view data, moshi_status status);
uint32_t crc32(std::string_view data);
std::string hexadecimal(uint32_t value);

struct Tensor {
  std::string dtype;  // as MLX calls it
  std::vector<long> shape;
};

// As moshi_mlx/export/bundle.py makes it: length, and a checksum of blocks spread over the file.
std::string fingerprint(const std::string& path);
// The tensors of a file by name; each lies wholly in it. Throws Error(MOSHI_BAD_CHECKPOINT).
std::map<std::string, Tensor> tensors_in(const std::string& path);

}  // namespace moshi_mlx
